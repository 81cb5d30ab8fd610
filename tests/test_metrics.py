import numpy as np
import pytest

from nadpipe.metrics import confusion, metrics


def test_metrics_of_a_case_worked_by_hand():
    truth = np.array([[0, 0, 0, 1], [1, 1, 2, 255]])
    predicted = np.array([[0, 0, 1, 1], [1, 0, 0, 3]])
    matrix = confusion(truth, predicted, classes=5, ignore=255)
    assert matrix.tolist() == [[2, 1, 0, 0, 0], [1, 2, 0, 0, 0], [1, 0, 0, 0, 0], [0] * 5, [0] * 5]
    scores = metrics(matrix)
    assert scores.iou[:3].tolist() == pytest.approx([2 / 5, 2 / 4, 0])
    assert np.isnan(scores.iou[3:]).all()  # on neither side
    assert scores.present.tolist() == [True, True, True, False, False]
    assert scores.miou == pytest.approx((0.4 + 0.5 + 0) / 3)
    assert scores.mean_accuracy == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert scores.pixel_accuracy == pytest.approx(4 / 7)
    assert scores.fw_iou == pytest.approx(3 / 7 * 0.4 + 3 / 7 * 0.5)


def test_a_class_that_is_only_predicted_counts_against_the_mean():
    scores = metrics(confusion(np.array([[0, 0]]), np.array([[0, 1]]), classes=2, ignore=255))
    assert scores.miou == pytest.approx((1 / 2 + 0) / 2)
    assert np.isnan(scores.accuracy[1])
    assert scores.mean_accuracy == pytest.approx(1 / 2)


def test_the_truth_scores_one():
    truth = np.random.default_rng(0).integers(0, 4, (9, 11))
    scores = metrics(confusion(truth, truth, classes=4, ignore=255))
    assert (scores.miou, scores.pixel_accuracy, scores.mean_accuracy) == (1, 1, 1)
    assert scores.fw_iou == pytest.approx(1)


def test_confusions_of_parts_add_up():
    rng = np.random.default_rng(1)
    truth, predicted = rng.integers(0, 4, (2, 6, 8))
    parts = sum(confusion(truth[at], predicted[at], 4, 3) for at in (slice(0, 2), slice(2, 6)))
    assert (parts == confusion(truth, predicted, 4, 3)).all()
