import dataclasses

import numpy as np
import pytest
import torch
from conftest import activations, make_pool

from nadpipe.circuit.attention import trace
from nadpipe.circuit.readout import coefficients, sum_pairs
from nadpipe.circuit.registers import find_sink, sink_shares, zero_neurons


def test_zeroing_in_closed_form_equals_zeroing_and_running_the_pool_again(pool):
    z = activations(pool, 1)
    token = (pool.tokens - 1) // 2
    zeroed = zero_neurons(z[0], token, pool)
    without = z.repeat(pool.neurons, 1, 1)  # one view per neuron
    neuron = torch.arange(pool.neurons)
    without[neuron, :, neuron] = 0
    view = trace(torch.cat([z, without]), pool)
    share = view.attention[:, :, token + 1].mean(1)
    embedding = sum_pairs(coefficients(view, pool.readout), pool.readout)
    change = (embedding[1:] - embedding[0]).norm(dim=1) / embedding[0].norm()
    np.testing.assert_allclose(zeroed.attention_drop, share[0] - share[1:], rtol=1e-3, atol=2e-6)
    np.testing.assert_allclose(zeroed.embedding_change, change, rtol=1e-3, atol=1e-5)


def planted(strength):
    """Return views in which neuron 5 is active only at the last token, and a pool whose heads all attend to it."""
    _, pool = make_pool(4, 64, 16, 3)
    names = ("query", "query_bias", "key", "key_bias", "positional_embedding")
    weights = {name: torch.zeros_like(getattr(pool, name)) for name in names}
    weights["query_bias"] += 1.0
    weights["key"][..., 5] = strength
    pool = dataclasses.replace(pool, **weights)
    z = activations(pool, 3) * 0.1
    z[..., 5] = 0
    z[:, 8, 5] = 2.0
    return z, pool


def test_the_planted_register_is_found():
    z, pool = planted(0.6)
    assert find_sink(sink_shares(spatial_attention(z, pool))) == 8
    drop = torch.stack([zero_neurons(view, 8, pool).attention_drop for view in z]).mean(0)
    assert drop.argmax() == 5
    assert drop[5] > 0.3
    assert drop[torch.arange(64) != 5].abs().max() < 1e-6
    z, pool = planted(0.0)
    assert find_sink(sink_shares(spatial_attention(z, pool))) is None


def spatial_attention(z, pool):
    """Return the attention of the spatial tokens in each view, mean over heads."""
    return trace(z, pool).attention.mean(1)[:, 1:]


def test_a_token_that_draws_attention_in_most_images_is_the_sink():
    attention = torch.full((4, 9), 0.05)
    assert find_sink(sink_shares(attention)) is None
    attention[:, 8] = 0.16
    assert find_sink(sink_shares(attention)) == 8
    assert find_sink(sink_shares(attention, factor=4.0)) is None
    attention[:2, 8] = 0.05  # in half of the images, which is not most
    assert sink_shares(attention)[8] == 0.5
    assert find_sink(sink_shares(attention)) is None
    attention[:2, 8] = 0.1  # more on average, but below the factor
    assert find_sink(sink_shares(attention)) is None


def objects(count, side, spread, width, seed=0):
    """Simulate attention that follows one object per image, near the centre: a bump on a weak, noisy ground."""
    generator = torch.Generator().manual_seed(seed)
    centre = ((side - 1) / 2 + spread * torch.randn(count, 2, 1, 1, generator=generator)).clamp(0, side - 1)
    axis = torch.arange(side, dtype=torch.float32)
    squared = (axis[:, None] - centre[:, 0]) ** 2 + (axis - centre[:, 1]) ** 2
    attention = (torch.exp(-squared / (2 * width**2)) + 0.05).flatten(1)
    attention = attention * torch.exp(0.2 * torch.randn(attention.shape, generator=generator))
    return attention / attention.sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("side", "spread", "width"), [(7, 0.8, 0.5), (7, 0.8, 0.8), (7, 1.2, 0.8), (12, 1.4, 0.9), (12, 1.4, 2)]
)
def test_attention_that_follows_central_objects_has_no_sink(side, spread, width):
    attention = objects(400, side, spread, width)
    mean = attention.mean(0)
    strongest = int(mean.argmax())
    assert mean[strongest] > 3 * mean.median()  # a sink by the mean over images
    assert (attention.argmax(1) == strongest).float().mean() < 0.3
    shares = sink_shares(attention)
    assert find_sink(shares) is None
    assert shares.max() < 0.3


@pytest.mark.parametrize(("token", "strength"), [(0, 5), (48, 5), (20, 200), (24, 200)])
def test_a_sink_beside_objects_is_found(token, strength):
    """In 80% of the images the sink draws `strength` times the median token: in a corner less than the objects draw."""
    attention = objects(400, 7, 1.2, 0.8)
    sunk = torch.arange(400) % 5 != 0
    attention[sunk, token] = attention[sunk, token].maximum(strength * attention.median(1).values[sunk])
    assert (int(attention.mean(0).argmax()) == token) == (strength > 5)
    assert find_sink(sink_shares(attention)) == token
    assert 0.7 < sink_shares(attention)[token] < 0.83
