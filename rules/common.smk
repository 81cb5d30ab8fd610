# What several rule files need; functions alone, no rules.
#
# In the rules, what a stage computes is a param: a change reruns it. How it runs (batch size, worker processes, device)
# is a resource: a change reruns nothing, so that a run that ended for want of memory goes on where it stopped.
import json
import os
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(workflow.basedir))

from nadpipe.config import MADE_HERE, check
from nadpipe.demo.files import CHECKPOINT
from nadpipe.dictionaries import is_named
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint, files_fingerprint
from nadpipe.layouts import LAYOUTS, class_sources


def checked_config():
    """The config, complete and valid, or a message of one line a fault and the end of the run."""
    try:
        return check(config)
    except NadpipeError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


def command_prefix():
    """Makes `nadpipe` in a rule run the code beside this Snakefile, in whichever environment the job has."""
    return (
        f"export PYTHONPATH={shlex.quote(str(workflow.basedir))}${{{{PYTHONPATH:+:$PYTHONPATH}}}}; "
        'nadpipe() {{ python -m nadpipe "$@"; }}; '
    )


def memory(megabytes):
    """Memory of a job: as much again at every retry."""
    return lambda wildcards, attempt: megabytes * attempt


def code(stage):
    """Fingerprint of the code that a stage runs, as a param: Snakemake does not see edits in imported modules."""
    return code_fingerprint(f"nadpipe.stages.{stage}")


def model_options():
    """The options that name the model, for the stages that load it."""
    pretrained = config["model"]["pretrained"]
    options = ["--architecture", config["model"]["architecture"]]
    return options + (["--pretrained", pretrained] if pretrained else [])


def model_files():
    """The model's config and checkpoint, as far as they are local files."""
    named = [config["model"]["architecture"], config["model"]["pretrained"] or ""]
    return [
        name for name in named if Path(name).parent == MADE_HERE or Path(name).is_file()
    ]


def source_options(dataset):
    """The options that say where the images of a data set come from."""
    given = config["datasets"][dataset]
    names = (
        "layout",
        "path",
        "split",
        "path_column",
        "mask_column",
        "group_column",
        "label_column",
        "labels",
        "bad_images",
    )
    return [
        part
        for name in names
        if given[name] is not None
        for part in (f"--{name.replace('_', '-')}", given[name])
    ]


def source_files(dataset):
    """The table or folder of a data set, and the folder of images that the demo draws beside its table."""
    given = config["datasets"][dataset]
    source = Path(given["path"])
    labels = [given["labels"]] if given["labels"] else []
    return [str(source), *labels] + (
        [str(source.with_suffix(""))] if source.parent == MADE_HERE else []
    )


def shards(dataset, stage):
    """All shards of a stage of a data set."""
    return [
        f"results/artifacts/{dataset}/{stage}/{shard}.zarr"
        for shard in shard_numbers(dataset)
    ]


def class_options(dataset):
    """The options that say what the classes of a data set are."""
    given = config["datasets"][dataset]
    options = ["--layout", given["layout"], "--path", given["path"]]
    options += ["--split", given["split"]] if given["split"] else []
    if isinstance(given["classes"], str):
        options += ["--class-file", given["classes"]]
    elif given["classes"]:
        options += ["--classes", *given["classes"]]
    options += ["--reduce-zero"] if given["reduce_zero_label"] else []
    return options + ["--ignore", given["ignore"]]


def class_files(dataset):
    """The files that the classes of a data set are read from: the one that is named, and that of a published layout."""
    given = config["datasets"][dataset]
    named = [given["classes"]] if isinstance(given["classes"], str) else []
    if given["layout"] in LAYOUTS:
        named += [
            str(path) for path in class_sources(given["layout"], Path(given["path"]))
        ]
    return named


def text_options(name):
    """The options that give the texts of a set."""
    if name == "dictionary":
        return ["--dictionary", config["text"]["dictionary"]]
    if name == "concepts":
        return ["--texts", *config["shift"]["concepts"]]
    if name == "labels":
        return ["--labels", of_analyses("results/artifacts/{dataset}/images.parquet")]
    given = config["datasets"][name]["background_names"]
    table = f"results/artifacts/{name}/classes.parquet"
    return ["--classes", table, flag("background-names", given)]


def text_files(name):
    """The file that the texts of a set are read from, if they are."""
    if name == "dictionary":
        dictionary = config["text"]["dictionary"]
        return [] if is_named(dictionary) else [dictionary]
    if name == "labels":
        return [of_analyses("results/artifacts/{dataset}/images.parquet")]
    return [] if name == "concepts" else [f"results/artifacts/{name}/classes.parquet"]


