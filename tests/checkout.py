"""Copies of the workflow with a small demo, and ways to run and to change them."""

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Self

import yaml
from warm import Server

from nadpipe.config import check

ROOT = Path(__file__).parents[1]
SMALL = {
    "demo": {"discovery_images": 60, "segmentation_images": 8, "monitoring_images_per_year": 30},
    "text": {"cache": None},  # with a cache, last bits depend on which set of texts was embedded first
    "segmentation": {"overlays": 3},
    "registers": {"images": 20},
    "assignments": {"atoms": 4},
    "analyses": {"draws": 2, "control_units": 500, "sheets": 3},
}


@cache
def warm_server() -> Server:
    """Return the server of this process, started at the first call."""
    return Server()


class Checkout:
    """A copy of the workflow with a small demo."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("rules", "nadpipe", "envs", "profiles"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "docs").mkdir()
        for name in ("Snakefile", "config.yaml", "README.md", "docs/published.yaml", "docs/vit_demo.yaml"):
            shutil.copy(ROOT / name, folder / name)
        self.config = check(yaml.safe_load((ROOT / "config.yaml").read_text()))  # with every key
        for section, keys in SMALL.items():
            self.config[section].update(keys)
        self.config["datasets"]["more"] = self.config["datasets"]["segmentation"]
        self.write_config(self.config)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the checkout in a folder."""
        checkout = cls.__new__(cls)
        checkout.folder = folder
        checkout.config = yaml.safe_load((folder / "config.yaml").read_text())
        return checkout

    def copy(self, folder: Path) -> "Checkout":
        """Copy code, results and Snakemake's records to a new folder; times of files stay the same."""
        shutil.copytree(self.folder, folder, symlinks=True, dirs_exist_ok=True)
        return Checkout.open(folder)

    def write_config(self, config: dict) -> None:
        """Replace the config."""
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def _command(self, arguments: tuple[str, ...], warm: bool) -> tuple[list[str], dict[str, str]]:
        """Return Snakemake's command as in the README, and its environment. Jobs run this copy's code."""
        programs = [warm_server().bin] if warm else []
        path = os.pathsep.join([*map(str, programs), str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "OMP_NUM_THREADS")} | {"PATH": path}
        python = str(programs[0] / "python") if warm else sys.executable
        return [python, "-m", "snakemake", "--cores", "2", "--max-threads", "1", *arguments], environment

    def start(self, *arguments: str) -> subprocess.Popen:
        """Start a run whose jobs are plain processes."""
        command, environment = self._command(arguments, warm=False)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, cwd=self.folder, env=environment, **quiet)

    def run(
        self, *arguments: str, check: bool = True, timeout: float | None = None, warm: bool = True, **variables: str
    ) -> subprocess.CompletedProcess:
        """Run to the end with additional environment variables. Snakemake and its jobs are forks of a server if `warm`."""
        command, environment = self._command(arguments, warm)
        environment |= variables
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0 or not check, done.stdout[-3000:] + done.stderr[-6000:]
        return done

    def plan(self, *arguments: str) -> dict[str, int]:
        """Return the rules that would run, with the number of their jobs, as `snakemake -n all` prints them."""
        done = self.run("-n", "all", *arguments)
        text = done.stdout + done.stderr
        table = re.search(r"^Job stats:\n.*\n-.*\n((?:\w+ +\d+\n)+)", text, re.MULTILINE)
        if table is None:
            assert "Nothing to be done" in text
            return {}
        jobs = dict(line.split() for line in table[1].splitlines())
        return {rule: int(count) for rule, count in jobs.items() if rule not in ("all", "total")}
