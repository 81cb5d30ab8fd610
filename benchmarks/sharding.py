"""Measure the wall time of a data set's features with 1 and 2 workers, and compare their results.

    python benchmarks/sharding.py

A worker is a process with one core, like a node of a cluster, so one shard leaves a core idle and two do not. Times include the
start of the process and loading of the model, as in the workflow. The sides take turns.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from common import ARCHITECTURES, ROOT, TINY, make_parser, parse, random_checkpoint, report, timed
from PIL import Image

from nadpipe.demo.world import Odds, draw_scene
from nadpipe.stages.index_images import index_images
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.features import FEATURES

ONE_CORE = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}


def main() -> None:
    """Encode the images as one shard and as two."""
    parser = make_parser(__doc__)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="RN50")
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--turns", type=int, default=3)
    given = parse(parser, architecture=TINY, images=5, turns=1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _, model = random_checkpoint(given.architecture, folder)
        write_images(folder, given.images)
        times: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(given.turns):
            for shards, turns in times.items():
                turns.append(timed(encode, folder, model, shards)[0])
        one, two = (
            np.concatenate([open_zarr(folder / f"{shards}-{shard}.zarr", FEATURES)["embedding"][:] for shard in range(shards)])
            for shards in times
        )
    best = {shards: min(turns) for shards, turns in times.items()}
    rows = [
        {
            "shards": shards,
            "workers": shards,
            "s": round(seconds, 1),
            "images/s": round(given.images / seconds, 1),
            "speed-up": round(best[1] / seconds, 2),
            "largest difference between embeddings": f"{np.abs(one - two).max() / np.abs(one).max():.0e}"
            if shards == 2
            else "",
        }
        for shards, seconds in best.items()
    ]
    title = f"Features of {given.images} images over 1 and 2 workers of one core, {given.architecture}"
    report(given, "sharding", title, rows)


def encode(folder: Path, model: dict[str, str], shards: int) -> None:
    """Run a worker for each shard, side by side."""
    command = [sys.executable, "-m", "nadpipe", "extract-features", "--images", str(folder / "images.parquet")]
    command += ["--architecture", model["architecture"], "--pretrained", model["pretrained"], "--shards", str(shards)]
    workers = [
        subprocess.Popen(
            [*command, "--shard", str(shard), "--output", str(folder / f"{shards}-{shard}.zarr")],
            cwd=ROOT,
            env=os.environ | ONE_CORE,
            stderr=subprocess.DEVNULL,
        )
        for shard in range(shards)
    ]
    statuses = [worker.wait() for worker in workers]
    if any(statuses):
        sys.exit("extract-features failed")


def write_images(folder: Path, count: int) -> None:
    """Write drawn scenes and their manifest."""
    for number in range(count):
        scene = draw_scene(np.random.default_rng(number), 300, 400, Odds())
        Image.fromarray(scene.image).save(folder / f"{number}.jpg")
    pd.DataFrame({"path": [f"{number}.jpg" for number in range(count)]}).to_csv(folder / "t.csv", index=False)
    index_images("table", folder / "t.csv", folder / "images.parquet")


if __name__ == "__main__":
    main()
