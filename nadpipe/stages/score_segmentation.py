"""Score segmentation methods: metrics per data set and method, per class, and differences between methods."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from nadpipe.circuit import metrics
from nadpipe.circuit.intervals import Interval, jackknife_interval
from nadpipe.data.class_tables import read_classes
from nadpipe.errors import NadpipeError
from nadpipe.progress import track
from nadpipe.store.kinds.segmentation import CONFUSION, DIFFERENCES, PER_CLASS, SEGMENTATION
from nadpipe.store.tables import read_parquet, read_stamp, write_csv, write_parquet

_VARIANT = ["method", "k"]


def score_segmentation(
    confusion: tuple[Path, ...],
    classes: tuple[Path, ...],
    output: Path,
    output_classes: Path,
    output_differences: Path,
    confidence: float = 0.95,
) -> None:
    """Write the metrics of every method on each data set, with intervals over images, and all pairwise differences.

    Args:
        confusion: Confusions of all shards of all data sets, which have masks.
        classes: Classes of each data set.
        output: CSV table, one row per data set and method.
        output_classes: Parquet table, one row per data set, method and class.
        output_differences: Parquet table, one row per data set and two methods.
        confidence: Confidence of the intervals, 0 to 1.
    """
    model = read_stamp(confusion[0], CONFUSION)
    cells = pd.concat([read_parquet(path, CONFUSION, model) for path in confusion], ignore_index=True)
    rows: list[dict[str, object]] = []
    per_class: list[pd.DataFrame] = []
    differences: list[dict[str, object]] = []
    for dataset, dataset_classes in track([read_classes(path) for path in classes], "scoring", "data set"):
        dataset_cells = metrics.labelled(cells[cells["dataset"] == dataset])
        if dataset_cells.empty:
            raise NadpipeError(f"datasets.{dataset}: no labelled pixels; check its masks and its ignored values")
        titles = dataset_classes.titles
        by_variant = _split(dataset_cells)
        images = np.unique(dataset_cells["image_id"])
        scores, without_one = [], []
        for variant, variant_cells in by_variant.items():
            matrix = np.zeros((len(titles), len(titles)), np.int64)
            np.add.at(matrix, (variant_cells["true_class"], variant_cells["predicted_class"]), variant_cells["pixels"])
            score = metrics.metrics(matrix)
            totals = metrics.class_totals(variant_cells, images, len(titles))
            scores.append(score.miou)
            without_one.append(metrics.mean_iou_without_one(totals))
            key = {"dataset": dataset} | dict(zip(_VARIANT, variant, strict=True))
            interval = jackknife_interval(score.miou, without_one[-1], confidence, within=(0.0, 1.0))
            rows.append(key | _row(score, interval, metrics.count_rare(totals), variant_cells))
            columns = {"class": titles, "iou": score.iou, "accuracy": score.accuracy, "pixels": matrix.sum(1)}
            per_class.append(pd.DataFrame(key | columns))
        compared = _differences(list(by_variant), scores, without_one, confidence)
        differences += [{"dataset": dataset} | row for row in compared]
    stamp = model.made_by(__name__)
    write_csv(output, SEGMENTATION, pd.DataFrame(rows).astype({"sink": "Int64", "k": "Int64"}))
    write_parquet(output_classes, PER_CLASS, pd.concat(per_class).astype({"k": "Int64"}), stamp)
    table = pd.DataFrame(differences, columns=list(DIFFERENCES.columns)).astype({"k": "Int64", "other_k": "Int64"})
    write_parquet(output_differences, DIFFERENCES, table, stamp)


def _split(cells: pd.DataFrame) -> dict[tuple[str, float | int], pd.DataFrame]:
    """Split the cells of a data set by method and k, in order of appearance. k is NaN for methods that select no pairs."""
    variants = cells[_VARIANT].drop_duplicates().itertuples(index=False, name=None)
    return {
        (method, k): cells[(cells["method"] == method) & (cells["k"].isna() if pd.isna(k) else cells["k"] == k)]
        for method, k in variants
    }


def _row(score: metrics.Metrics, interval: Interval, rare_classes: int, cells: pd.DataFrame) -> dict[str, object]:
    """Return the columns of one method on one data set."""
    sink = int(cells["sink"].iloc[0])
    return {
        "miou": score.miou,
        "miou_low": interval[0],
        "miou_high": interval[1],
        "pixel_accuracy": score.pixel_accuracy,
        "mean_accuracy": score.mean_accuracy,
        "fw_iou": score.fw_iou,
        "images": cells["image_id"].nunique(),
        "pixels": cells["pixels"].sum(),
        "classes": score.present.sum(),
        "rare_classes": rare_classes,
        "temperature": cells["temperature"].iloc[0],
        "sink": sink if sink >= 0 else None,
    }


def _differences(
    variants: Sequence[tuple[str, float | int]],
    miou: Sequence[float],
    without_one: Sequence[Float[np.ndarray, " image"]],
    confidence: float,
) -> list[dict[str, object]]:
    """Return the difference of every two methods with its interval."""
    rows = []
    for first, second in itertools.combinations(range(len(variants)), 2):
        difference = miou[first] - miou[second]
        low, high = jackknife_interval(difference, without_one[first] - without_one[second], confidence, within=(-1.0, 1.0))
        both = (*variants[first], *variants[second])
        names: dict[str, object] = dict(zip(("method", "k", "other_method", "other_k"), both, strict=True))
        rows.append({**names, "difference": difference, "low": low, "high": high})
    return rows