def cache_option():
    """The option that names the cache of embeddings, quoted for the shell: a resource is one string, not a list."""
    cache = config["text"]["cache"]
    return "" if cache is None else f"--cache {shlex.quote(cache)}"


def selection_section(name):
    """The section of the config that says how pairs are selected for a set of texts."""
    return config["shift" if name == "concepts" else "segmentation"]


def selected_k(name):
    """The largest number of pairs of a text; a sweep's smaller ones are the first of these."""
    k = selection_section(name)["k"]
    return max(k) if isinstance(k, list) else k


def shard_numbers(dataset):
    """Numbers of a data set's shards."""
    return range(config["datasets"][dataset]["shards"])


def view_options(dataset):
    """How a data set is looked at: images to be segmented by sliding crops, all others by the model's own crop."""
    section = config["segmentation"]
    if dataset not in section["datasets"]:
        return ["--views", "centre"]
    sizes = [("--scale", "scale"), ("--crop", "crop"), ("--stride", "stride")]
    options = [part for flag, name in sizes for part in (flag, section[name])]
    block = [] if section["block"] is None else ["--block", section["block"]]
    return ["--views", "sliding", *options, *block]


def of_segmentation(pattern):
    """A path for every data set that is segmented."""
    return [
        pattern.format(dataset=dataset)
        for dataset in config["segmentation"]["datasets"]
    ]


def segmented_shards(pattern, datasets):
    """A path for every shard of data sets that are segmented."""
    return [
        pattern.format(dataset=dataset, shard=shard)
        for dataset in datasets
        for shard in shard_numbers(dataset)
    ]


def labelling_options(dataset):
    """How the logits of a data set's texts become its classes."""
    given = config["datasets"][dataset]
    return [
        flag("background-names", given["background_names"]),
        *("--background-threshold", given["background_threshold"]),
        *("--area-threshold", given["area_threshold"]),
    ]


def flag(name, wanted):
    """A switch as an option."""
    return f"--{name}" if wanted else f"--no-{name}"


def coefficients_for(unit):
    """The coefficients that a unit's directions are fitted to; a pair's moments say all that it needs."""
    return [] if unit == "pair" else shards("discovery", "contributions")


def contributions_options(paths):
    """The option that gives contributions, if there are any."""
    return ["--contributions", *paths] if paths else []


def component_options(unit):
    """The number of directions of a unit that is not rank one."""
    return (
        "" if unit == "pair" else f"--components {config['directions']['components']}"
    )


def reference_options():
    """The group that the others are compared with, if the config names one."""
    reference = config["shift"]["reference"]
    return [] if reference is None else ["--reference", reference]


def comparison_options():
    """How groups are compared."""
    section = config["shift"]
    return [
        *reference_options(),
        "--test",
        section["test"],
        "--small-group",
        section["small_group"],
    ]


def demo_images(dataset):
    """Images that the demo draws for a data set; of each year for monitoring."""
    return config["demo"][
        "monitoring_images_per_year" if dataset == "monitoring" else f"{dataset}_images"
    ]


def assignments_of(unit):
    """The table of a unit's texts."""
    return (
        "results/assignments.parquet"
        if unit == "pair"
        else f"results/artifacts/assignments/{unit}.parquet"
    )


def reference_texts(name):
    """The texts whose mean a set is centred with: a set of classes its own, the few concepts that of the dictionary."""
    return f"results/artifacts/text/{'dictionary' if name == 'concepts' else name}.zarr"


def correlations_of(unit):
    """The table of a unit's texts by correlation; pairs alone have one."""
    return (
        ["results/artifacts/assignments/correlated.parquet"] if unit == "pair" else []
    )


def correlated_options(paths):
    """The option that gives texts by correlation, if there are any."""
    return ["--correlated", *paths] if paths else []


def of_analyses(pattern):
    """A path of the data set that analyses are made on."""
    return pattern.format(dataset=config["analyses"]["dataset"])


def used_datasets():
    """The data sets that a run looks at."""
    return ["discovery", "monitoring", *config["segmentation"]["datasets"]]


def settings_of_results():
    """The config without what says only how stages run, and without the dense export, which no table is made from."""
    how = ("batch_size", "workers", "cache", "device")
    sections = {
        name: {key: value for key, value in section.items() if key not in how}
        for name, section in config.items()
        if isinstance(section, dict) and name != "dense"
    }
    return {"seed": config["seed"], **sections}
