"""Measure the time that the segmentation stage adds to the features stage.

    python benchmarks/segmentation_stage.py

Images are drawn scenes of the size of a photograph (500 × 375) with masks, in sliding crops of the model's native size; weights
are random. Both stages run as in the workflow, from files to files: the features stage reads, crops, encodes and writes
activations; the segmentation stage reads them and the masks, and writes label maps and confusions. Loading is left out: each
stage runs on all images and on a few, and the difference of the best times counts. The sides take turns.
"""

import argparse
import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import ARCHITECTURES, TINY, make_parser, parse, random_checkpoint, report, timed
from PIL import Image

from nadpipe.circuit.methods import METHODS
from nadpipe.circuit.naming import normalise
from nadpipe.demo.world import Odds, draw_scene
from nadpipe.stages.average_heads import average_heads
from nadpipe.stages.compute_contributions import compute_contributions
from nadpipe.stages.export_readout import export_readout
from nadpipe.stages.extract_features import extract_features
from nadpipe.stages.index_classes import index_classes
from nadpipe.stages.index_images import index_images
from nadpipe.stages.measure_registers import measure_registers
from nadpipe.stages.sample_views import sample_views
from nadpipe.stages.segment_images import segment_images
from nadpipe.store.arrays import create_zarr, open_zarr
from nadpipe.store.kinds.features import FEATURES
from nadpipe.store.kinds.units import SELECTION
from nadpipe.store.pool import read_pool

SIZE = 375, 500  # height and width of the images


def main() -> None:
    """Measure the features stage, and the segmentation stage with each method and with several."""
    parser = make_parser(__doc__)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="RN50x16")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--few", type=int, default=4, help="images of the run that is subtracted")
    parser.add_argument("--classes", type=int, default=59)
    parser.add_argument("--k", type=int, default=20000, help="pairs per class")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--workers", type=int, default=2, help="processes that decode images")
    parser.add_argument("--turns", type=int, default=3)
    given = parse(
        parser, architecture=TINY, images=3, few=1, classes=3, k=40, methods=["nad", "maskclip", "sclip"], workers=0, turns=1
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        rows = measure(given, Path(folder))
    title = (
        f"Features and segmentation stages, {given.architecture}, images of {SIZE[1]} × {SIZE[0]}, {given.classes} classes, "
        f"k {given.k}, float32, random weights"
    )
    report(given, "segmentation_stage", title, rows)


def measure(given: argparse.Namespace, folder: Path) -> list[dict]:
    """Return one row for the features stage and one for each set of methods."""
    _, model = random_checkpoint(given.architecture, folder)
    readout, classes = folder / "readout.zarr", folder / "classes.parquet"
    export_readout(output=readout, **model)
    write_images(given, folder)
    write_selection(given, readout, folder / "selection.zarr")
    names = tuple(f"class {number}" for number in range(given.classes))
    index_classes("table", folder / "all.csv", classes, classes=names)
    options = {"views": "sliding", "batch_size": 16, "workers": given.workers, "device": "cpu", **model}

    def features(name: str) -> None:
        extract_features(folder / f"{name}.parquet", output=folder / f"{name}.zarr", **options)

    features("few")
    compute_contributions(folder / "few.zarr", readout, folder / "contributions.zarr", folder / "means.zarr")
    average_heads((folder / "means.zarr",), folder / "head_means.zarr")
    sample_views(folder / "few.parquet", folder / "few.zarr", folder / "samples.zarr", number=2)
    measure_registers((folder / "samples.zarr",), readout, folder / "registers.parquet")

    def segmentation(name: str, methods: tuple[str, ...]) -> None:
        stores = (folder / f"{name}.zarr", folder / "selection.zarr", folder / "head_means.zarr")
        outputs = (folder / "confusion.parquet", folder / "labels")
        last_token = ARCHITECTURES[given.architecture][3] - 1
        inputs = (folder / f"{name}.parquet", classes, *stores, folder / "registers.parquet", readout)
        segment_images(*inputs, *outputs, methods=methods, sink=last_token)

    sets = {method: (method,) for method in given.methods}
    sets |= {
        "nad and its ablations": ("nad", "heads", "neurons"),
        "all but sclip": tuple(method for method in given.methods if method != "sclip"),
        "all eight methods" if len(given.methods) == 8 else f"all {len(given.methods)} methods": tuple(given.methods),
    }
    times: dict[str, list[float]] = {}
    for _ in range(given.turns):
        for name in ("few", "all"):
            times.setdefault(f"features {name}", []).append(timed(features, name)[0])
        for title, methods in sets.items():
            for name in ("few", "all"):
                times.setdefault(f"{title} {name}", []).append(timed(segmentation, name, methods)[0])
    best = {name: min(turns) for name, turns in times.items()}
    per_image = {
        title: (best[f"{title} all"] - best[f"{title} few"]) / (given.images - given.few) for title in ("features", *sets)
    }
    views = open_zarr(folder / "all.zarr", FEATURES)["activation"].shape[0] / given.images
    return [
        {
            "stage": "features" if title == "features" else "segmentation",
            "methods": "" if title == "features" else title,
            "views per image": views,
            "images/s": round(1 / seconds, 2),
            "time added to encoding": "" if title == "features" else f"{seconds / per_image['features']:.1%}",
        }
        for title, seconds in per_image.items()
    ]


def write_images(given: argparse.Namespace, folder: Path) -> None:
    """Write scenes, masks with all classes, and the manifests of all images and of a few."""
    rows = []
    for number in range(given.images):
        rng = np.random.default_rng(number)
        scene = draw_scene(rng, *SIZE, Odds(count=(0.0, 0.2, 0.3, 0.5)))
        Image.fromarray(scene.image).save(folder / f"{number}.jpg", quality=94)
        Image.fromarray((scene.mask.astype(int) * 5 % given.classes).astype(np.uint8)).save(folder / f"{number}.png")
        rows.append({"path": f"{number}.jpg", "mask": f"{number}.png"})
    for name, count in (("all", given.images), ("few", given.few)):
        pd.DataFrame(rows[:count]).to_csv(folder / f"{name}.csv", index=False)
        index_images("table", folder / f"{name}.csv", folder / f"{name}.parquet", mask_column="mask")


def write_selection(given: argparse.Namespace, readout: Path, path: Path) -> None:
    """Write random pairs for each class."""
    pool, stamp = read_pool(readout)
    generator = torch.Generator().manual_seed(4)
    order = torch.rand(given.classes, pool.heads * pool.neurons, generator=generator).argsort(dim=1)[:, : given.k]
    query = normalise(torch.randn(given.classes, pool.embed, generator=generator))
    sizes = {"text": given.classes, "rank": given.k, "embed": pool.embed}
    names = [f"class {number}" for number in range(given.classes)]
    with create_zarr(path, SELECTION, stamp, sizes, texts=names) as store:
        store.write("head", order // pool.neurons)
        store.write("neuron", order % pool.neurons)
        store.write("cosine", torch.zeros(order.shape))
        store.write("query", query)


if __name__ == "__main__":
    main()
