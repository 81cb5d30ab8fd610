"""The whole workflow on photographs with a random model of a published size: time and peak memory of each rule.

    python benchmarks/end_to_end.py --architecture RN50x16 --photos <folder> --segmentation <folder with images/ and masks/>

Everything is written below --work. The run fails when a view's pairs do not sum to its embedding within 1e-5; the table
shows the largest residual. The dictionary is the 30,000 most frequent English words.
"""

import argparse
import contextlib
import itertools
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import psutil
import yaml
from common import PUBLISHED, ROOT, random_checkpoint, report

from nadpipe.data.layouts import IMAGE_SUFFIXES
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.features import CONTRIBUTIONS


def main() -> None:
    """Make the model and the config, run every target, and tabulate what the rules took."""
    options = argparse.ArgumentParser()
    options.add_argument("--architecture", choices=PUBLISHED, default="RN50")
    options.add_argument("--photos", type=Path, required=True)
    options.add_argument("--segmentation", type=Path, required=True)
    options.add_argument("--classes", type=int, default=19, help="values of the masks")
    options.add_argument("--ignore", type=int, default=255, help="value of the masks that does not count")
    options.add_argument("--discovery", type=int, default=64, help="images; photographs are used again when there are fewer")
    options.add_argument("--dictionary", default="wordfreq:30000")
    options.add_argument("--sparse-share", type=float, default=0.1)
    options.add_argument("--precision", default="float32")
    options.add_argument("--dtype", default="float32")
    options.add_argument("--methods", nargs="+", default=["nad", "nad_centred", "maskclip", "sclip", "attention"])
    options.add_argument("--work", type=Path, default=Path("end-to-end"))
    given = options.parse_args()
    shutil.rmtree(given.work, ignore_errors=True)
    given.work.mkdir(parents=True)
    random_checkpoint(given.architecture, given.work / "model.safetensors")
    config(given)
    command = [sys.executable, "-m", "snakemake", "-s", ROOT / "Snakefile", "--cores", "2", "all", "--configfile", "my.yaml"]
    peaks: dict[str, float] = {}
    stop = threading.Event()
    with (given.work / "snakemake.log").open("w") as log:
        run = subprocess.Popen(command, cwd=given.work, stdout=log, stderr=subprocess.STDOUT)
        watcher = threading.Thread(target=watch, args=(run.pid, peaks, stop))
        watcher.start()
        failed = run.wait()
        stop.set()
        watcher.join()
    if failed:
        sys.exit(f"the run failed, see {given.work}/snakemake.log and {given.work}/logs")
    rows = table(given.work / "results", peaks)
    stores = (given.work / "results/artifacts").glob("*/contributions/*.zarr")
    residual = max(float(open_zarr(path, CONTRIBUTIONS)["residual"][:].max()) for path in stores)
    about = (
        f"Whole workflow, random {given.architecture}, {given.precision}, stored as {given.dtype}, {given.discovery} discovery "
        f"images, {given.dictionary}, sparse codes of the top {given.sparse_share:.0%}; largest residual {residual:.1e}"
    )
    report(f"end_to_end_{given.architecture}", about, rows)


def config(given: argparse.Namespace) -> None:
    """my.yaml and the tables it names."""
    photos = [str(path.resolve()) for path in sorted(given.photos.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    photos = list(itertools.islice(itertools.cycle(photos), given.discovery))
    groups = [2024 + at % 2 for at in range(len(photos))]
    pd.DataFrame({"path": photos, "group": groups}).to_csv(given.work / "photos.csv", index=False)
    seen = sorted((given.segmentation / "images").resolve().iterdir())
    masks = [str(given.segmentation.resolve() / "masks" / path.name) for path in seen]
    pd.DataFrame({"path": map(str, seen), "mask": masks}).to_csv(given.work / "scenes.csv", index=False)
    common = {"layout": "table", "label_column": None, "shards": 1}
    classes = {"classes": [f"class {at}" for at in range(given.classes)], "ignore": given.ignore}
    made = {
        "model": {"architecture": given.architecture, "pretrained": "model.safetensors"},
        "datasets": {
            "discovery": {**common, "path": "photos.csv", "shards": 2},
            "segmentation": {**common, "path": "scenes.csv", "mask_column": "mask", **classes},
            "monitoring": {**common, "path": "photos.csv", "group_column": "group"},
        },
        "features": {"batch_size": 16, "precision": given.precision, "dtype": given.dtype},
        "contributions": {"dtype": given.dtype},
        "text": {"dictionary": given.dictionary, "templates": ["a photo of a {}."]},
        "assignments": {"atoms": 64, "sparse_share": given.sparse_share},
        "segmentation": {
            "k": [20000],
            "methods": given.methods,
        },
        "shift": {"concepts": ["dog", "snow", "car"], "k": 300},
    }
    (given.work / "my.yaml").write_text(yaml.safe_dump(made, sort_keys=False))


def watch(root: int, peaks: dict[str, float], stop: threading.Event) -> None:
    """The largest memory of each nadpipe command below a process, with its workers, what they share counted once (PSS)."""
    while not stop.wait(0.5):
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(root).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    line = process.cmdline()
                    if line[1:3] != ["-m", "nadpipe"] or process.parent().cmdline()[1:3] == line[1:3]:
                        continue  # the shell around a command, or one of its workers
                    family = [process, *process.children(recursive=True)]
                    held = sum(one.memory_full_info().pss for one in family) / 2**20
                    peaks[line[3]] = max(peaks.get(line[3], 0), held)


def table(results: Path, peaks: dict[str, float]) -> list[dict]:
    """One line a rule: jobs, time, and the largest peak memory of its jobs."""
    jobs = []
    for path in sorted((results / "benchmarks").rglob("*.tsv")):
        rule = path.relative_to(results / "benchmarks").parts[0].removesuffix(".tsv")
        jobs.append({"rule": rule, "s": float(pd.read_csv(path, sep="\t").iloc[0]["s"])})
    whole = pd.DataFrame(jobs).groupby("rule")["s"].agg(["size", "sum"]).sort_values("sum", ascending=False)
    return [
        {
            "rule": rule,
            "jobs": int(row["size"]),
            "s, all jobs": round(row["sum"], 1),
            "peak memory of a job, MiB": round(peaks[rule.replace("_", "-")]),
        }
        for rule, row in whole.iterrows()
    ]


if __name__ == "__main__":
    main()
