import numpy as np
import pandas as pd
import pytest

from nadpipe.circuit.intervals import jackknife_interval
from nadpipe.circuit.label_values import IGNORED
from nadpipe.circuit.metrics import (
    class_totals,
    compare_shares,
    confusion,
    confusion_cells,
    count_rare,
    mean_iou,
    mean_iou_without_one,
    mean_true_iou,
    metrics,
    pixel_accuracy,
    predicted_pixels,
    shares,
)


def test_metrics_of_a_case_worked_by_hand():
    truth = np.array([[0, 0, 0, 1], [1, 1, 2, IGNORED]])
    predicted = np.array([[0, 0, 1, 1], [1, 0, 0, 3]])
    matrix = confusion(truth, predicted, classes=5)
    assert matrix.tolist() == [[2, 1, 0, 0, 0], [1, 2, 0, 0, 0], [1, 0, 0, 0, 0], [0] * 5, [0] * 5]
    scores = metrics(matrix)
    assert scores.iou[:3].tolist() == pytest.approx([2 / 5, 2 / 4, 0])
    assert np.isnan(scores.iou[3:]).all()  # on neither side; predictions at ignored pixels do not count
    assert scores.present.tolist() == [True, True, True, False, False]
    assert scores.accuracy[:3].tolist() == pytest.approx([2 / 3, 2 / 3, 0])
    assert scores.miou == pytest.approx((0.4 + 0.5 + 0) / 3)
    assert scores.mean_accuracy == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert scores.pixel_accuracy == pytest.approx(4 / 7)
    assert scores.fw_iou == pytest.approx(3 / 7 * 0.4 + 3 / 7 * 0.5)


def test_a_class_that_is_only_predicted_counts_against_the_mean():
    scores = metrics(confusion(np.array([[0, 0]]), np.array([[0, 1]]), classes=2))
    assert scores.miou == pytest.approx((1 / 2 + 0) / 2)
    assert np.isnan(scores.accuracy[1])
    assert scores.mean_accuracy == pytest.approx(1 / 2)


def test_a_class_that_is_never_predicted_counts_against_both_means():
    scores = metrics(confusion(np.array([[0, 1]]), np.array([[0, 0]]), classes=3))
    assert scores.iou[:2].tolist() == [1 / 2, 0]
    assert scores.miou == pytest.approx(1 / 4)
    assert scores.mean_accuracy == pytest.approx((1 + 0) / 2)


def mmsegmentations_numbers(pairs, classes):
    """Return mIoU, mAcc and aAcc as IoUMetric does: sum areas from each image's histograms, then divide once."""
    areas = np.zeros((4, classes))
    for truth, predicted in pairs:
        truth, predicted = truth[truth != IGNORED], predicted[truth != IGNORED]
        bins = np.arange(classes + 1) - 0.5
        both, guess, true = (np.histogram(values, bins)[0] for values in (predicted[predicted == truth], predicted, truth))
        areas += [both, guess + true - both, guess, true]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nanmean(areas[0] / areas[1]), np.nanmean(areas[0] / areas[3]), areas[0].sum() / areas[3].sum()


def test_metrics_equal_those_of_mmsegmentation():
    rng = np.random.default_rng(2)
    pairs = [(rng.integers(-1, 7, (5, 8)), rng.integers(0, 9, (5, 8))) for _ in range(4)]
    scores = metrics(sum(confusion(truth, predicted, 10) for truth, predicted in pairs))
    expected = mmsegmentations_numbers(pairs, 10)
    assert (scores.miou, scores.mean_accuracy, scores.pixel_accuracy) == pytest.approx(expected)
    assert scores.present.tolist() == [True] * 9 + [False]


def test_the_truth_scores_one():
    truth = np.random.default_rng(0).integers(0, 4, (9, 11))
    scores = metrics(confusion(truth, truth, classes=4))
    assert (scores.miou, scores.pixel_accuracy, scores.mean_accuracy) == (1, 1, 1)
    assert scores.fw_iou == pytest.approx(1)


def test_confusions_of_parts_add_up():
    rng = np.random.default_rng(1)
    truth, predicted = rng.integers(-1, 4, (6, 8)), rng.integers(0, 4, (6, 8))
    summed = sum(confusion(truth[rows], predicted[rows], 4) for rows in (slice(0, 2), slice(2, 6)))
    assert (summed == confusion(truth, predicted, 4)).all()


def test_cells_are_the_nonzero_entries_of_the_confusion():
    rng = np.random.default_rng(1)
    truth, predicted = rng.integers(-1, 3, (6, 8)), rng.integers(0, 3, (6, 8))
    cells = confusion_cells(truth, predicted, 3)
    matrix = confusion(truth, predicted, 3)
    counted = {(cell["true_class"], cell["predicted_class"]): cell["pixels"] for cell in cells}
    unlabelled = {(IGNORED, guess): counted.pop((IGNORED, guess)) for guess in range(3)}
    assert counted == {(true, guess): matrix[true, guess] for true, guess in np.argwhere(matrix).tolist()}
    assert list(unlabelled.values()) == np.bincount(predicted[truth == IGNORED], minlength=3).tolist()
    assert confusion_cells(np.full((2, 2), IGNORED), np.ones((2, 2), int), 3) == [
        {"true_class": IGNORED, "predicted_class": 1, "pixels": 4}
    ]


