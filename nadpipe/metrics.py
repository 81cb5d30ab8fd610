"""Metrics of segmentation from one confusion matrix over a data set."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer


def confusion(
    truth: Integer[np.ndarray, "height width"],
    predicted: Integer[np.ndarray, "height width"],
    classes: int,
    ignore: int,
) -> Integer[np.ndarray, "classes classes"]:
    """Pixels by true class (rows) and predicted class (columns); pixels whose truth is `ignore` do not count."""
    counted = truth != ignore
    index = truth[counted].astype(np.int64) * classes + predicted[counted]
    return np.bincount(index, minlength=classes * classes).reshape(classes, classes)


def confused(
    truth: Integer[np.ndarray, "height width"],
    predicted: Integer[np.ndarray, "height width"],
    probability: Float[np.ndarray, "height width"],
    classes: int,
    ignore: int,
) -> list[dict[str, Any]]:
    """The cells of one image's confusion matrix that are not zero, with the mean probability of the predicted class."""
    counts = confusion(truth, predicted, classes, ignore)
    return [
        {
            "true_class": true,
            "predicted_class": guess,
            "pixels": counts[true, guess],
            "confidence": probability[(truth == true) & (predicted == guess)].mean(),
        }
        for true, guess in np.argwhere(counts).tolist()
    ]


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Metrics of one confusion matrix; means leave out classes that occur on neither side (mmsegmentation's IoUMetric)."""

    iou: Float[np.ndarray, " classes"]  # NaN for a class on neither side
    accuracy: Float[np.ndarray, " classes"]  # NaN for a class that the truth does not have
    present: Bool[np.ndarray, " classes"]
    miou: float
    mean_accuracy: float
    pixel_accuracy: float
    fw_iou: float


def metrics(confusion: Integer[np.ndarray, "classes classes"]) -> Metrics:
    """IoU and accuracy per class, their means, pixel accuracy and frequency-weighted IoU."""
    hit = np.diag(confusion).astype(float)
    truth, predicted = confusion.sum(1), confusion.sum(0)
    union = truth + predicted - hit
    with np.errstate(invalid="ignore", divide="ignore"):
        iou, accuracy = hit / union, hit / truth
        frequency = truth / truth.sum()
        present = union > 0
        return Metrics(
            iou=iou,
            accuracy=accuracy,
            present=present,
            miou=float(np.nanmean(iou)) if present.any() else float("nan"),
            mean_accuracy=float(np.nanmean(accuracy)) if truth.any() else float("nan"),
            pixel_accuracy=float(hit.sum() / truth.sum()),
            fw_iou=float(np.nansum(frequency * iou)) if truth.any() else float("nan"),
        )
