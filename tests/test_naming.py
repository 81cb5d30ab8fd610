import numpy as np
import pytest
import torch

from nadpipe.circuit.naming import activity_correlations, agreement, centre, correlations, nearest, normalise, spread


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


def test_agreement_and_chance_by_hand():
    named = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], float)
    agreeing, chance = agreement(np.array([0, 0, 1, 0]), named)
    assert agreeing == 0.5
    assert chance == pytest.approx(0.75 * 0.5 + 0.25 * 0.5)


def test_equal_images_have_no_spread_and_opposite_ones_twice_that_of_random_ones():
    embedding = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [0, 1]])
    top = torch.tensor([[0, 1], [0, 2], [0, 3]])
    assert spread(embedding, top).tolist() == pytest.approx([0, 2, 1])
    many = normalise(noise(400, 50))
    assert spread(many, torch.arange(400)[None]).item() == pytest.approx(1, abs=0.01)
