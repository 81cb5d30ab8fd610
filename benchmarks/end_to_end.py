"""The whole workflow on photographs with a random model of a published size: time and peak memory of each rule.

    python benchmarks/end_to_end.py --architecture RN50x16 --photos <folder> --segmentation <CSV with path and mask columns>

Everything is written below --work. The run fails when a view's pairs do not sum to its embedding within 1e-5; the table
shows the largest residual. The dictionary is the 30,000 most frequent English words.
"""

import argparse
import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml
from common import PUBLISHED, ROOT, random_checkpoint, report

from nadpipe.artifacts import open_zarr
from nadpipe.datasets import IMAGE_SUFFIXES


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
    with (given.work / "snakemake.log").open("w") as log:
        done = subprocess.run(command, cwd=given.work, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.exit(f"the run failed, see {given.work}/snakemake.log and {given.work}/logs")
    rows = table(given.work / "results")
    stores = (given.work / "results/artifacts").glob("*/contributions/*.zarr")
    residual = max(float(open_zarr(path, "contributions")["residual"][:].max()) for path in stores)
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
    streets = pd.read_csv(given.segmentation)
    for column in ("path", "mask"):
        streets[column] = [str((given.segmentation.parent / path).resolve()) for path in streets[column]]
    streets.to_csv(given.work / "streets.csv", index=False)
    common = {"folder": None, "path_column": "path", "label_column": None, "shards": 1}
    made = {
        "model": {"architecture": given.architecture, "pretrained": "model.safetensors"},
        "datasets": {
            "discovery": {**common, "table": "photos.csv", "mask_column": None, "group_column": None, "shards": 2},
            "segmentation": {**common, "table": "streets.csv", "mask_column": "mask", "group_column": None},
            "monitoring": {**common, "table": "photos.csv", "mask_column": None, "group_column": "group"},
        },
        "features": {"batch_size": 16, "precision": given.precision, "dtype": given.dtype},
        "contributions": {"dtype": given.dtype},
        "text": {"dictionary": given.dictionary, "templates": ["a photo of a {}."]},
        "assignments": {"atoms": 64, "sparse_share": given.sparse_share},
        "segmentation": {
            "classes": [f"class {at}" for at in range(given.classes)],
            "k": 20000,
            "methods": given.methods,
            "ignore": given.ignore,
        },
        "shift": {"concepts": ["dog", "snow", "car"], "k": 300},
    }
    (given.work / "my.yaml").write_text(yaml.safe_dump(made, sort_keys=False))


def table(results: Path) -> list[dict]:
    """One line a rule: jobs, time, and the largest peak memory of its jobs as Snakemake measured it, what
    processes share counted once (PSS)."""
    jobs = []
    for path in sorted((results / "benchmarks").rglob("*.tsv")):
        measured = pd.read_csv(path, sep="\t").iloc[0]
        rule = path.relative_to(results / "benchmarks").parts[0].removesuffix(".tsv")
        jobs.append({"rule": re.sub(r"\W", " ", rule), "s": float(measured["s"]), "MiB": float(measured["max_pss"])})
    grouped = pd.DataFrame(jobs).groupby("rule", sort=False)
    whole = grouped.agg(jobs=("s", "size"), s=("s", "sum"), mib=("MiB", "max")).sort_values("s", ascending=False)
    return [
        {"rule": rule, "jobs": int(row.jobs), "s, all jobs": round(row.s, 1), "peak memory of a job, MiB": round(row.mib)}
        for rule, row in whole.iterrows()
    ]


if __name__ == "__main__":
    main()
