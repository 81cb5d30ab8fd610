# What several rule files need; functions alone, no rules.
#
# In the rules, what a stage computes is a param: a change reruns it. How it runs (batch size, worker processes, device)
# is a resource: a change reruns nothing, so that a run that ended for want of memory goes on where it stopped.
import json
import os
import re
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(workflow.basedir))

from snakemake.io import is_flagged

from nadpipe.config import MADE_HERE, check, image_folder, is_url
from nadpipe.demo.files import CHECKPOINT
from nadpipe.dictionaries import is_named
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint, files_fingerprint
from nadpipe.layouts import LAYOUTS, class_sources

# Whether results are in storage (S3, say) and not on disk.
STORED = workflow.storage_settings.default_storage_provider is not None
STORED_BELOW = os.path.join(workflow.storage_settings.default_storage_prefix or "", "")


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


def is_copied(path):
    """Whether jobs see a copy of a path: of what a URL names, and of what the workflow makes where results are not on disk."""
    return is_url(path) or (STORED and Path(path).is_relative_to(MADE_HERE))


def given(path):
    """A path of the config as an input. A URL is fetched, what the workflow makes itself is where results are, and all else is
    on this machine's disk wherever results are."""
    if is_url(path):
        return storage(path)
    return path if Path(path).is_relative_to(MADE_HERE) else local(path)


def check_apart():
    """Ends the run where results would be stored in a folder that is fetched whole, as images."""
    for dataset in config["datasets"]:
        folder = source_root(dataset)
        if is_url(folder) and STORED_BELOW.startswith(f"{folder}/"):
            print(
                f"--default-storage-prefix: {STORED_BELOW} is in {folder}, which datasets.{dataset}.path fetches whole; choose another",
                file=sys.stderr,
            )
            sys.exit(1)


def found_at(path):
    """Where jobs find a path of the config: the path itself, or that of its copy."""
    if is_url(path):
        return str(storage(path))
    if is_copied(path):
        provider = workflow.storage_registry.default_storage_provider
        return str(provider.object(f"{STORED_BELOW}{path}").local_path())
    return path


def model_options():
    """The options that name the model, for the stages that load it."""
    pretrained = config["model"]["pretrained"]
    options = ["--architecture", found_at(config["model"]["architecture"])]
    return options + (["--pretrained", found_at(pretrained)] if pretrained else [])


def model_files():
    """The model's config and checkpoint, as far as they are files."""
    named = [config["model"]["architecture"], config["model"]["pretrained"] or ""]
    return [
        given(name)
        for name in named
        if is_url(name) or Path(name).is_relative_to(MADE_HERE) or Path(name).is_file()
    ]


def source_options(dataset):
    """The options that say where the images of a data set come from."""
    known = dict(config["datasets"][dataset])
    known["path"] = source_path(dataset)
    known["labels"] = known["labels"] and found_at(known["labels"])
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
        if known[name] is not None
        for part in (f"--{name.replace('_', '-')}", known[name])
    ] + copy_options(dataset)


def source_root(dataset):
    """The folder that the images of a data set lie in, as the config names it."""
    known = config["datasets"][dataset]
    return image_folder(known["layout"], known["path"])


def source_path(dataset):
    """Where jobs find the table or folder of a data set; of a table that a URL names, in the copy of the folder it lies in."""
    path = config["datasets"][dataset]["path"]
    if not is_url(path):
        return found_at(path)
    return found_at(source_root(dataset)) + path.removeprefix(source_root(dataset))


def source_files(dataset):
    """The table or folder of a data set, with the folder of images that the demo draws beside its table; of a table that a
    URL names, the folder it lies in."""
    path = config["datasets"][dataset]["path"]
    if is_url(path):
        return [given(source_root(dataset))]
    made = Path(path).is_relative_to(MADE_HERE)
    return [given(path)] + ([str(Path(path).with_suffix(""))] if made else [])


def label_files(dataset):
    """The second table of a data set, if it has one."""
    labels = config["datasets"][dataset]["labels"]
    return [given(labels)] if labels else []


