"""Segmentation metrics from one confusion matrix per data set, and mean IoUs over all of its images but one.

The numbers equal those of mmsegmentation's IoUMetric (`intersect_and_union`, `total_area_to_metrics`), as shares instead of
rounded percentages: ignored pixels are excluded on both sides, and means exclude classes that occur on neither side.
"""

import dataclasses

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Integer

from nadpipe.circuit.label_values import IGNORED

RARE = 5  # images: a class in fewer says little


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
    """Return the nonzero cells of one image's confusion matrix.

    Pixels without truth have the true class IGNORED, so the cells of an image count all of its pixels.
    """
    unlabelled = np.bincount(predicted[truth == IGNORED], minlength=classes)
    counts = np.vstack([confusion(truth, predicted, classes), unlabelled])
    return [
        {
            "true_class": true if true < classes else IGNORED,
            "predicted_class": predicted_class,
            "pixels": int(counts[true, predicted_class]),
        }
        for true, predicted_class in np.argwhere(counts).tolist()
    ]


def labelled(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the cells of pixels with a true class (see `confusion_cells`)."""
    return cells[cells["true_class"] != IGNORED]


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

    cells: image_id, true_class, predicted_class and pixels of one method (see `confusion_cells`). Pixels without truth do not
    count. images: ids, ascending.
    """
    cells = labelled(cells)
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
    return _mean_iou(totals, totals.sum(-2) > 0)


def mean_true_iou(totals: Integer[np.ndarray, "*set 3 classes"]) -> Float[np.ndarray, "*set"]:
    """Compute the mean IoU of sets of images over the classes in the truth; NaN for a set without labelled pixels.

    A class that is only predicted lowers the IoU of the classes whose pixels it takes. It does not count as a zero of its own,
    which would outweigh all other pixels of a single image.
    """
    return _mean_iou(totals, totals[..., 1, :] > 0)


def pixel_accuracy(totals: Integer[np.ndarray, "*set 3 classes"]) -> Float[np.ndarray, "*set"]:
    """Compute the share of correct pixels of sets of images; NaN for a set without labelled pixels."""
    hit, truth, _ = np.moveaxis(totals, -2, 0).sum(-1)
    return np.divide(hit, truth, out=np.full(truth.shape, np.nan), where=truth > 0)


def _mean_iou(totals: np.ndarray, counted: Bool[np.ndarray, "*set classes"]) -> Float[np.ndarray, "*set"]:
    """Compute the mean IoU over the counted classes, which must have pixels on either side."""
    hit, truth, predicted = np.moveaxis(totals, -2, 0)
    iou = np.divide(hit, truth + predicted - hit, out=np.zeros(hit.shape), where=counted)
    count = counted.sum(-1)
    return np.divide(iou.sum(-1), count, out=np.full(count.shape, np.nan), where=count > 0)


def mean_iou_without_one(totals: Integer[np.ndarray, "image 3 classes"]) -> Float[np.ndarray, " image"]:
    """Compute the mean IoU over all images but one, for each image, from the images' `class_totals`."""
    return mean_iou(totals.sum(0) - totals)


def count_rare(totals: Integer[np.ndarray, "image 3 classes"]) -> int:
    """Count the classes on either side that fewer than RARE images have in the truth, from the images' `class_totals`."""
    _, truth, predicted = np.moveaxis(totals, 1, 0)
    present = (truth + predicted).any(0)
    return int((present & ((truth > 0).sum(0) < RARE)).sum())


# ----------------------------------------------------------------------------------------------------- shares of classes


def predicted_pixels(
    cells: pd.DataFrame, images: Integer[np.ndarray, " image"], classes: int
) -> Integer[np.ndarray, "image classes"]:
    """Count the pixels that a method gives to each class, with or without truth.

    cells: image_id, predicted_class and pixels of one method (see `confusion_cells`). images: ids, ascending.
    """
    pixels = np.zeros((len(images), classes), np.int64)
    np.add.at(pixels, (np.searchsorted(images, cells["image_id"]), cells["predicted_class"]), cells["pixels"])
    return pixels


def shares(pixels: Integer[np.ndarray, "*set classes"]) -> Float[np.ndarray, "*set classes"]:
    """Compute the share of each class from numbers of pixels; NaN for an image without pixels."""
    total = pixels.sum(-1, keepdims=True)
    return np.divide(pixels, total, out=np.full(pixels.shape, np.nan), where=total > 0)


def compare_shares(
    totals: Integer[np.ndarray, "image 3 classes"],
) -> tuple[Float[np.ndarray, " classes"], Float[np.ndarray, " classes"]]:
    """Compute the mean share of each class in the truth, and the mean absolute difference between prediction and truth.

    totals: `class_totals` of the images. Shares are of an image's labelled pixels. Images without any do not count; if all are
    without, the results are NaN.
    """
    labelled_images = totals[totals[:, 1].any(1)]
    if not len(labelled_images):
        return np.full(totals.shape[2], np.nan), np.full(totals.shape[2], np.nan)
    truth, predicted = shares(labelled_images[:, 1]), shares(labelled_images[:, 2])
    return truth.mean(0), np.abs(predicted - truth).mean(0)
