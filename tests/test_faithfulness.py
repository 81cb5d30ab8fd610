import numpy as np
import pytest
import torch

from nadpipe.circuit.naming import activity_correlations, agreement, correlations, normalise, spread
from nadpipe.data.labels import label_texts
from nadpipe.errors import NadpipeError


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_correlations_are_numpys_and_zero_where_nothing_varies():
    coefficient, truth = noise(30, 4), (noise(30, 3, seed=1) > 0).float()
    coefficient[:, 1] = 5
    found = correlations(coefficient, truth)
    expected = np.corrcoef(coefficient.numpy().T, truth.numpy().T)[:4, 4:]
    np.testing.assert_allclose(found[[0, 2, 3]], expected[[0, 2, 3]], atol=1e-6)
    assert (found[1] == 0).all()


def test_activity_correlations_are_those_with_the_similarity_of_image_and_text():
    coefficient, embedding, text = noise(40, 5), normalise(noise(40, 7, seed=1)), normalise(noise(6, 7, seed=2))
    found = activity_correlations(coefficient, embedding, text)
    expected = np.corrcoef(coefficient.numpy().T, (embedding @ text.T).numpy().T)[:5, 5:]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    coefficient[:, 0] = 1
    assert (activity_correlations(coefficient, embedding, text)[0] == 0).all()


def test_agreement_and_chance_by_hand():
    named = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], float)
    found, chance = agreement(np.array([0, 0, 1, 0]), named)
    assert found == 0.5
    assert chance == pytest.approx(0.75 * 0.5 + 0.25 * 0.5)


def test_equal_images_have_no_spread_and_opposite_ones_twice_that_of_random_ones():
    embedding = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [0, 1]])
    top = torch.tensor([[0, 1], [0, 2], [0, 3]])
    assert spread(embedding, top).tolist() == pytest.approx([0, 2, 1])
    many = normalise(noise(400, 50))
    assert spread(many, torch.arange(400)[None]).item() == pytest.approx(1, abs=0.01)


def test_labels_are_texts_and_synsets_are_imagenets_names():
    assert label_texts(["grass", "red_fox", "a  b"]) == ["grass", "red fox", "a b"]
    assert label_texts(["n01440764", "n02690373"]) == ["tench", "airliner"]
    with pytest.raises(NadpipeError, match="label n99999999: not one of ImageNet's 1,000 classes"):
        label_texts(["n01440764", "n99999999"])
