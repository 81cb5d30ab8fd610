"""Measure what each choice of the published code changes against nadpipe's default, on the demo.

    python benchmarks/published_choices.py

Every row changes one setting and compares the label maps of `nad` (or of two baselines) pixel by pixel. The last rows compare
the neurons of first rank, and the label maps with all choices together, as docs/published.yaml sets them.
"""

import argparse
import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import add_work, demo_config, make_parser, parse, report, run_workflow, working_folder
from PIL import Image

from nadpipe.stages.extract_features import extract_features
from nadpipe.stages.score_segmentation import score_segmentation
from nadpipe.stages.segment_images import segment_images
from nadpipe.stages.select_pairs import select_pairs
from nadpipe.store.kinds.segmentation import REGISTERS
from nadpipe.store.tables import read_parquet

ARTIFACTS = Path("results/artifacts")
DATASET = ARTIFACTS / "segmentation"
READOUT = ARTIFACTS / "model/readout.zarr"
SELECTIONS = {by: Path(f"selection-{by}.zarr") for by in ("write", "direction")}
FEATURES = {"model": DATASET / "features/0.zarr", "opencv": Path("features-opencv.zarr")}
RANKED = 8  # neurons of first rank that are compared


def main() -> None:
    """Make the artifacts with the workflow, segment with each choice, and compare."""
    parser = make_parser(__doc__)
    parser.add_argument("--k", type=int, default=1250, help="pairs per class")
    add_work(parser)
    given = parse(parser)
    config = demo_config(given.tiny)
    with working_folder(given.work), contextlib.redirect_stderr(io.StringIO()):
        rows = measure(given, config)
    count = config["demo"]["segmentation_images"]
    report(
        given,
        "published_choices",
        f"Choices of the published code against nadpipe's defaults: {count} images of the demo, {given.k} pairs per class",
        rows,
    )


def measure(given: argparse.Namespace, config: dict[str, Any]) -> list[dict]:
    """Return one row per choice."""
    names = ("discovery/head_means.zarr", "directions/pair.zarr", "text/segmentation.zarr", "segmentation/classes.parquet")
    targets = [str(path) for path in (*(ARTIFACTS / name for name in names), FEATURES["model"], READOUT)]
    run_workflow(config, *targets, "results/registers.parquet")
    extract_features(
        DATASET / "images.parquet", output=FEATURES["opencv"], views="sliding", resize="opencv", device="cpu", **config["model"]
    )
    text = ARTIFACTS / "text/segmentation.zarr"
    for by, path in SELECTIONS.items():
        select_pairs(text, ARTIFACTS / "directions/pair.zarr", READOUT, path, k=given.k, select_by=by, reference=text)
    default = segment("default", ("nad", "maskclip", "sclip"))
    published = segment("published", ("nad",), "direction", "opencv", "last", "vectors")
    last = segment("last", ("nad",), sink="last")
    selected = segment("select_by", ("nad",), select_by="direction")
    resized = segment("resize", ("nad",), resize="opencv")
    replaced = segment("sink_replacement", ("nad",), sink="last", sink_replacement="vectors")
    baselines = segment("baselines", ("values_only", "self_self"))
    nad = default["nad"]
    return [
        compare("`segmentation.select_by`: write, direction", nad, selected["nad"]),
        compare("`segmentation.resize`: model, opencv", nad, resized["nad"]),
        compare("`segmentation.sink`: auto, last", nad, last["nad"]),
        compare("`segmentation.sink_replacement`: cosines, vectors, with `sink`: last", last["nad"], replaced["nad"]),
        compare("all four choices", nad, published["nad"]),
        compare("method: `maskclip`, `values_only`", default["maskclip"], baselines["values_only"]),
        compare("method: `sclip`, `self_self`", default["sclip"], baselines["self_self"]),
        compare_ranks("`registers.rank_by`: signed, absolute"),
    ]


Maps = tuple[list[np.ndarray], float]  # label maps and mIoU


def segment(
    name: str,
    methods: tuple[str, ...],
    select_by: str = "write",
    resize: str = "model",
    sink: str = "auto",
    sink_replacement: str = "cosines",
) -> dict[str, Maps]:
    """Segment with nadpipe's stage; return the label maps and the mIoU of each method."""
    confusion, labels = Path(f"{name}.parquet"), Path(f"labels-{name}")
    inputs = DATASET / "images.parquet", DATASET / "classes.parquet", FEATURES[resize], SELECTIONS[select_by]
    shared = ARTIFACTS / "discovery/head_means.zarr", Path("results/registers.parquet"), READOUT
    choices = {"sink": sink, "sink_replacement": sink_replacement}
    segment_images(*inputs, *shared, confusion, labels, methods=methods, **choices)
    score_segmentation((confusion,), (DATASET / "classes.parquet",), Path("s.csv"), Path("c.parquet"), Path("d.parquet"))
    miou = pd.read_csv("s.csv").set_index("method")["miou"]
    folders = {method: next(path for path in labels.iterdir() if path.name.split("-")[0] == method) for method in methods}
    return {
        method: ([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))], float(miou[method]))
        for method, folder in folders.items()
    }


def compare(choice: str, default: Maps, published: Maps) -> dict:
    """Return the row of two sets of label maps."""
    alike = sum(int((a == b).sum()) for a, b in zip(default[0], published[0], strict=True))
    pixels = sum(labels.size for labels in default[0])
    return {
        "choice: nadpipe's, published": choice,
        "in common": f"{alike / pixels:.2%} of the pixels",
        "mIoU": f"{default[1]:.4f}",
        "mIoU, published choice": f"{published[1]:.4f}",
    }


def compare_ranks(choice: str) -> dict:
    """Return the row of two rankings of the neurons behind the sink."""
    table = read_parquet(Path("results/registers.parquet"), REGISTERS)
    neurons = table[table["kind"] == "neuron"]
    first, second = (set(neurons.nlargest(RANKED, column)["index"]) for column in ("attention_drop", "attention_change"))
    common = f"{len(first & second)} of the first {RANKED} neurons"
    return {"choice: nadpipe's, published": choice, "in common": common, "mIoU": "", "mIoU, published choice": ""}


if __name__ == "__main__":
    main()
