import numpy as np
import pytest
import torch

from nadpipe.circuit.naming import (
    activity_correlations,
    agreement,
    centre,
    correlations,
    nearest,
    normalise,
    spread,
    standardised_texts,
    word_shares,
)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rows_have_unit_length_and_zero_rows_stay_zero():
    vector = noise(2, 3, 5)
    vector[1, 2] = 0
    length = normalise(vector).norm(dim=2)
    torch.testing.assert_close(length, torch.tensor([[1.0, 1, 1], [1, 1, 0]]))
    torch.testing.assert_close(normalise(vector)[0, 0] * vector[0, 0].norm(), vector[0, 0])


def test_centring_subtracts_the_mean_and_restores_length():
    gap = torch.tensor([5.0, 0.0, 0.0, 0.0])  # shared by all texts
    embedding = normalise(normalise(noise(6, 4)) + gap)
    centred = centre(embedding, embedding)
    torch.testing.assert_close(centred.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(centred, normalise(embedding - embedding.mean(0)))
    assert centre(embedding[:1], embedding[:1]).norm() == 0


def test_texts_may_be_centred_on_another_set():
    embedding, reference = normalise(noise(2, 4)), normalise(noise(9, 4, seed=1))
    torch.testing.assert_close(centre(embedding, reference), normalise(embedding - reference.mean(0)))


def test_nearest_texts_come_best_first():
    direction, text = torch.eye(3)[:2], normalise(torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 1], [-1, 0, 0]]))
    cosine, index = nearest(direction, text, 2)
    assert index[0].tolist() == [0, 1]
    assert cosine[0].tolist() == pytest.approx([1, 0.5**0.5])
    assert nearest(direction, text, 9)[0].shape == (2, 4)


def test_correlations_equal_those_of_numpy_and_are_zero_without_variation():
    coefficient, truth = noise(30, 4), (noise(30, 3, seed=1) > 0).float()
    coefficient[:, 1] = 5
    correlation = correlations(coefficient, truth)
    varying = [0, 2, 3]
    expected = np.corrcoef(coefficient[:, varying].numpy().T, truth.numpy().T)[:3, 3:]
    np.testing.assert_allclose(correlation[varying], expected, atol=1e-6)
    assert (correlation[1] == 0).all()


def test_activity_correlations_are_those_with_the_similarity_of_image_and_text():
    coefficient, embedding, text = noise(40, 5), normalise(noise(40, 7, seed=1)), normalise(noise(6, 7, seed=2))
    correlation = activity_correlations(coefficient, embedding, text)
    expected = np.corrcoef(coefficient.numpy().T, (embedding @ text.T).numpy().T)[:5, 5:]
    np.testing.assert_allclose(correlation, expected, atol=1e-5)
    coefficient[:, 0] = 1
    assert (activity_correlations(coefficient, embedding, text)[0] == 0).all()


def test_covariances_rank_texts_as_correlations_do():
    """Names of sums of units follow from the covariances of the units, because these are linear in the coefficient."""
    coefficient, embedding, text = noise(40, 5), normalise(noise(40, 7, seed=1)), normalise(noise(6, 7, seed=2))
    weight = noise(3, 5, seed=3)
    covariance = weight @ (coefficient.T @ (embedding - embedding.mean(0)))
    sums = coefficient @ weight.T
    expected = activity_correlations(sums, embedding, text)
    norm = (sums - sums.mean(0)).norm(dim=0)
    torch.testing.assert_close(covariance @ standardised_texts(embedding, text).T / norm[:, None], expected)


def test_a_name_scores_the_share_of_its_words_that_are_right():
    shares = word_shares(["fish", "red fish", "fish on sand", "a fish in the red sky", "on", ""], ["fish", "red"])
    assert shares.tolist() == [[1, 0], [0.5, 0.5], [0.5, 0], [1 / 3, 1 / 3], [0, 0], [0, 0]]


def test_agreement_is_the_mean_score_of_the_selected_attributes():
    score = np.array([[1, 0], [0, 1], [0.5, 0.5], [0, 0]])
    measured = agreement(np.array([0, 0, 1, 0]), score)
    assert measured.mean == pytest.approx(1.5 / 4)
    # residuals 0.625, -0.375, -0.375 of attribute 0 and 0.125 of attribute 1, over 4 units
    np.testing.assert_allclose(measured.influence, [-0.125 / 4, 0.125 / 4])
    low, high = measured.interval(0.95)
    assert high - measured.mean == pytest.approx(measured.mean - low)
    assert high - measured.mean == pytest.approx(12.7062 * np.sqrt(2 * 2 * (0.125 / 4) ** 2), rel=1e-4)
    assert np.isnan(agreement(np.array([0, 0, 0, 0]), score).interval(0.95)).all()


def test_the_difference_to_itself_is_zero_and_certain():
    rng = np.random.default_rng(0)
    measured = agreement(rng.integers(0, 6, 50), rng.random((50, 6)))
    assert (measured - measured).mean == 0
    assert (measured - measured).interval(0.95) == (0, 0)


def test_the_interval_covers_the_mean_of_attributes_that_are_right_or_wrong_together():
    """An interval that took units as independent would cover it rarely: units of one attribute share their score."""
    rng = np.random.default_rng(0)
    covered = naive = 0
    for _ in range(400):
        right = rng.beta(2, 1, 25)  # of the attributes; mean 2/3
        selected = np.repeat(np.arange(25), rng.integers(10, 60, 25))
        value = (rng.random(len(selected)) < right[selected]).astype(float)
        measured = agreement(selected, np.eye(25)[selected] * value[:, None])
        low, high = measured.interval(0.95)
        covered += low <= 2 / 3 <= high
        naive += abs(measured.mean - 2 / 3) <= 1.96 * value.std() / np.sqrt(len(value))
    assert covered >= 0.92 * 400
    assert naive < 0.7 * 400


def test_equal_images_have_no_spread_and_opposite_ones_twice_that_of_random_ones():
    embedding = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [0, 1]])
    top = torch.tensor([[0, 1], [0, 2], [0, 3]])
    assert spread(embedding, top).tolist() == pytest.approx([0, 2, 1])
    many = normalise(noise(400, 50))
    assert spread(many, torch.arange(400)[None]).item() == pytest.approx(1, abs=0.01)
