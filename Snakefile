from snakemake.utils import min_version

min_version("9.6")


configfile: f"{workflow.basedir}/config.yaml"


include: "rules/common.smk"


config.update(checked_config())
shell.prefix(command_prefix())


wildcard_constraints:
    dataset="discovery|segmentation|monitoring",
    unit="pair|neuron|head",
    set="dictionary|classes|concepts",
    shard=r"\d+",


localrules:
    all,


rule all:
    default_target: True
    input:
        "results/segmentation.csv",
        "results/segmentation/segmentation/overlays",
        "results/shift.csv",
        "results/shift/pairs.parquet",
        "results/pairs.parquet",
        "results/neurons.parquet",
        "results/heads.parquet",
        "results/assignments.parquet",
        [
            store
            for dataset in config["dense"]["datasets"]
            for store in shards(dataset, "dense")
        ],


include: "rules/demo.smk"
include: "rules/model.smk"
include: "rules/images.smk"
include: "rules/directions.smk"
include: "rules/texts.smk"
include: "rules/segmentation.smk"
include: "rules/shift.smk"
