# Functions that several rule files use. This file has no rules.
#
# In rules, settings that affect a stage's result are params: a change reruns the stage. Settings that affect only how it runs
# (batch size, worker processes, device) are resources: a change reruns nothing, so a run that ran out of memory continues where
# it stopped.
import atexit
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

# True if another workflow imports this one by a `module` statement. Then the installed package is used, and nothing outside of
# this module is changed: no search path, no shell prefix.
IMPORTED = not workflow.modifier.is_main_snakefile()
FOLDER = os.path.dirname(workflow.current_basedir.get_path_or_uri(secret_free=True))
PREFIX = workflow.modifier.path_modifier.prefix or ""  # of all paths of this module
if not IMPORTED:
    sys.path.insert(0, FOLDER)
elif not shutil.which("nadpipe"):
    print(
        f"{FOLDER}: a workflow that imports nadpipe calls its commands; install nadpipe in the same environment",
        file=sys.stderr,
    )
    sys.exit(65)

from nadpipe.analyses import (
    FINAL,
    PLOTTED,
    captions,
    final_plots,
    final_tables,
    needs_of,
)
from nadpipe.circuit.unit_kinds import UNITS
from nadpipe.config import DEMO_FOLDER, check, is_url
from nadpipe.config_file import check_config_file
from nadpipe.data.dictionaries import is_named
from nadpipe.data.layouts import LAYOUTS
from nadpipe.demo.files import CHECKPOINT, VIT_CHECKPOINT
from nadpipe.errors import BAD_INPUT, NadpipeError, visible
from nadpipe.fingerprint import (
    code_fingerprint,
    files_fingerprint,
    record_fingerprint,
)
from nadpipe.needs import missing_masks, missing_needs
from nadpipe.outcome import (
    changed_study,
    describe_failures,
    describe_results,
    is_unrecorded,
    note_refusals,
    record_study,
)
from nadpipe.preflight import check_images, dataset_source, is_looked_at
from nadpipe.store.kinds.units import ASSIGNMENTS


def check_config_files(paths):
    """Exit with one line per error that parsing would hide, such as a key that occurs twice."""
    try:
        for path in paths:
            check_config_file(Path(path))
    except NadpipeError as error:
        print(error, file=sys.stderr)
        sys.exit(BAD_INPUT)


def checked_config():
    """Return the complete config, checked against the data sets on disk, or print one line per error and exit."""
    try:
        complete = check(config)
        check_images(complete)
        return complete
    except NadpipeError as error:
        print(visible(str(error)), file=sys.stderr)
        sys.exit(BAD_INPUT)


def check_folder():
    """Exit with one line if the path of this clone has braces: Snakemake would replace them in commands and environments."""
    if "{" in FOLDER or "}" in FOLDER:
        print(
            f"{visible(FOLDER)}: contains braces, which Snakemake would replace; rename the folder",
            file=sys.stderr,
        )
        sys.exit(BAD_INPUT)


def check_requested():
    """Exit with one line if a requested table needs what the config lacks. Snakemake knows its targets only later."""
    for path in sys.argv:
        for need in needs_of(path):
            if need in MISSING:
                print(f"{path}: cannot be made. {MISSING[need]}", file=sys.stderr)
                sys.exit(BAD_INPUT)


LONGEST_WORD = 100_000  # bytes; Linux refuses commands of more than 131,072
STUDY_RECORD = Path(".snakemake") / "nadpipe-study.json"


def begin_run():
    """Warn if the results are of another or of an unknown study, and make the folder in which commands note why they were
    refused."""
    keys = changed_study(config, STUDY_RECORD)
    if keys:
        print(
            f"results/: made with other values of {', '.join(sorted(keys))}; what depends on them is made again. Use "
            "--directory to keep studies apart",
            file=sys.stderr,
        )
    if is_unrecorded(Path("results"), STUDY_RECORD):
        print(
            "results/: the records of the run that made it (.snakemake/) are missing, so results of other settings would be "
            "taken for these; remove results/, or make all of it again with --forceall",
            file=sys.stderr,
        )
    note_refusals()


def end_run(message):
    """Print a message after everything that Snakemake prints."""
    atexit.register(print, visible(message), file=sys.stderr, flush=True)


def requested():
    """Return the paths that the user requested; for `all`, the tables and pages to look at first."""
    targets = set(workflow.dag_settings.targets) - {"all"}
    return sorted(targets) or ["results/report.html", "results/explorer"]


