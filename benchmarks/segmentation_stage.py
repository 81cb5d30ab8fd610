"""Images a second of the segmentation stage on top of the features stage, at the size of RN50x16.

    python benchmarks/segmentation_stage.py

Drawn scenes of the size of a photograph (500 × 375) with masks, sliding crops of the model's native size, random weights. Both
stages run as in the workflow, from files to files: the features stage reads, crops, encodes and writes activations; the
segmentation stage reads them and the mask, and writes label maps and confusions. Loading is not counted: a stage is timed
with all images and with a few, and the difference of the best times counts. The sides take turns.
"""

import argparse
import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import random_checkpoint, report, timed
from PIL import Image

from nadpipe.circuit import naming
from nadpipe.circuit.segmentation import METHODS
from nadpipe.demo.world import Odds, draw_scene
from nadpipe.stages.compute_contributions import compute_contributions
from nadpipe.stages.export_readout import export_readout
from nadpipe.stages.extract_features import extract_features
from nadpipe.stages.index_classes import index_classes
from nadpipe.stages.index_images import index_images
from nadpipe.stages.measure_registers import measure_registers
from nadpipe.stages.segment_images import segment_images
from nadpipe.store.arrays import create_zarr, open_zarr
from nadpipe.store.kinds.features import FEATURES
from nadpipe.store.kinds.units import SELECTION
from nadpipe.store.pool import read_pool

SIZE = 375, 500


def main() -> None:
    """Measure both stages, the second with each method and with all of them."""
    options = argparse.ArgumentParser()
    options.add_argument("--architecture", default="RN50x16")
    options.add_argument("--images", type=int, default=20)
    options.add_argument("--few", type=int, default=4)
    options.add_argument("--classes", type=int, default=59)
    options.add_argument("--k", type=int, default=20000)
    options.add_argument("--methods", nargs="+", default=list(METHODS))
    options.add_argument("--turns", type=int, default=3)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        rows = measure(given, Path(folder))
    about = (
        f"Features and segmentation stages, {given.architecture}, images of {SIZE[1]} × {SIZE[0]}, {given.classes} classes, "
        f"k {given.k}, float32, random weights"
    )
    report("segmentation_stage", about, rows)


def measure(given: argparse.Namespace, folder: Path) -> list[dict]:
    """One row for the features stage and one for each set of methods."""
    random_checkpoint(given.architecture, folder / "model.safetensors")
    model = {"architecture": given.architecture, "pretrained": str(folder / "model.safetensors")}
    pool = folder / "pool.zarr"
    export_readout(output=pool, **model)
    write_images(given, folder)
    select(given, pool, folder / "selection.zarr")
    classes = folder / "classes.parquet"
    index_classes("table", folder / "all.csv", classes, classes=[f"class {at}" for at in range(given.classes)])

    def features(name: str) -> None:
        images = folder / f"{name}.parquet"
        extract_features(
            images, output=folder / f"{name}.zarr", views="sliding", batch_size=16, workers=2, device="cpu", **model
        )

    features("few")
    compute_contributions(folder / "few.zarr", pool, folder / "contributions.zarr")
    measure_registers((folder / "few.zarr",), pool, folder / "registers.parquet", folder / "registers.png", images=2)

    def segmentation(name: str, methods: tuple[str, ...]) -> None:
        stores = (folder / f"{name}.zarr", folder / "selection.zarr", (folder / "contributions.zarr",))
        out = (folder / "registers.parquet", pool, folder / "confusion.parquet", folder / "labels")
        segment_images(folder / f"{name}.parquet", classes, *stores, *out, methods=methods, sink=143)

    sets = {method: (method,) for method in given.methods} | {
        "nad and its ablations": ("nad", "heads", "neurons"),
        "all but sclip": tuple(method for method in given.methods if method != "sclip"),
        "all of these": tuple(given.methods),
    }
    took: dict[str, list[float]] = {}
    for _ in range(given.turns):
        for name in ("few", "all"):
            took.setdefault(f"features {name}", []).append(timed(features, name)[0])
        for title, methods in sets.items():
            for name in ("few", "all"):
                took.setdefault(f"{title} {name}", []).append(timed(segmentation, name, methods)[0])
    best = {name: min(turns) for name, turns in took.items()}

    def each(title: str) -> float:
        return (best[f"{title} all"] - best[f"{title} few"]) / (given.images - given.few)

    views = open_zarr(folder / "all.zarr", FEATURES)["activation"].shape[0] / given.images
    base = each("features")
    rows = [{"stage": "features", "methods": "", "views an image": views, "images/s": round(1 / base, 2), "on top": ""}]
    for title in sets:
        rows.append(
            {
                "stage": "segmentation",
                "methods": title,
                "views an image": views,
                "images/s": round(1 / each(title), 2),
                "on top": f"{each(title) / base:.1%}",
            }
        )
    return rows


def write_images(given: argparse.Namespace, folder: Path) -> None:
    """Scenes, masks with all classes, and the manifests of all and of a few of them."""
    rows = []
    for at in range(given.images):
        rng = np.random.default_rng(at)
        scene = draw_scene(rng, *SIZE, Odds(count=(0, 0.2, 0.3, 0.5)))
        Image.fromarray(scene.image).save(folder / f"{at}.jpg", quality=94)
        Image.fromarray((scene.mask.astype(int) * 5 % given.classes).astype(np.uint8)).save(folder / f"{at}.png")
        rows.append({"path": f"{at}.jpg", "mask": f"{at}.png"})
    for name, count in (("all", given.images), ("few", given.few)):
        pd.DataFrame(rows[:count]).to_csv(folder / f"{name}.csv", index=False)
        index_images("table", folder / f"{name}.csv", folder / f"{name}.parquet", mask_column="mask")


def select(given: argparse.Namespace, store: Path, path: Path) -> None:
    """Random pairs for each class."""
    pool, stamp = read_pool(store)
    generator = torch.Generator().manual_seed(4)
    order = torch.rand(given.classes, pool.heads * pool.neurons, generator=generator).argsort(dim=1)[:, : given.k]
    query = naming.unit(torch.randn(given.classes, len(pool.c_bias), generator=generator))
    sizes = {"text": given.classes, "rank": given.k, "embed": query.shape[1]}
    names = [f"class {at}" for at in range(given.classes)]
    with create_zarr(path, SELECTION, stamp, sizes, texts=names) as made:
        values = {
            "head": order // pool.neurons,
            "neuron": order % pool.neurons,
            "cosine": torch.zeros(order.shape),
            "query": query,
        }
        for name, value in values.items():
            made.write(name, value)


if __name__ == "__main__":
    main()
