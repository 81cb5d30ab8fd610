"""Add the shards' confusions up to one row a method, and one a class."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from nadpipe.artifacts import open_zarr, read_parquet, write_csv, write_parquet
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint
from nadpipe.metrics import metrics
from nadpipe.progress import track

SELECTING = ("nad", "nad_centred")  # methods that select pairs


def score_segmentation(
    confusion: tuple[Path, ...],
    attnpool_store: Path,
    classes: tuple[str, ...],
    output: Path,
    output_classes: Path,
    dataset: str = "segmentation",
) -> None:
    """Write the metrics of every method over the whole data set, from one confusion matrix each.

    Args:
        confusion: Confusions of all shards.
        attnpool_store: Exported attention pool.
        classes: Class names in the order of the mask values.
        output: CSV table, one row a method.
        output_classes: Parquet table, one row a method and class.
        dataset: Name of the data set in the tables.
    """
    model = open_zarr(attnpool_store, "attention pool").stamp
    cells = pd.concat([read_parquet(path, "confusion", model) for path in confusion], ignore_index=True)
    if cells.empty:
        raise NadpipeError(f"{confusion[0]}: no labelled pixels in the data set; check the masks and segmentation.ignore")
    rows, per_class = [], []
    for method, part in track(list(cells.groupby("method", sort=False)), "scoring", "method"):
        matrix = np.zeros((len(classes), len(classes)), np.int64)
        np.add.at(matrix, (part["true_class"], part["predicted_class"]), part["pixels"])
        scores = metrics(matrix)
        sink = int(part["sink"].iloc[0])
        rows.append(
            {
                "dataset": dataset,
                "method": method,
                "miou": scores.miou,
                "pixel_accuracy": scores.pixel_accuracy,
                "mean_accuracy": scores.mean_accuracy,
                "fw_iou": scores.fw_iou,
                "images": part["image_id"].nunique(),
                "pixels": matrix.sum(),
                "classes": scores.present.sum(),
                "k": part["k"].iloc[0] if method in SELECTING else None,
                "temperature": part["temperature"].iloc[0],
                "confidence": np.average(part["confidence"], weights=part["pixels"]),
                "sink": sink if sink >= 0 else None,
            }
        )
        per_class.append(
            pd.DataFrame(
                {
                    "dataset": dataset,
                    "method": method,
                    "class": classes,
                    "iou": scores.iou,
                    "accuracy": scores.accuracy,
                    "pixels": matrix.sum(1),
                }
            )
        )
    stamp = dataclasses.replace(model, code=code_fingerprint(__name__))
    write_csv(output, "segmentation", pd.DataFrame(rows).astype({"sink": "Int64", "k": "Int64"}))
    write_parquet(output_classes, "per_class", pd.concat(per_class), stamp)
