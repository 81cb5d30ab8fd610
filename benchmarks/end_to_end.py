"""Run the whole workflow with a random model of a published size: time and peak memory of each rule.

    python benchmarks/end_to_end.py --architecture RN50x16 --photos <folder> --segmentation <folder with images/ and masks/>

All files are written below --work. The run fails if the pairs of a view do not sum to its embedding within 1e-5; the title of
the table has the largest residual.
"""

import argparse
import contextlib
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import yaml
from common import ARCHITECTURES, ROOT, TINY, make_parser, parse, random_checkpoint, report, write_photos
from PIL import Image

from nadpipe.circuit.methods import METHODS
from nadpipe.demo.world import Odds, draw_scene
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.features import CONTRIBUTIONS


def main() -> None:
    """Make the model and the config, run all targets, and tabulate the rules."""
    parser = make_parser(__doc__)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="RN50")
    parser.add_argument(
        "--photos", type=Path, help="folder of photographs, repeated if there are too few; by default drawn scenes"
    )
    parser.add_argument("--segmentation", type=Path, help="folder with images/ and masks/; by default five drawn scenes")
    parser.add_argument("--classes", type=int, default=19, help="number of mask values")
    parser.add_argument("--ignore", type=int, default=255, help="mask value to ignore")
    parser.add_argument("--discovery", type=int, default=64, help="number of photographs")
    parser.add_argument("--dictionary", default="wordfreq:30000")
    parser.add_argument("--sparse-share", type=float, default=0.1, help="share of the units that get a sparse code")
    parser.add_argument("--k", type=int, default=20000, help="pairs per class")
    parser.add_argument("--precision", default="float32", help="precision of the convolutions")
    parser.add_argument("--dtype", default="float32", help="type of the stored arrays")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=["nad", "nad_centred", "maskclip", "sclip", "attention"]
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that decode images")
    parser.add_argument("--targets", nargs="+", default=["all"], help="targets of the workflow")
    parser.add_argument("--work", type=Path, default=Path("end-to-end"), help="folder to write to; it is emptied first")
    artifacts = "results/artifacts"
    targets = [
        f"{artifacts}/directions/pair.zarr",
        *(f"{artifacts}/segmentation/{name}.parquet" for name in ("images", "classes")),
    ]
    given = parse(
        parser,
        architecture=TINY,
        discovery=8,
        dictionary="wordfreq:50",
        k=40,
        workers=0,
        methods=["nad", "maskclip"],
        targets=targets,
    )
    shutil.rmtree(given.work, ignore_errors=True)
    given.work.mkdir(parents=True)
    _, model = random_checkpoint(given.architecture, given.work.resolve())
    write_config(given, model)
    peaks = run(given)
    stores = (given.work / "results/artifacts").glob("*/contributions/*.zarr")
    residual = max(float(open_zarr(path, CONTRIBUTIONS).tensor("residual").max()) for path in stores)
    title = (
        f"Whole workflow, random {given.architecture}, {given.precision}, stored as {given.dtype}, {given.discovery} discovery "
        f"images, {given.dictionary}, sparse codes of the top {given.sparse_share:.0%}; largest residual {residual:.1e}"
    )
    report(given, f"end_to_end_{given.architecture}", title, tabulate(given.work / "results", peaks))


def run(given: argparse.Namespace) -> dict[str, float]:
    """Run the workflow; return the peak memory of each nadpipe command."""
    command = [sys.executable, "-m", "snakemake", "-s", ROOT / "Snakefile", "--cores", "2", *given.targets]
    peaks: dict[str, float] = {}
    stop = threading.Event()
    with (given.work / "snakemake.log").open("w") as log:
        process = subprocess.Popen([*command, "--configfile", "my.yaml"], cwd=given.work, stdout=log, stderr=subprocess.STDOUT)
        watcher = threading.Thread(target=watch, args=(process.pid, peaks, stop))
        watcher.start()
        status = process.wait()
        stop.set()
        watcher.join()
    if status:
        sys.exit(f"the run failed; see {given.work}/snakemake.log and {given.work}/logs")
    return peaks


