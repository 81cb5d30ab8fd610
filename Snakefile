import os

from snakemake.utils import min_version

min_version("9.6")


include: "rules/common.smk"


# A config given on the command line replaces the demo's, so that nothing is inherited from it. Without one, the config.yaml of
# the working directory counts. A workflow that imports this one gives a `config`; without it, the module is the demo.
OWN_CONFIG = "config.yaml"
if IMPORTED or not os.path.exists(OWN_CONFIG):
    OWN_CONFIG = f"{FOLDER}/config.yaml"
if not IMPORTED:
    check_config_files(workflow.overwrite_configfiles or [OWN_CONFIG])
if IMPORTED or not workflow.overwrite_configfiles:

    configfile: OWN_CONFIG


include: "rules/storage.smk"


check_folder()
config.update(checked_config())
check_apart()
config["captions"] = captions()  # for captions/final.rst
MISSING = missing_needs(config)
UNMASKED = missing_masks(config)
check_requested()
FINAL_TABLES = final_tables(MISSING)
if not IMPORTED:
    shell.prefix(command_prefix())
    if workflow.is_main_process:
        begin_run()


onstart:
    record_study(config, STUDY_RECORD)


onsuccess:
    end_run(describe_results(requested()))


onerror:
    end_run(describe_failures("".join(Path(path).read_text() for path in log)))


wildcard_constraints:
    dataset="|".join(config["datasets"]),
    unit="|".join(UNITS),
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
        final_plots(MISSING),
        "results/provenance.json",
        "results/explorer",
        "results/report.html",
        [
            f"results/segmentation/{dataset}/{picture}"
            for dataset in config["segmentation"]["datasets"]
            for picture in pictures_of(dataset)
        ],
        "results/artifacts/discovery/head_means.zarr",  # for `nadpipe segment`
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
include: "rules/plots.smk"
include: "rules/summary.smk"


if STORED:
    mark_uploads()