def test_shares_are_of_all_pixels_and_are_compared_on_labelled_ones():
    truth = np.array([[0, 0, 1, IGNORED], [1, 1, 1, 1], [IGNORED] * 4])
    predicted = np.array([[0, 1, 1, 2], [1, 1, 1, 0], [2, 2, 2, 0]])
    cells = pd.DataFrame(
        [
            {"image_id": image * 2, **cell}
            for image in range(3)
            for cell in confusion_cells(truth[image : image + 1], predicted[image : image + 1], 3)
        ]
    )
    pixels = predicted_pixels(cells, np.array([0, 2, 4]), 3)
    assert pixels.tolist() == [[1, 2, 1], [1, 3, 0], [1, 0, 3]]
    assert shares(pixels).tolist() == [[0.25, 0.5, 0.25], [0.25, 0.75, 0], [0.25, 0, 0.75]]
    assert np.isnan(shares(np.zeros((1, 3), int))).all()
    totals = class_totals(cells, np.array([0, 2, 4]), 3)
    in_masks, error = compare_shares(totals)
    assert in_masks.tolist() == pytest.approx([2 / 3 / 2, (1 / 3 + 1) / 2, 0])
    assert error.tolist() == pytest.approx([(1 / 3 + 1 / 4) / 2, (1 / 3 + 1 / 4) / 2, 0])
    assert np.isnan(compare_shares(totals[2:])).all()


def drawn_cells(images, classes, seed, right=0.5):
    """Return confusions of images whose share of correct pixels differs from image to image."""
    rng = np.random.default_rng(seed)
    rows = []
    for image in range(images):
        truth = rng.integers(0, classes, (1, 40))
        guess = np.where(rng.random(truth.shape) < right + rng.uniform(-0.3, 0.3), truth, rng.integers(0, classes, truth.shape))
        rows += [{"image_id": image * 3, **cell} for cell in confusion_cells(truth, guess, classes)]
    return pd.DataFrame(rows)


def test_totals_of_images_sum_to_the_metrics_of_all():
    cells = drawn_cells(5, 4, seed=0)
    totals = class_totals(cells, np.arange(5) * 3, 4)
    matrix = np.zeros((4, 4), np.int64)
    np.add.at(matrix, (cells["true_class"], cells["predicted_class"]), cells["pixels"])
    assert mean_iou(totals.sum(0)) == pytest.approx(metrics(matrix).miou)
    one = cells[cells["image_id"] == 6]
    alone = np.zeros((4, 4), np.int64)
    np.add.at(alone, (one["true_class"], one["predicted_class"]), one["pixels"])
    assert mean_iou(totals)[2] == pytest.approx(metrics(alone).miou)
    assert np.isnan(mean_iou(np.zeros((3, 4), np.int64)))


def test_the_mean_iou_without_one_image_is_that_of_the_others():
    cells = drawn_cells(6, 3, seed=0)
    cells = cells[(cells["image_id"] == 9) | (cells["true_class"] != 2) & (cells["predicted_class"] != 2)]  # class 2: one image
    totals = class_totals(cells, np.arange(6) * 3, 3)
    others = [mean_iou(np.delete(totals, image, axis=0).sum(0)) for image in range(6)]
    np.testing.assert_allclose(mean_iou_without_one(totals), others)
    assert others[3] > max(others[:3] + others[4:])  # class 2, which methods get wrong, is not counted without image 3


def test_classes_in_fewer_than_five_masks_are_rare():
    truth = np.zeros((6, 5), np.int64)  # classes: in 6 masks, in 5, in 4, only predicted, on neither side
    truth[:, 0] = truth[:5, 1] = truth[:4, 2] = 9
    predicted = np.zeros((6, 5), np.int64)
    predicted[:, 3] = 2
    assert count_rare(np.stack([np.zeros((6, 5), np.int64), truth, predicted], axis=1)) == 2


def test_intervals_shrink_with_the_root_of_the_images_and_have_the_bootstraps_error():
    widths = []
    for images in (50, 200, 800):
        totals = class_totals(drawn_cells(images, 3, 7), np.arange(images) * 3, 3)
        low, high = jackknife_interval(float(mean_iou(totals.sum(0))), mean_iou_without_one(totals), 0.95)
        widths.append(high - low)
        assert low < mean_iou(totals.sum(0)) < high
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.35)
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.35)
    drawn = np.random.default_rng(0).integers(0, 800, (600, 800))
    assert widths[2] / 2 / 1.96 == pytest.approx(mean_iou(totals[drawn].sum(1)).std(), rel=0.1)


def test_a_stray_class_does_not_make_an_image_the_worst():
    truth = np.zeros((3, 100), int)
    truth[:, 50:] = 1
    stray, halved = truth[0].copy(), truth[1].copy()
    stray[0], halved[50:75] = 2, 0  # one pixel of a class that the truth lacks; half of a class
    nothing = np.full(100, IGNORED)
    images = [(truth[0], stray), (truth[1], halved), (nothing, stray)]
    cells = pd.DataFrame(
        [
            {"image_id": image, **cell}
            for image, (true, predicted) in enumerate(images)
            for cell in confusion_cells(true[None], predicted[None], 3)
        ]
    )
    totals = class_totals(cells, np.arange(3), 3)
    scores = mean_true_iou(totals)
    assert scores[:2].tolist() == pytest.approx([(49 / 50 + 1) / 2, (50 / 75 + 25 / 50) / 2])
    assert mean_iou(totals)[0] == pytest.approx((49 / 50 + 1 + 0) / 3)
    assert pixel_accuracy(totals)[:2].tolist() == [0.99, 0.75]
    assert np.isnan([scores[2], pixel_accuracy(totals)[2]]).all()
