from snakemake.utils import min_version

min_version("9.6")


configfile: f"{workflow.basedir}/config.yaml"


include: "rules/common.smk"


config.update(checked_config())
check_apart()
ANALYSES = ("reconstruction", "sparsity", "sparse_text", "naming", "faithfulness")
FINAL_TABLES = [
    "results/segmentation.csv",
    "results/segmentation/per_class.parquet",
    "results/segmentation/differences.parquet",
    "results/registers.parquet",
    "results/shift.csv",
    "results/shift/scores.parquet",
    "results/shift/discovered.parquet",
    "results/pairs.parquet",
    "results/neurons.parquet",
    "results/heads.parquet",
    "results/assignments.parquet",
    *(f"results/{name}.csv" for name in ANALYSES),
    "results/polysemanticity.parquet",
]
shell.prefix(command_prefix())


wildcard_constraints:
    dataset="|".join(config["datasets"]),
    unit="pair|neuron|head",
    set="|".join(
        ["dictionary", "concepts", "labels", *config["segmentation"]["datasets"]]
    ),
    shard=r"\d+",


localrules:
    all,


rule all:
    default_target: True
    input:
        FINAL_TABLES,
        "results/provenance.json",
        "results/explorer",
        "results/report.html",
        [
            f"results/segmentation/{dataset}/{made}"
            for dataset in config["segmentation"]["datasets"]
            for made in ("overlays", "sheets", "per_class.png")
        ],
        "results/retrieval",
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
include: "rules/analyses.smk"
include: "rules/summary.smk"
include: "rules/storage.smk"
