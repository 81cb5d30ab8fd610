"""Peak memory and time of every stage as images grow: memory should stay, time should grow in proportion.

    python benchmarks/memory.py --photos <folder>

Activations are random at RN50x16's size (144 tokens × 3072 neurons), so that no network has to run; the features stage itself
runs a small random CLIP-ResNet on photographs. Segmentation takes a tenth of the images. Needs 20 GB of disk for 8,000 images.
"""

import argparse
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import torch
from common import STAMP, nadpipe, random_pool, report, save_pool, write_random_features
from PIL import Image
from safetensors.torch import save_file

from nadpipe.circuit.attention import AttentionPool
from nadpipe.circuit.naming import normalise
from nadpipe.data.class_tables import write_classes
from nadpipe.data.classes import make_classes
from nadpipe.data.layouts import IMAGE_SUFFIXES
from nadpipe.store.arrays import create_zarr
from nadpipe.store.kinds.images import IMAGES
from nadpipe.store.kinds.texts import TEXT
from nadpipe.store.tables import write_parquet

CLASSES = 59
SMALL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 96, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}


def main() -> None:
    """Run all stages at each number of images and tabulate them side by side."""
    options = argparse.ArgumentParser()
    options.add_argument("--photos", type=Path, required=True)
    options.add_argument("--images", type=int, nargs="+", default=[500, 2000, 8000])
    options.add_argument("--work", type=Path, default=Path("memory-benchmark"))
    given = options.parse_args()
    measured: dict[str, dict[int, tuple[float, float]]] = {}
    for count in given.images:
        shutil.rmtree(given.work, ignore_errors=True)
        given.work.mkdir(parents=True)
        for stage, numbers in run(count, given.photos, given.work.resolve()).items():
            measured.setdefault(stage, {})[count] = numbers
            print(count, stage, numbers, flush=True)
    shutil.rmtree(given.work)
    rows = [
        {
            "stage": stage,
            **{f"MiB at {count:,}": round(numbers[count][1]) for count in given.images},
            **{f"s at {count:,}": round(numbers[count][0], 1) for count in given.images},
        }
        for stage, numbers in measured.items()
    ]
    measured_as = "Peak memory (MiB, largest process) and wall time (s) of each command, start of Python included"
    about = f"{measured_as}, activations of RN50x16's size"
    report("memory", about, rows)


def run(count: int, photos: Path, work: Path) -> dict[str, tuple[float, float]]:
    """Time and peak memory of each stage with so many images."""
    pool = random_pool("RN50x16")
    save_pool(pool, work / "pool.zarr")
    prepare(pool, count, photos, work)
    pool_option = ["--readout", work / "pool.zarr"]
    contributions = ["--contributions", work / "c.zarr"]
    moments = ["--moments", work / "m.zarr"]
    small = ["--architecture", work / "small.json", "--pretrained", work / "small.safetensors", "--device", "cpu"]
    write_random_features(pool, count, "float32", work / "f.zarr")
    took = {
        "index-images": nadpipe(
            "index-images",
            "--layout",
            "table",
            "--path",
            work / "t.csv",
            "--group-column",
            "group",
            "--output",
            work / "i.parquet",
        ),
        "extract-features (small model)": nadpipe(
            "extract-features", "--images", work / "i.parquet", *small, "--output", work / "x.zarr", "--workers", "2"
        ),
        "compute-contributions": nadpipe(
            "compute-contributions", "--features", work / "f.zarr", *pool_option, "--output", work / "c.zarr"
        ),
        "accumulate-pairs": nadpipe("accumulate-pairs", *contributions, *pool_option, "--output", work / "m.zarr"),
    }
    for name in ("pair", "neuron", "head"):
        given = [] if name == "pair" else contributions
        arguments = ["--unit", name, *moments, *given, *pool_option, "--output", work / f"{name}.zarr"]
        took[f"fit-directions, {name}"] = nadpipe("fit-directions", *arguments)
    for name, k in (("concepts", 300), ("classes", 20000)):
        arguments = ["--text", work / f"{name}.zarr", "--directions", work / "pair.zarr", *pool_option, "--k", str(k)]
        took[f"select-pairs, {name}"] = nadpipe("select-pairs", *arguments, "--output", work / f"{name}-selection.zarr")
    named = ["--unit", "pair", "--directions", work / "pair.zarr", *pool_option]
    dictionary = ["--dictionary", work / "dictionary.zarr", "--sparse-share", "0.02"]
    took["assign-texts, 30,000 texts"] = nadpipe("assign-texts", *named, *dictionary, "--output", work / "a.parquet")
    took["tabulate-units"] = nadpipe(
        "tabulate-units", *named, "--assignments", work / "a.parquet", "--output", work / "p.parquet"
    )
    images = ["--images", work / "i.parquet", *contributions, *pool_option]
    selection = ["--selection", work / "concepts-selection.zarr"]
    took["score-shift"] = nadpipe(
        "score-shift", *images, *selection, "--output", work / "s.csv", "--output-scores", work / "s.parquet"
    )
    took["rank-shifts"] = nadpipe("rank-shifts", *images, "--pairs", work / "p.parquet", "--output", work / "r.parquet")
    shutil.rmtree(work / "f.zarr")
    write_random_features(pool, count // 10, "float32", work / "f.zarr")
    registers = ["--registers", work / "reg.parquet"]
    took["measure-registers"] = nadpipe(
        *("measure-registers", "--features", work / "f.zarr", *pool_option, "--images", "5"),
        *("--output", work / "reg.parquet"),
    )
    masks = ["--images", work / "masks.parquet", "--features", work / "f.zarr", "--selection", work / "classes-selection.zarr"]
    masks += ["--classes", work / "classes.parquet", *registers]
    took[f"segment-images, {CLASSES} classes, a tenth of the images"] = nadpipe(
        "segment-images",
        *masks,
        *contributions,
        *pool_option,
        "--output",
        work / "seg.parquet",
        "--output-labels",
        work / "labels",
    )
    return took


def prepare(pool: AttentionPool, count: int, photos: Path, work: Path) -> None:
    """A table of images, a small model, texts, and masks."""
    found = [str(path.resolve()) for path in sorted(photos.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    listed = list(itertools.islice(itertools.cycle(found), count))
    pd.DataFrame({"path": listed, "group": [at % 4 for at in range(count)]}).to_csv(work / "t.csv", index=False)
    torch.manual_seed(0)
    (work / "small.json").write_text(json.dumps(SMALL))
    clip = open_clip.CLIP(**SMALL)
    save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, work / "small.safetensors")
    for name, texts in (("concepts", 6), ("classes", CLASSES), ("dictionary", 30_000)):
        sizes = {"text": texts, "embed": len(pool.c_bias)}
        with create_zarr(work / f"{name}.zarr", TEXT, STAMP, sizes, texts=[f"text {at}" for at in range(texts)]) as store:
            store.write("embedding", normalise(torch.randn(texts, len(pool.c_bias))))
    classes = make_classes([f"text {at}" for at in range(CLASSES)])
    write_classes(work / "classes.parquet", classes, "segmentation", STAMP)
    side = round((pool.tokens - 1) ** 0.5) * 32
    Image.fromarray(np.random.default_rng(0).integers(0, CLASSES, (side, side), dtype=np.uint8)).save(work / "mask.png")
    rows = {"image_id": range(count // 10), "path": "x", "width": side, "height": side, "label": None, "group": None}
    write_parquet(work / "masks.parquet", IMAGES, pd.DataFrame(rows).assign(mask_path=str(work / "mask.png")), STAMP)


if __name__ == "__main__":
    main()
