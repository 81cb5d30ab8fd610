import dataclasses

import numpy as np
import torch
from conftest import activations, make_pool

from nadpipe.circuit.attention import trace
from nadpipe.circuit.readout import coefficients, sum_pairs
from nadpipe.circuit.registers import find_sink, zero_neurons


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
    assert find_sink(trace(z, pool).attention.mean(0)) == 8
    drop = torch.stack([zero_neurons(view, 8, pool).attention_drop for view in z]).mean(0)
    assert drop.argmax() == 5
    assert drop[5] > 0.3
    assert drop[torch.arange(64) != 5].abs().max() < 1e-6
    z, pool = planted(0.0)
    assert find_sink(trace(z, pool).attention.mean(0)) is None


def test_a_token_that_draws_all_attention_is_the_sink():
    attention = torch.full((4, 10), 0.05)
    assert find_sink(attention) is None
    attention[:, 9] = 0.16
    assert find_sink(attention) == 8
    assert find_sink(attention, factor=4.0) is None
    attention[:, 9], attention[:, 0] = 0.05, 0.9  # the pooled token is not a sink
    assert find_sink(attention) is None