def command_prefix():
    """Return shell code that makes `nadpipe` in a rule run the code next to this Snakefile, in any job environment."""
    return (
        f"export PYTHONPATH={shlex.quote(FOLDER)}${{{{PYTHONPATH:+:$PYTHONPATH}}}}; "
        'nadpipe() {{ python -m nadpipe "$@"; }}; '
    )


def settings(**options):
    """Return options whose values are texts of the config, without those that are None, as one word of JSON.

    A command cannot mistake such a text for an option. Params must be functions that return it: Snakemake would replace names in
    braces in a param that is a text or a list.
    """
    given = {name: value for name, value in options.items() if value is not None}
    word = f"--settings={json.dumps(given)}"
    if len(word) > LONGEST_WORD:
        print(
            f"config: {', '.join(given)} take {len(word):,} bytes of a command, of at most {LONGEST_WORD:,}; shorten them",
            file=sys.stderr,
        )
        sys.exit(BAD_INPUT)
    return [word] if given else []


def memory(megabytes):
    """Return the memory of a job in MB; each retry adds the same amount again."""
    return lambda wildcards, attempt: megabytes * attempt


def code(stage):
    """Return a param of a stage's rule: the fingerprint of its code, because Snakemake does not see edits in imported modules.

    It is computed for rules that have jobs only. A job on a cluster reads this file again.
    """
    return lambda wildcards: code_fingerprint(f"nadpipe.stages.{stage}")


def final(path):
    """Return a final table as an output that Snakemake's report shows, with the category and the caption of its schema."""
    return report(path, caption="captions/final.rst", category=FINAL[path].category)


def checksums(tables):
    """Return the checksums that stages write next to CSV tables, as inputs. Parquet tables contain theirs."""
    return [f"{path}.sha256" for path in tables if path.endswith(".csv")]


def model_options():
    """Return the options that name the model."""
    pretrained = config["model"]["pretrained"]
    return settings(
        architecture=found_at(config["model"]["architecture"]),
        pretrained=found_at(pretrained) if pretrained else None,
    )


def block_options():
    """Return the option for the block of the neurons, if the config names one."""
    block = config["model"]["block"]
    return [] if block is None else ["--block", block]


def model_files():
    """Return the model's config and checkpoint as inputs, if they are files."""
    names = [config["model"]["architecture"], config["model"]["pretrained"] or ""]
    return [
        given(name)
        for name in names
        if is_url(name)
        or Path(name).is_relative_to(DEMO_FOLDER)
        or Path(name).is_file()
    ]


def source_root(dataset):
    """Return the folder of a data set's images, as the config names it."""
    source = config["datasets"][dataset]
    return LAYOUTS[source["layout"]].image_folder(source["path"])


def source_path(dataset):
    """Return the path at which jobs find the table or folder of a data set. A table at a URL is in its folder's copy."""
    path = config["datasets"][dataset]["path"]
    if not is_url(path):
        return found_at(path)
    return found_at(source_root(dataset)) + path.removeprefix(source_root(dataset))


def copied_images(dataset):
    """Return the files of a data set as inputs if jobs use a staged copy. Otherwise jobs find the images by the manifest."""
    return source_files(dataset) if has_copy(dataset) else []


def has_copy(dataset):
    """Return True if the config has a data set and jobs use a staged copy of it."""
    source = config["datasets"].get(dataset)
    return source is not None and is_copied(source["path"])


def copy_options(dataset):
    """Return the option that names the staged copy of a data set's images, if there is one."""
    if not has_copy(dataset):
        return []
    return settings(copy=[source_root(dataset), found_at(source_root(dataset))])


def shards(dataset, stage):
    """Return the paths of all shards of a stage of a data set."""
    return [
        f"results/artifacts/{dataset}/{stage}/{shard}.zarr"
        for shard in shard_numbers(dataset)
    ]


def shard_numbers(dataset):
    """Return the shard numbers of a data set; none if the config lacks it, because then no rule that reads it runs."""
    return range(config["datasets"].get(dataset, {"shards": 0})["shards"])


def of_segmentation(pattern):
    """Return one path per segmented data set."""
    return [
        pattern.format(dataset=dataset)
        for dataset in config["segmentation"]["datasets"]
    ]


def pictures_of(dataset):
    """Return the names of the pictures of a segmented data set. Without masks, there are only overlays."""
    scored = [] if dataset in UNMASKED else ["sheets", "per_class.png"]
    return ["overlays", *scored]


def flag(name, enabled):
    """Return a boolean option, such as --name or --no-name."""
    return f"--{name}" if enabled else f"--no-{name}"


def assignments_of(unit):
    """Return the table of a unit's texts."""
    return ASSIGNMENTS[unit].path
