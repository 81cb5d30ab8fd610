"""Measure peak memory and time of every stage as the number of images grows.

    python benchmarks/memory.py --photos <folder>

Memory should stay the same and time should grow in proportion. Activations are random and have RN50x16's size (144 tokens ×
3072 neurons), so that no network has to run; the features stage itself runs a small random CLIP-ResNet on photographs.
Segmentation takes a tenth of the images. 8,000 images need 20 GB of disk.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import torch
from common import (
    ARCHITECTURES,
    STAMP,
    TINY,
    make_parser,
    nadpipe,
    parse,
    random_pool,
    report,
    save_pool,
    write_photos,
    write_random_features,
)
from PIL import Image
from safetensors.torch import save_file

from nadpipe.circuit.attention import AttentionPool
from nadpipe.circuit.naming import normalise
from nadpipe.data.class_tables import write_classes
from nadpipe.data.classes import make_classes
from nadpipe.data.manifest import content_fingerprint
from nadpipe.data.views import examine_mask
from nadpipe.store.arrays import create_zarr
from nadpipe.store.kinds.images import IMAGES
from nadpipe.store.kinds.texts import TEXT
from nadpipe.store.manifest import read_images
from nadpipe.store.tables import write_parquet

SMALL = {  # the model of the features stage
    "embed_dim": 64,
    "vision_cfg": {"image_size": 96, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}

Step = tuple[str, str, dict[str, Any]]  # title, command and options


def main() -> None:
    """Run all stages at each number of images and tabulate them side by side."""
    parser = make_parser(__doc__)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="RN50x16", help="size of the activations")
    parser.add_argument(
        "--photos", type=Path, help="folder of photographs, repeated if there are too few; by default drawn scenes"
    )
    parser.add_argument("--images", type=int, nargs="+", default=[500, 2000, 8000])
    parser.add_argument("--texts", type=int, default=30_000, help="texts of the dictionary")
    parser.add_argument("--classes", type=int, default=59)
    parser.add_argument("--pairs", type=int, nargs=2, default=[300, 20000], help="pairs per concept and per class")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode images")
    parser.add_argument("--work", type=Path, default=Path(), help="folder in which a temporary folder is made")
    given = parse(parser, architecture=TINY, images=[20], texts=50, classes=3, pairs=[10, 40], workers=0)
    measured: dict[str, dict[int, tuple[float, float]]] = {}
    for count in given.images:
        with tempfile.TemporaryDirectory(dir=given.work) as folder:
            for title, numbers in run(count, given, Path(folder).resolve()).items():
                measured.setdefault(title, {})[count] = numbers
                print(count, title, numbers, flush=True)
    rows = [
        {
            "stage": title,
            **{f"MiB at {count:,}": round(numbers[count][1]) for count in given.images},
            **{f"s at {count:,}": round(numbers[count][0], 1) for count in given.images},
        }
        for title, numbers in measured.items()
    ]
    title = (
        "Peak memory (MiB, largest process) and wall time (s) of each command, start of Python included, activations of "
        f"{given.architecture}'s size"
    )
    report(given, "memory", title, rows)


def run(count: int, given: argparse.Namespace, work: Path) -> dict[str, tuple[float, float]]:
    """Return time and peak memory of each stage with `count` images."""
    pool = random_pool(given.architecture)
    save_pool(pool, work / "readout.zarr")
    prepare(pool, count, given, work)
    write_random_features(pool, count, "float32", work / "features.zarr")
    measured = {title: nadpipe(command, **options) for title, command, options in steps_on_all_images(given, work)}
    shutil.rmtree(work / "features.zarr")
    masks = content_fingerprint(read_images(work / "masks.parquet"))
    write_random_features(pool, max(1, count // 10), "float32", work / "features.zarr", images=masks)
    measured |= {title: nadpipe(command, **options) for title, command, options in steps_on_a_tenth(given, work)}
    return measured


def steps_on_all_images(given: argparse.Namespace, work: Path) -> list[Step]:
    """Return the stages that run on all images, in order."""
    images, readout = {"images": work / "images.parquet"}, {"readout": work / "readout.zarr"}
    contributions = {"contributions": work / "contributions.zarr"}
    pair_directions, dictionary = {"directions": work / "pair.zarr"}, {"dictionary": work / "dictionary.zarr"}
    assignments, correlated = work / "assignments.parquet", work / "correlated.parquet"
    table = {"layout": "table", "path": work / "images.csv", "group_column": "group"}
    small_model = {"architecture": work / "small.json", "pretrained": work / "small.safetensors", "device": "cpu"}
    small_features = {**images, **small_model, "workers": given.workers, "output": work / "small-features.zarr"}
    means = {"output_means": work / "means.zarr"}
    decompose = {"features": work / "features.zarr", **readout, "output": work / "contributions.zarr", **means}
    moments = {"moments": work / "moments.zarr"}
    steps: list[Step] = [
        ("index-images", "index-images", {**table, "output": work / "images.parquet"}),
        ("extract-features (small model)", "extract-features", small_features),
        ("compute-contributions", "compute-contributions", decompose),
        ("average-heads", "average-heads", {"means": work / "means.zarr", "output": work / "head-means.zarr"}),
        ("accumulate-pairs", "accumulate-pairs", {**images, **contributions, "output": work / "moments.zarr"}),
    ]
    for unit in ("pair", "neuron", "head"):
        options = {"unit": unit, **moments, **readout, "output": work / f"{unit}.zarr"}
        steps.append((f"fit-directions, {unit}", "fit-directions", options | ({} if unit == "pair" else contributions)))
    for name, k in zip(("concepts", "classes"), given.pairs, strict=True):
        texts = work / f"{name}.zarr"
        options = {"text": texts, "reference": texts, **pair_directions, **readout, "k": k}
        steps.append((f"select-pairs, {name}", "select-pairs", options | {"output": work / f"{name}-selection.zarr"}))
    assign = {"unit": "pair", **pair_directions, **dictionary, **readout, "sparse_share": 0.02, "output": assignments}
    correlate = {**contributions, **pair_directions, **dictionary, "output": correlated}
    tabulate = {"unit": "pair", **pair_directions, "assignments": assignments, "correlated": correlated}
    score = {**images, **contributions, "selection": work / "concepts-selection.zarr", **readout}
    return [
        *steps,
        (f"assign-texts, {given.texts:,} texts", "assign-texts", assign),
        (f"correlate-texts, {given.texts:,} texts", "correlate-texts", correlate),
        ("tabulate-units", "tabulate-units", {**tabulate, "output": work / "pairs.parquet"}),
        ("score-shift", "score-shift", {**score, "output": work / "s.csv", "output_scores": work / "s.parquet"}),
        (
            "rank-shifts",
            "rank-shifts",
            {**images, **contributions, "pairs": work / "pairs.parquet", "output": work / "shifts.parquet"},
        ),
    ]


def steps_on_a_tenth(given: argparse.Namespace, work: Path) -> list[Step]:
    """Return the stages that run on a tenth of the images."""
    shared = {"features": work / "features.zarr", "readout": work / "readout.zarr"}
    inputs = {
        "images": work / "masks.parquet",
        "classes": work / "classes.parquet",
        "selection": work / "classes-selection.zarr",
    }
    inputs |= {"head_means": work / "head-means.zarr", "registers": work / "registers.parquet"}
    outputs = {"output": work / "confusion.parquet", "output_labels": work / "labels"}
    title = f"segment-images, {given.classes} classes, a tenth of the images"
    features = {"images": work / "masks.parquet", "features": shared["features"]}
    samples, registers = work / "samples.zarr", {"readout": shared["readout"], "output": work / "registers.parquet"}
    return [
        ("sample-views", "sample-views", {**features, "output": samples, "number": 5}),
        ("measure-registers", "measure-registers", {"samples": samples, **registers}),
        (title, "segment-images", {**shared, **inputs, **outputs}),
    ]


def prepare(pool: AttentionPool, count: int, given: argparse.Namespace, work: Path) -> None:
    """Write a table of images, a small model, texts, classes and masks."""
    photos = write_photos(given.photos, count, work / "photos")
    groups = [number % 4 for number in range(count)]
    pd.DataFrame({"path": photos, "group": groups}).to_csv(work / "images.csv", index=False)
    torch.manual_seed(0)
    (work / "small.json").write_text(json.dumps(SMALL))
    clip = open_clip.CLIP(**SMALL)
    save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, work / "small.safetensors")
    for name, texts in (("concepts", 6), ("classes", given.classes), ("dictionary", given.texts)):
        sizes, names = {"text": texts, "embed": pool.embed}, [f"text {number}" for number in range(texts)]
        with create_zarr(work / f"{name}.zarr", TEXT, STAMP, sizes, texts=names) as store:
            store.write("embedding", normalise(torch.randn(texts, pool.embed)))
    classes = make_classes([f"text {number}" for number in range(given.classes)])
    write_classes(work / "classes.parquet", classes, "segmentation", STAMP)
    side = pool.grid * 32
    mask = np.random.default_rng(0).integers(0, given.classes, (side, side), dtype=np.uint8)
    Image.fromarray(mask).save(work / "mask.png")
    Image.fromarray(mask).save(work / "image.png")
    rows = {"image_id": range(max(1, count // 10)), "path": str(work / "image.png"), "width": side, "height": side}
    columns = {"sha256": examine_mask(str(work / "image.png")).sha256, "label": None, "group": None, "problem": None}
    columns |= {"mask_path": str(work / "mask.png"), "mask_sha256": examine_mask(str(work / "mask.png")).sha256}
    write_parquet(work / "masks.parquet", IMAGES, pd.DataFrame(rows).assign(**columns), STAMP)


if __name__ == "__main__":
    main()
