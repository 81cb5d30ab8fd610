"""Runs that are killed while jobs write their artifacts, and the commands that recover them.

    python tests/kills.py --kills 30

Print one line per kill, then whether the tables equal those of an undisturbed run.
"""

import argparse
import contextlib
import os
import random
import re
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import psutil
from checkout import Checkout

KINDS = ("worker", "snakemake", "both")
PATIENCE = 900.0  # seconds until a job must have begun to write, and until a killed run must have ended


class Victim:
    """A checkout whose runs are killed."""

    def __init__(self, checkout: Checkout, targets: tuple[str, ...]) -> None:
        self.checkout = checkout
        self.targets = targets

    def run_and_kill(self, kind: str, skip: int = 0) -> str | None:
        """Start a run and kill it while a job writes. Return a description of the kill, or None if the run ended first.

        skip: number of jobs that may start to write before.
        """
        earlier = self._partial_files()  # left by earlier kills
        writers = 0
        deadline = time.monotonic() + PATIENCE
        with self.checkout.start(*self.targets, "--rerun-incomplete") as process:
            while True:
                if process.poll() is not None:
                    assert process.returncode == 0
                    return None
                assert time.monotonic() < deadline, f"only {writers} jobs wrote within {PATIENCE:.0f} s"
                new = self._partial_files() - earlier
                earlier |= new
                writers += len(new)
                if new and writers > skip and (killed := self._kill(kind, process.pid, min(new))):
                    process.wait(PATIENCE)
                    return killed
                time.sleep(0.005)

    def _partial_files(self) -> set[Path]:
        """Return the temporary paths that jobs write to."""
        found = set()
        for folder, folders, files in os.walk(self.checkout.folder / "results"):  # passes over what jobs remove meanwhile
            found |= {Path(folder, name) for name in [*folders, *files] if re.fullmatch(r"\..*\.partial", name)}
        return found

    def _kill(self, kind: str, pid: int, partial: Path) -> str | None:
        """Kill the job that writes `partial`, Snakemake, or both with all other jobs. Return None if the job has ended."""
        try:
            worker, snakemake = psutil.Process(int(partial.name.split(".")[-2])), psutil.Process(pid)
            victims = {"worker": [worker], "snakemake": [snakemake], "both": [snakemake, *snakemake.children(recursive=True)]}
            stage = _stage(worker)
            victims[kind][0].kill()
        except psutil.NoSuchProcess:
            return None
        for process in victims[kind][1:]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return f"{kind}: during {stage}"

    def recover(self, finish: bool = False) -> None:
        """Unlock as the README says, and run to the end if `finish`."""
        self.checkout.run("--unlock", *self.targets)
        if finish:
            self.checkout.run(*self.targets, "--rerun-incomplete")

    def leftovers(self) -> list[Path]:
        """Return temporary files, of which a finished run leaves none."""
        return [path for path in (self.checkout.folder / "results").rglob(".*") if path.suffix in (".partial", ".lock")]


def _stage(process: psutil.Process) -> str:
    """Return the stage that a job runs."""
    words = process.cmdline()
    return words[words.index("nadpipe") + 1]


def different_tables(one: Path, other: Path) -> list[str]:
    """Return the final tables of `one` that differ in `other`: CSV by bytes, Parquet by values."""
    names = [path.relative_to(one) for pattern in ("*.csv", "*.parquet", "s*/*.parquet") for path in sorted(one.glob(pattern))]
    assert names
    return [str(name) for name in names if not _equal(one / name, other / name)]


def _equal(one: Path, other: Path) -> bool:
    if one.suffix == ".csv":
        return one.read_bytes() == other.read_bytes()
    return pd.read_parquet(one).equals(pd.read_parquet(other))


def main() -> None:
    """Kill runs of the small demo repeatedly."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    skips = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        undisturbed, victim = Checkout(Path(folder, "undisturbed")), Victim(Checkout(Path(folder, "killed")), ("all",))
        undisturbed.run("all")
        kills = rounds = 0
        while kills < options.kills:
            killed = victim.run_and_kill(KINDS[kills % len(KINDS)], skips.randrange(5))
            victim.recover()
            if killed is None:
                rounds += 1
                assert different_tables(undisturbed.folder / "results", victim.checkout.folder / "results") == []
                victim.checkout.run("--delete-all-output", "all")
                continue
            kills += 1
            print(f"{kills}. {killed}", flush=True)
        victim.recover(finish=True)
        different = different_tables(undisturbed.folder / "results", victim.checkout.folder / "results")
        left = victim.leftovers()
        print(f"\n{kills} kills in {rounds + 1} runs. Tables that differ: {different or 'none'}. Left over: {left or 'none'}.")
        sys.exit(bool(different or left))


if __name__ == "__main__":
    main()
