"""Runs that are killed at random moments, and the commands that recover them.

    python tests/kills.py --kills 30

Prints one line a kill, then whether the tables of the run are those of one that nobody disturbed.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import psutil
from conftest import Checkout

KINDS = ("worker", "snakemake", "both")
SOONEST, LATEST = 3.0, 12.0  # seconds after the start; the first jobs begin after three


class Victim:
    """A checkout whose runs are killed."""

    def __init__(self, made: Checkout, targets: tuple[str, ...], seed: int = 0):
        self.made = made
        self.targets = targets
        self.random = random.Random(seed)

    def run_and_kill(self, kind: str) -> str | None:
        """Start as recovery does and kill after a while; returns what was killed, None if the run ended well before."""
        with self.made.start(*self.targets, "--rerun-incomplete") as process:
            try:
                if process.wait(self.random.uniform(SOONEST, LATEST)) == 0:
                    return None
            except subprocess.TimeoutExpired:
                pass
            killed = self._kill(kind, process.pid)
            process.wait(120)
        return killed

    def _kill(self, kind: str, pid: int) -> str:
        try:
            snakemake = psutil.Process(pid)
            below = snakemake.children(recursive=True)
        except psutil.NoSuchProcess:
            return f"{kind}: too late"
        jobs = [process for process in below if "nadpipe" in _command(process)]
        chosen = {"worker": jobs[-1:], "snakemake": [snakemake], "both": [snakemake, *below]}[kind]
        names = {part.partition(" --")[0] for part in map(_command, jobs)}
        for process in chosen:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        return f"{kind}: during {', '.join(sorted(names)) or 'planning'}"

    def recover(self, finish: bool = False) -> None:
        """What the README says: unlock, and with `finish` run to the end."""
        self.made.run("--unlock", *self.targets)
        if finish:
            self.made.run(*self.targets, "--rerun-incomplete")

    def leftovers(self) -> list[Path]:
        """Files that no finished run leaves."""
        return [path for path in (self.made.folder / "results").rglob(".*") if path.suffix in (".partial", ".lock")]


def _command(process: psutil.Process) -> str:
    try:
        words = process.cmdline()
    except psutil.NoSuchProcess:
        return ""
    return " ".join(words[words.index("nadpipe") :]) if "nadpipe" in words else ""


def same_tables(one: Path, other: Path) -> list[str]:
    """Final tables of two results folders that are not the same; CSV by byte, Parquet by value."""
    names = [path.relative_to(one) for pattern in ("*.csv", "*.parquet", "s*/*.parquet") for path in sorted(one.glob(pattern))]
    assert names
    return [str(name) for name in names if not _same(one / name, other / name)]


def _same(one: Path, other: Path) -> bool:
    if one.suffix == ".csv":
        return one.read_bytes() == other.read_bytes()
    return pd.read_parquet(one).equals(pd.read_parquet(other))


def main() -> None:
    """Kill a run of the small demo again and again."""
    options = argparse.ArgumentParser()
    options.add_argument("--kills", type=int, default=30)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        calm, victim = Checkout(Path(folder, "calm")), Victim(Checkout(Path(folder, "killed")), ("all",), given.seed)
        calm.run("all")
        done = rounds = 0
        while done < given.kills:
            killed = victim.run_and_kill(KINDS[done % len(KINDS)])
            victim.recover()
            if killed is None:
                rounds += 1
                assert same_tables(calm.folder / "results", victim.made.folder / "results") == []
                victim.made.run("--delete-all-output", "all")
                continue
            done += 1
            print(f"{done}. {killed}", flush=True)
        victim.recover(finish=True)
        time.sleep(5)
        differ = same_tables(calm.folder / "results", victim.made.folder / "results")
        left = victim.leftovers()
        print(f"\n{done} kills in {rounds + 1} runs. Tables that differ: {differ or 'none'}. Left over: {left or 'none'}.")
        sys.exit(bool(differ or left))


if __name__ == "__main__":
    main()
