"""Segmentation metrics from one confusion matrix per data set, and their bootstrap intervals over its images.

The numbers equal those of mmsegmentation's IoUMetric (`intersect_and_union`, `total_area_to_metrics`), as shares instead of
rounded percentages: ignored pixels are excluded on both sides, and means exclude classes that occur on neither side.
"""

import dataclasses

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Integer

from nadpipe.circuit.label_values import IGNORED

_BLOCK = 2**25  # numbers per step of the bootstrap


def confusion(
    truth: Integer[np.ndarray, "height width"], predicted: Integer[np.ndarray, "height width"], classes: int
) -> Integer[np.ndarray, "classes classes"]:
    """Count pixels by true class (rows) and predicted class (columns), without pixels whose truth is IGNORED."""
    counted = truth != IGNORED
    cell = (truth.astype(np.int64) * classes + predicted)[counted]
    return np.bincount(cell, minlength=classes * classes).reshape(classes, classes)


def confusion_cells(
    truth: Integer[np.ndarray, "height width"], predicted: Integer[np.ndarray, "height width"], classes: int
) -> list[dict[str, int]]:
    """Return the nonzero cells of one image's confusion matrix."""
    matrix = confusion(truth, predicted, classes)
    return [
        {"true_class": true, "predicted_class": predicted_class, "pixels": int(matrix[true, predicted_class])}
        for true, predicted_class in np.argwhere(matrix).tolist()
    ]


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Metrics of one confusion matrix."""

    iou: Float[np.ndarray, " classes"]  # NaN for a class on neither side
    accuracy: Float[np.ndarray, " classes"]  # NaN for a class without true pixels
    present: Bool[np.ndarray, " classes"]  # classes that occur on either side
    miou: float
    mean_accuracy: float
    pixel_accuracy: float
    fw_iou: float


def metrics(confusion: Integer[np.ndarray, "classes classes"]) -> Metrics:
    """Compute IoU and accuracy per class, their means, pixel accuracy, and IoU weighted by the share of true pixels."""
    hit = np.diag(confusion).astype(float)
    truth, predicted = confusion.sum(1), confusion.sum(0)
    union = truth + predicted - hit
    with np.errstate(invalid="ignore", divide="ignore"):
        iou, accuracy = hit / union, hit / truth
        present, labelled = union > 0, truth.any()
        return Metrics(
            iou=iou,
            accuracy=accuracy,
            present=present,
            miou=float(np.nanmean(iou)) if present.any() else float("nan"),
            mean_accuracy=float(np.nanmean(accuracy)) if labelled else float("nan"),
            pixel_accuracy=float(hit.sum() / truth.sum()),
            fw_iou=float(np.nansum(truth / truth.sum() * iou)) if labelled else float("nan"),
        )


# ------------------------------------------------------------------------------------------------------------ per image


def class_totals(
    cells: pd.DataFrame, images: Integer[np.ndarray, " image"], classes: int
) -> Integer[np.ndarray, "image 3 classes"]:
    """Count per image and class: correct pixels, true pixels and predicted pixels.

    cells: image_id, true_class, predicted_class and pixels of one method (see `confusion_cells`). images: ids, ascending.
    """
    totals = np.zeros((len(images), 3, classes), np.int64)
    image = np.searchsorted(images, cells["image_id"])
    true, predicted, pixels = (cells[name].to_numpy() for name in ("true_class", "predicted_class", "pixels"))
    correct = true == predicted
    np.add.at(totals, (image[correct], 0, true[correct]), pixels[correct])
    np.add.at(totals, (image, 1, true), pixels)
    np.add.at(totals, (image, 2, predicted), pixels)
    return totals


def mean_iou(totals: Float[np.ndarray, "*set 3 classes"] | Integer[np.ndarray, "*set 3 classes"]) -> Float[np.ndarray, "*set"]:
    """Compute the mean IoU of sets of images from their summed `class_totals`; NaN for a set without classes."""
    hit, truth, predicted = np.moveaxis(totals, -2, 0)
    union = truth + predicted - hit
    present = union > 0
    iou = np.divide(hit, union, out=np.zeros(union.shape), where=present)
    count = present.sum(-1)
    return np.divide(iou.sum(-1), count, out=np.full(count.shape, np.nan), where=count > 0)


def bootstrap_miou(
    totals: Integer[np.ndarray, "method image 3 classes"], resamples: int, seed: int
) -> Float[np.ndarray, "resample method"]:
    """Compute the mIoU of every method over images drawn with replacement; all methods get the same images.

    An image that is drawn twice counts twice, so a resample is the product of the draw counts and the images' totals.
    """
    methods, images, totals_per_class, classes = totals.shape
    rng = np.random.default_rng(seed)
    by_image = np.moveaxis(totals, 1, 0).reshape(images, -1).astype(float)
    samples = np.empty((resamples, methods))
    step = max(1, _BLOCK // max(by_image.shape[1], images))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = rng.multinomial(images, np.full(images, 1 / images), size=count)
        samples[start : start + count] = mean_iou((drawn @ by_image).reshape(count, methods, totals_per_class, classes))
    return samples


def interval(samples: Float[np.ndarray, " resample"], confidence: float) -> tuple[float, float]:
    """Compute the percentile interval of bootstrap samples. confidence: 0 to 1."""
    low, high = np.nanquantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
