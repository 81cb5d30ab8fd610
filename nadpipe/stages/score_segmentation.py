"""Add the shards' confusions up to one row a data set and method, one a class, and one a pair of methods."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from nadpipe import metrics
from nadpipe.artifacts import open_zarr, read_parquet, write_csv, write_parquet
from nadpipe.class_tables import read_classes
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint
from nadpipe.progress import track

_VARIANT = ["method", "k"]


def score_segmentation(
    confusion: tuple[Path, ...],
    classes: tuple[Path, ...],
    attnpool_store: Path,
    output: Path,
    output_classes: Path,
    output_differences: Path,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> None:
    """Write the metrics of every method over each whole data set, from one confusion matrix each, with bootstrap intervals over
    its images, and the differences of every two methods on the same images.

    Args:
        confusion: Confusions of all shards of all data sets.
        classes: Classes of each data set.
        attnpool_store: Exported attention pool.
        output: CSV table, one row a data set and method.
        output_classes: Parquet table, one row a data set, method and class.
        output_differences: Parquet table, one row a data set and two methods.
        resamples: Of the bootstrap.
        confidence: Of the intervals, 0 to 1.
        seed: Of the bootstrap.
    """
    model = open_zarr(attnpool_store, "attention pool").stamp
    cells = pd.concat([read_parquet(path, "confusion", model) for path in confusion], ignore_index=True)
    rows, per_class, differences = [], [], []
    for dataset, known in track([read_classes(path) for path in classes], "scoring", "data set"):
        own = cells[cells["dataset"] == dataset]
        if own.empty:
            raise NadpipeError(f"data set {dataset}: no labelled pixels; check its masks and what is ignored in them")
        variants = list(own[_VARIANT].drop_duplicates().itertuples(index=False, name=None))
        parts = [own[(own["method"] == method) & (own["k"].isna() if pd.isna(k) else own["k"] == k)] for method, k in variants]
        images = np.unique(own["image_id"])
        totals = np.stack([metrics.class_totals(part, images, len(known.titles)) for part in parts])
        samples = metrics.bootstrap_miou(totals, resamples, seed)
        for (method, k), part, sample in zip(variants, parts, samples.T, strict=True):
            matrix = np.zeros((len(known.titles),) * 2, np.int64)
            np.add.at(matrix, (part["true_class"], part["predicted_class"]), part["pixels"])
            scores, about = metrics.metrics(matrix), {"dataset": dataset, "method": method, "k": k}
            rows.append(about | _row(scores, part, sample, confidence))
            table = {"class": known.titles, "iou": scores.iou, "accuracy": scores.accuracy, "pixels": matrix.sum(1)}
            per_class.append(pd.DataFrame(about | table))
        for one, other in itertools.combinations(range(len(variants)), 2):
            low, high = metrics.interval(samples[:, one] - samples[:, other], confidence)
            names = dict(zip(("method", "k", "other_method", "other_k"), (*variants[one], *variants[other]), strict=True))
            difference = rows[one - len(variants)]["miou"] - rows[other - len(variants)]["miou"]
            differences.append({"dataset": dataset, **names, "difference": difference, "low": low, "high": high})
    stamp = dataclasses.replace(model, code=code_fingerprint(__name__))
    write_csv(output, "segmentation", pd.DataFrame(rows).astype({"sink": "Int64", "k": "Int64"}))
    write_parquet(output_classes, "per_class", pd.concat(per_class).astype({"k": "Int64"}), stamp)
    columns = ["dataset", "method", "k", "other_method", "other_k", "difference", "low", "high"]
    compared = pd.DataFrame(differences, columns=columns).astype({"k": "Int64", "other_k": "Int64"})
    write_parquet(output_differences, "differences", compared, stamp)


def _row(scores: metrics.Metrics, cells: pd.DataFrame, sample: np.ndarray, confidence: float) -> dict[str, object]:
    """The numbers of one method on one data set."""
    low, high = metrics.interval(sample, confidence)
    sink = int(cells["sink"].iloc[0])
    return {
        "miou": scores.miou,
        "miou_low": low,
        "miou_high": high,
        "pixel_accuracy": scores.pixel_accuracy,
        "mean_accuracy": scores.mean_accuracy,
        "fw_iou": scores.fw_iou,
        "images": cells["image_id"].nunique(),
        "pixels": cells["pixels"].sum(),
        "classes": scores.present.sum(),
        "temperature": cells["temperature"].iloc[0],
        "sink": sink if sink >= 0 else None,
    }
