"""Metrics of segmentation from one confusion matrix over a data set, and their intervals over its images.

The numbers are those of mmsegmentation's IoUMetric (`intersect_and_union`, `total_area_to_metrics`), as shares instead of
rounded per cent: pixels that do not count are left out on both sides, and means leave out classes that occur on neither.
"""

import dataclasses

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Integer

from nadpipe.classes import IGNORED

_BLOCK = 2**25  # numbers of a bootstrap's resampled totals at once


def confusion(
    truth: Integer[np.ndarray, "height width"], predicted: Integer[np.ndarray, "height width"], classes: int
) -> Integer[np.ndarray, "classes classes"]:
    """Pixels by true class (rows) and predicted class (columns); pixels whose truth is IGNORED do not count."""
    counted = truth != IGNORED
    cell = (truth.astype(np.int64) * classes + predicted)[counted]
    return np.bincount(cell, minlength=classes * classes).reshape(classes, classes)


def confused(
    truth: Integer[np.ndarray, "height width"], predicted: Integer[np.ndarray, "height width"], classes: int
) -> list[dict[str, int]]:
    """The cells of one image's confusion matrix that are not zero."""
    matrix = confusion(truth, predicted, classes)
    return [
        {"true_class": true, "predicted_class": guess, "pixels": int(matrix[true, guess])}
        for true, guess in np.argwhere(matrix).tolist()
    ]


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Metrics of one confusion matrix."""

    iou: Float[np.ndarray, " classes"]  # NaN for a class on neither side
    accuracy: Float[np.ndarray, " classes"]  # NaN for a class that the truth does not have
    present: Bool[np.ndarray, " classes"]  # classes on either side
    miou: float
    mean_accuracy: float
    pixel_accuracy: float
    fw_iou: float


def metrics(confusion: Integer[np.ndarray, "classes classes"]) -> Metrics:
    """IoU and accuracy per class, their means, pixel accuracy, and IoU weighted by the classes' share of the true pixels."""
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
    """Of each image and class: pixels that are right, pixels of the truth and pixels predicted.

    cells: image_id, true_class, predicted_class and pixels of one method, as `confused` counts them. images: ids, ascending.
    """
    totals = np.zeros((len(images), 3, classes), np.int64)
    image = np.searchsorted(images, cells["image_id"])
    true, predicted, pixels = (cells[name].to_numpy() for name in ("true_class", "predicted_class", "pixels"))
    right = true == predicted
    np.add.at(totals, (image[right], 0, true[right]), pixels[right])
    np.add.at(totals, (image, 1, true), pixels)
    np.add.at(totals, (image, 2, predicted), pixels)
    return totals


def mean_iou(totals: Float[np.ndarray, "*set 3 classes"] | Integer[np.ndarray, "*set 3 classes"]) -> Float[np.ndarray, "*set"]:
    """Mean IoU over the classes on either side, of sets of images given by their summed `class_totals`; NaN for none."""
    hit, truth, predicted = np.moveaxis(totals, -2, 0)
    union = truth + predicted - hit
    present = union > 0
    iou = np.divide(hit, union, out=np.zeros(union.shape), where=present)
    count = present.sum(-1)
    return np.divide(iou.sum(-1), count, out=np.full(count.shape, np.nan), where=count > 0)


def bootstrap_miou(
    totals: Integer[np.ndarray, "method image 3 classes"], resamples: int, seed: int
) -> Float[np.ndarray, "resample method"]:
    """mIoU of every method over images drawn with replacement, the same images for all methods.

    An image that is drawn twice counts twice, so a resample is a product of how often images were drawn with their totals.
    """
    methods, images, parts, classes = totals.shape
    rng = np.random.default_rng(seed)
    by_image = np.moveaxis(totals, 1, 0).reshape(images, -1).astype(float)
    found = np.empty((resamples, methods))
    step = max(1, _BLOCK // max(by_image.shape[1], images))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = rng.multinomial(images, np.full(images, 1 / images), size=count)
        found[start : start + count] = mean_iou((drawn @ by_image).reshape(count, methods, parts, classes))
    return found


def interval(samples: Float[np.ndarray, " resample"], confidence: float) -> tuple[float, float]:
    """The percentile interval of bootstrap samples."""
    low, high = np.nanquantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