def write_config(given: argparse.Namespace, model: dict[str, str]) -> None:
    """Write my.yaml and the tables that it names."""
    work = given.work.resolve()
    photos = write_photos(given.photos, given.discovery, work / "photos")
    groups = [2024 + number % 2 for number in range(len(photos))]
    pd.DataFrame({"path": photos, "group": groups}).to_csv(work / "photos.csv", index=False)
    scenes = draw_scenes(work / "scenes", given.classes) if given.segmentation is None else given.segmentation.resolve()
    images = sorted((scenes / "images").iterdir())
    masks = [scenes / "masks" / path.name for path in images]
    pd.DataFrame({"path": images, "mask": masks}).to_csv(work / "scenes.csv", index=False)
    table: dict[str, Any] = {"layout": "table"}
    classes = {"classes": [f"class {number}" for number in range(given.classes)], "ignore": given.ignore}
    config = {
        "model": model,
        "datasets": {
            "discovery": {**table, "path": "photos.csv", "shards": 2},
            "segmentation": {**table, "path": "scenes.csv", "mask_column": "mask", **classes},
            "monitoring": {**table, "path": "photos.csv", "group_column": "group"},
        },
        "features": {"batch_size": 16, "workers": given.workers, "precision": given.precision, "dtype": given.dtype},
        "contributions": {"dtype": given.dtype},
        "text": {"dictionary": given.dictionary, "templates": ["a photo of a {}."]},
        "assignments": {"atoms": 64, "sparse_share": given.sparse_share},
        "segmentation": {"datasets": ["segmentation"], "k": [given.k], "methods": given.methods},
        "shift": {"concepts": ["dog", "snow", "car"], "k": 300},
    }
    (work / "my.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def draw_scenes(folder: Path, classes: int, count: int = 5) -> Path:
    """Write drawn scenes and their masks; return the folder."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        scene = draw_scene(np.random.default_rng(number), 240, 320, Odds())
        Image.fromarray(scene.image).save(folder / f"images/{number}.png")
        Image.fromarray((scene.mask % classes).astype(np.uint8)).save(folder / f"masks/{number}.png")
    return folder


def watch(root: int, peaks: dict[str, float], stop: threading.Event) -> None:
    """Record the peak memory (PSS, which counts shared pages once) of each nadpipe command with its workers, in MiB."""
    while not stop.wait(0.5):
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(root).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    command = nadpipe_command(process)
                    if command is None or nadpipe_command(process.parent()) is not None:
                        continue  # another program, or a worker of a command
                    family = [process, *process.children(recursive=True)]
                    memory = sum(member.memory_full_info().pss for member in family) / 2**20
                    peaks[command] = max(peaks.get(command, 0), memory)


def nadpipe_command(process: psutil.Process) -> str | None:
    """Return the name of the nadpipe command that a process runs."""
    line = process.cmdline()
    return next((line[end] for end in range(2, len(line)) if line[end - 2 : end] == ["-m", "nadpipe"]), None)


def tabulate(results: Path, peaks: dict[str, float]) -> list[dict]:
    """Return one row per rule: jobs, time, and the largest peak memory of its jobs. Memory of very short jobs is unknown."""
    jobs = []
    for path in sorted((results / "benchmarks").rglob("*.tsv")):
        rule = path.relative_to(results / "benchmarks").parts[0].removesuffix(".tsv")
        jobs.append({"rule": rule, "s": float(pd.read_csv(path, sep="\t").iloc[0]["s"])})
    rules = pd.DataFrame(jobs).groupby("rule")["s"].agg(["size", "sum"]).sort_values("sum", ascending=False)
    rows = []
    for rule, row in rules.iterrows():
        peak = peaks.get(str(rule).replace("_", "-"))
        memory = "" if peak is None else round(peak)
        rows.append(
            {"rule": rule, "jobs": int(row["size"]), "s, all jobs": round(row["sum"], 1), "peak memory per job, MiB": memory}
        )
    return rows


if __name__ == "__main__":
    main()
