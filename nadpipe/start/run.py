"""Run the workflow in the current folder, with any target and option of Snakemake."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nadpipe.config_file import check_config_file
from nadpipe.errors import NadpipeError

_PACKAGE = Path(__file__).parents[1]
_CONFIG = "config.yaml"
_SNAKEFILE_OPTIONS = ("-s", "--snakefile")
# Options that say how many jobs run at a time, where they run, or that none runs.
_CHOSEN = (
    "-c",
    "--cores",
    "-j",
    "--jobs",
    "--profile",
    "--workflow-profile",
    "-e",
    "--executor",
    "-n",
    "--dry-run",
    "--dryrun",
)
_CONFIGS = ("--configfile", "--configfiles", "-d", "--directory", "--profile", "--workflow-profile")
_USAGE = f"""usage: nadpipe run [TARGET ...] [OPTION ...]

Run the workflow in the current folder: its {_CONFIG}, laid over the defaults, decides about model, images and settings, and the
results go to results/. Without a {_CONFIG}, the embedded demo runs; `nadpipe init` writes one.

  TARGET  file below results/ to make, such as results/pairs.parquet; without one, all results
  OPTION  any option of Snakemake. Often used:
            --cores 8           jobs and threads at a time; by default all cores of this machine
            -n                  list what would run, and why
            --configfile FILE   another config
            --directory FOLDER  another folder
            --profile FOLDER    a profile, such as {{profiles}}/slurm

`snakemake --help` explains all of them."""


def run(arguments: Sequence[str]) -> int:
    """Run Snakemake on this package's workflow and return its exit code.

    arguments: targets and options of Snakemake. Raises NadpipeError if they name another Snakefile or a doubtful config file
    (`check_config_file`), which Snakemake would read before the workflow can check it.
    """
    folder = workflow_folder()
    if arguments[:1] in (["-h"], ["--help"]):
        print(_USAGE.format(profiles=folder / "profiles"))
        return 0
    if _uses(arguments, _SNAKEFILE_OPTIONS):
        raise NadpipeError("--snakefile: nadpipe run has its own Snakefile; use snakemake for another one")
    if not _uses(arguments, _CONFIGS) and not Path(_CONFIG).exists():
        print(f"no {_CONFIG} in this folder: running the embedded demo. `nadpipe init` writes a config", file=sys.stderr)
    # Jobs call `python`: it must be this one, also if its environment is not activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    cores = [] if _uses(arguments, _CHOSEN) else ["--cores", "all"]
    from snakemake.cli import get_argument_parser, main  # takes a second to import

    try:
        for path in get_argument_parser().parse_args(list(arguments)).configfile or ():
            check_config_file(Path(path))
        main(["--snakefile", str(folder / "Snakefile"), *arguments, *cores])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def workflow_folder() -> Path:
    """Return the folder of the Snakefile: the root of a clone, or a folder of the installed package."""
    root = _PACKAGE.parent
    return root if (root / "Snakefile").is_file() and (root / "rules").is_dir() else _PACKAGE / "workflow"


def _uses(arguments: Sequence[str], options: Sequence[str]) -> bool:
    """Return True if one of the options occurs, in any of the forms `--name value`, `--name=value`, `-nvalue` and `-xn`."""
    long = tuple(option for option in options if option.startswith("--"))
    short = tuple(option for option in options if not option.startswith("--"))
    return any(
        argument.partition("=")[0] in long or (argument.startswith(short) and not argument.startswith("--"))
        for argument in arguments
    )
