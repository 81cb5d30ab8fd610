"""Wall time of the features of one data set over 1 and 2 workers, and whether both make the same.

    python benchmarks/sharding.py

A worker is what a cluster's node would be: a process of its own with one core, so that one shard leaves a core idle and two do
not. Both sides run as the workflow runs them, start of the process and loading of the model included; they take turns.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from common import ROOT, random_checkpoint, report, timed
from PIL import Image

from nadpipe.demo.world import Odds, draw_scene
from nadpipe.stages.index_images import index_images
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.features import FEATURES

ONE_CORE = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}


def main() -> None:
    """Encode the images as one shard and as two."""
    options = argparse.ArgumentParser()
    options.add_argument("--architecture", default="RN50")
    options.add_argument("--images", type=int, default=192)
    options.add_argument("--turns", type=int, default=3)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        random_checkpoint(given.architecture, folder / "model.safetensors")
        write_images(folder, given.images)
        took: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(given.turns):
            for shards, times in took.items():
                times.append(timed(encode, folder, given.architecture, shards)[0])
        one, two = (
            np.concatenate([open_zarr(folder / f"{shards}-{at}.zarr", FEATURES)["embedding"][:] for at in range(shards)])
            for shards in took
        )
    best = {shards: min(times) for shards, times in took.items()}
    rows = [
        {
            "shards": shards,
            "workers": shards,
            "s": round(seconds, 1),
            "images/s": round(given.images / seconds, 1),
            "times as fast": round(best[1] / seconds, 2),
            "largest difference of embeddings": f"{np.abs(one - two).max() / np.abs(one).max():.0e}" if shards == 2 else "",
        }
        for shards, seconds in best.items()
    ]
    report("sharding", f"Features of {given.images} images over 1 and 2 workers of one core, {given.architecture}", rows)


def encode(folder: Path, architecture: str, shards: int) -> None:
    """All shards side by side, each a worker."""
    start = [sys.executable, "-m", "nadpipe", "extract-features", "--images", str(folder / "images.parquet")]
    start += ["--architecture", architecture, "--pretrained", str(folder / "model.safetensors"), "--shards", str(shards)]
    jobs = [
        subprocess.Popen(
            [*start, "--shard", str(shard), "--output", str(folder / f"{shards}-{shard}.zarr")],
            cwd=ROOT,
            env=os.environ | ONE_CORE,
            stderr=subprocess.DEVNULL,
        )
        for shard in range(shards)
    ]
    codes = [job.wait() for job in jobs]
    if any(codes):
        sys.exit("extract-features failed")


def write_images(folder: Path, count: int) -> None:
    """Drawn scenes and their manifest."""
    for at in range(count):
        scene = draw_scene(np.random.default_rng(at), 300, 400, Odds())
        Image.fromarray(scene.image).save(folder / f"{at}.jpg")
    pd.DataFrame({"path": [f"{at}.jpg" for at in range(count)]}).to_csv(folder / "t.csv", index=False)
    index_images("table", folder / "t.csv", folder / "images.parquet")


if __name__ == "__main__":
    main()
