import numpy as np
import pytest
import torch
from conftest import activations

from nadpipe.circuit import activity
from nadpipe.circuit.attention import token_scores, trace
from nadpipe.circuit.naming import normalise
from nadpipe.circuit.readout import coefficients, pair_constants, pair_scores, write_vectors


def test_the_images_at_both_ends_are_those_of_a_sort():
    value = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    order = value.argsort(dim=0).T
    ends = activity.end_images(value, 3)
    assert ends[:, :3].tolist() == order.flip(1)[:, :3].tolist()
    assert ends[:, 3:].tolist() == order[:, :3].tolist()
    assert activity.end_images(value[:2], 3).shape == (5, 4)  # fewer images than asked for


def test_histograms_are_numpys():
    value = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    value[:, 3] = 2.5
    counts = activity.histogram(value, value.amin(0), value.amax(0), 8)
    for unit in range(3):
        expected, _ = np.histogram(value[:, unit].numpy(), bins=8)
        np.testing.assert_allclose(counts[unit], expected, atol=1)  # a value on an edge may round to either side
    assert counts.sum(1).tolist() == [200] * 4
    assert counts[3, 0] == 200


def test_firing_of_the_spatial_tokens_and_the_pooled_token_sum_to_the_coefficient(pool):
    views = trace(activations(pool, 2), pool)
    x, attention = views.activation[1], views.attention[1]
    coefficient = coefficients(views, pool.readout)[1]
    head = torch.tensor([0, pool.heads - 1])
    neuron = torch.tensor([pool.neurons - 1, 0])
    maps = activity.firing(attention, x, head, neuron)
    pooled = attention[head, 0] * x[0, neuron]
    torch.testing.assert_close(maps.sum(1) + pooled, coefficient[head, neuron])


def test_maps_of_bytes_are_within_half_a_step():
    maps = torch.randn(3, 6, generator=torch.Generator().manual_seed(2)) * torch.tensor([1.0, 1e-4, 0])[:, None]
    steps, scale = activity.as_bytes(maps)
    assert scale.tolist() == maps.abs().amax(1).tolist()
    assert ((steps.float() / 127 * scale[:, None] - maps).abs() <= scale[:, None] / 254 + 1e-12).all()


def test_scores_of_pairs_and_of_tokens_sum_to_the_cosine(module_and_pool):
    module, pool = module_and_pool
    z = activations(pool, 1)
    embedding = module(z.transpose(1, 2).unflatten(2, (pool.grid, pool.grid)))
    text = normalise(torch.randn(3, embedding.shape[1], generator=torch.Generator().manual_seed(3)))
    cosine = normalise(embedding) @ text.T
    view = trace(z, pool)
    coefficient = coefficients(view, pool.readout)[0]
    pairs, tokens = pair_scores(coefficient, text, pool.readout), token_scores(view.activation[0], text, pool)
    assert pairs.shape == (3, pool.heads, pool.neurons)
    assert tokens.shape == (3, pool.tokens)
    torch.testing.assert_close(pairs.sum((1, 2)), cosine[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens.sum(1), cosine[0], rtol=1e-4, atol=1e-5)
    score = pair_scores(coefficient, text[:1], pool.readout)[0, 0, 0]
    written = coefficient[0, 0] * write_vectors(pool.readout, 0)[0] + pair_constants(pool.readout)[0]
    assert score == pytest.approx(float(written @ text[0] / embedding.norm()), rel=1e-3, abs=1e-6)