def copied_images(dataset):
    """The files of a data set as an input of the rules that look at its images, where jobs see a copy of these; elsewhere they
    are found by the manifest alone."""
    copied = is_copied(config["datasets"][dataset]["path"])
    return source_files(dataset) if copied else []


def copy_options(dataset):
    """The option that says where the copy of a data set's images is, if it is one."""
    if not is_copied(config["datasets"][dataset]["path"]):
        return []
    return ["--copy", source_root(dataset), found_at(source_root(dataset))]


def shards(dataset, stage):
    """All shards of a stage of a data set."""
    return [
        f"results/artifacts/{dataset}/{stage}/{shard}.zarr"
        for shard in shard_numbers(dataset)
    ]


def class_options(dataset):
    """The options that say what the classes of a data set are."""
    known = config["datasets"][dataset]
    options = ["--layout", known["layout"], "--path", source_path(dataset)]
    options += ["--split", known["split"]] if known["split"] else []
    if isinstance(known["classes"], str):
        options += ["--class-file", found_at(known["classes"])]
    elif known["classes"]:
        options += ["--classes", *known["classes"]]
    options += ["--reduce-zero"] if known["reduce_zero_label"] else []
    return options + ["--ignore", known["ignore"]]


def class_files(dataset):
    """The files that the classes of a data set are read from: the one that is named, and that of a published layout, or the
    data set itself where jobs see a copy of it."""
    known = config["datasets"][dataset]
    named = [given(known["classes"])] if isinstance(known["classes"], str) else []
    if known["layout"] in LAYOUTS:
        found = class_sources(known["layout"], Path(known["path"]))
        named += [local(str(path)) for path in found] + copied_images(dataset)
    return named


def text_options(name):
    """The options that give the texts of a set."""
    if name == "dictionary":
        dictionary = config["text"]["dictionary"]
        named = is_named(dictionary)
        return ["--dictionary", dictionary if named else found_at(dictionary)]
    if name == "concepts":
        return ["--texts", *config["shift"]["concepts"]]
    if name == "labels":
        return ["--labels"]
    background = config["datasets"][name]["background_names"]
    return [flag("background-names", background), "--classes"]


def text_files(name):
    """The file that the texts of a set are read from, if they are."""
    if name == "dictionary":
        dictionary = config["text"]["dictionary"]
        return [] if is_named(dictionary) else [given(dictionary)]
    return []


def text_tables(name):
    """The table of the workflow that the texts of a set are read from, if they are; behind the options."""
    if name == "labels":
        return [of_analyses("results/artifacts/{dataset}/images.parquet")]
    made = ("dictionary", "concepts")
    return [] if name in made else [f"results/artifacts/{name}/classes.parquet"]


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
    known = config["datasets"][dataset]
    return [
        flag("background-names", known["background_names"]),
        *("--background-threshold", known["background_threshold"]),
        *("--area-threshold", known["area_threshold"]),
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


def written(path):
    """A path as a rule has it, before it was put into storage."""
    query = path.storage_object.query if path.is_storage else str(path)
    return query.removeprefix(STORED_BELOW)


def inputs_of(item, wildcards):
    """The paths of one input, as it is written, or what its function gives, which may be one, several or none."""
    if not callable(item):
        return [written(item).format(**wildcards)]
    found = item(wildcards)
    return [found] if isinstance(found, str) else list(found)


def paths_of(pattern):
    """The paths that a folder may have; none of its wildcards holds a slash or a dot."""
    return re.compile("[^/.]+".join(map(re.escape, re.split(r"{\w+}", pattern))))


def ask_for_uploads(reader, folders):
    """Let a rule that reads folders ask for the files that are stored behind them."""
    asked = list(reader.input)

    def uploads(wildcards):
        paths = [path for item in asked for path in inputs_of(item, wildcards)]
        return [
            f"{path}.uploaded"
            for path in paths
            if any(folder.fullmatch(path) for folder in folders)
        ]

    reader.set_input(uploaded=uploads)
