import numpy as np
import pytest
import torch
from conftest import activations

from nadpipe import attnpool, explorer


def test_the_images_at_both_ends_are_those_of_a_sort():
    value = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    order = value.argsort(dim=0).T
    ends = explorer.end_images(value, 3)
    assert ends[:, :3].tolist() == order.flip(1)[:, :3].tolist()
    assert ends[:, 3:].tolist() == order[:, :3].tolist()
    assert explorer.end_images(value[:2], 3).shape == (5, 4)  # fewer images than asked for


def test_histograms_are_numpys():
    value = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    value[:, 3] = 2.5
    counts = explorer.histogram(value, value.amin(0), value.amax(0), 8)
    for unit in range(3):
        expected, _ = np.histogram(value[:, unit].numpy(), bins=8)
        np.testing.assert_allclose(counts[unit], expected, atol=1)  # a value on an edge may round to either side
    assert counts.sum(1).tolist() == [200] * 4
    assert counts[3, 0] == 200


def test_where_a_pair_fires_and_the_pooled_token_sum_to_its_coefficient(pool):
    x = attnpool.tokens(activations(pool, 2), pool)
    attention = attnpool.attention(x, pool)
    coefficient = attnpool.coefficients(attention, x)[1]
    head = torch.tensor([0, pool.heads - 1])
    neuron = torch.tensor([pool.neurons - 1, 0])
    maps = explorer.firing(attention[1], x[1], head, neuron)
    pooled = attention[1, head, 0] * x[1, 0, neuron]
    torch.testing.assert_close(maps.sum(1) + pooled, coefficient[head, neuron])


def test_maps_of_bytes_are_within_half_a_step():
    maps = torch.randn(3, 6, generator=torch.Generator().manual_seed(2)) * torch.tensor([1.0, 1e-4, 0])[:, None]
    steps, scale = explorer.as_bytes(maps)
    assert scale.tolist() == maps.abs().amax(1).tolist()
    assert ((steps.float() / 127 * scale[:, None] - maps).abs() <= scale[:, None] / 254 + 1e-12).all()


def test_what_pairs_and_tokens_add_sums_to_the_cosine(module_and_pool):
    module, pool = module_and_pool
    z = activations(pool, 1)
    own = module(z.transpose(1, 2).unflatten(2, (pool.grid, pool.grid)))
    text = torch.nn.functional.normalize(torch.randn(3, own.shape[1], generator=torch.Generator().manual_seed(3)), dim=1)
    cosine = torch.nn.functional.normalize(own, dim=1) @ text.T
    x = attnpool.tokens(z, pool)
    coefficient = attnpool.coefficients(attnpool.attention(x, pool), x)[0]
    pairs, tokens = attnpool.pair_scores(coefficient, text, pool), attnpool.token_scores(x[0], text, pool)
    assert pairs.shape == (3, pool.heads, pool.neurons)
    assert tokens.shape == (3, pool.tokens)
    torch.testing.assert_close(pairs.sum((1, 2)), cosine[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens.sum(1), cosine[0], rtol=1e-4, atol=1e-5)
    one = attnpool.pair_scores(coefficient, text[:1], pool)[0, 0, 0]
    written = coefficient[0, 0] * attnpool.write_vectors(pool, 0)[0] + attnpool.pair_constants(pool)[0]
    assert one == pytest.approx(float(written @ text[0] / own.norm()), rel=1e-3, abs=1e-6)
