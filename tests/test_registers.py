import dataclasses

import numpy as np
import torch
from conftest import activations, make_pool

from nadpipe.circuit import attention, registers


def embedded(z, pool):
    x = attention.tokens(z, pool)
    attention = attention.attention(x, pool)
    return attention[0], attention.sum_pairs(attention.coefficients(attention, x), pool)[0]


def test_zeroing_in_closed_form_equals_zeroing_and_running_the_pool_again(pool):
    z = activations(pool, 1)
    token = (pool.tokens - 1) // 2
    zeroed = registers.zero_neurons(z[0], token, pool)
    attention, embedding = embedded(z, pool)
    for neuron in range(pool.neurons):
        without = z.clone()
        without[..., neuron] = 0
        attention_without, embedding_without = embedded(without, pool)
        drop = (attention - attention_without)[:, token + 1].mean()
        change = (embedding_without - embedding).norm() / embedding.norm()
        np.testing.assert_allclose(zeroed.attention_drop[neuron], drop, rtol=1e-3, atol=2e-6)
        np.testing.assert_allclose(zeroed.embedding_change[neuron], change, rtol=1e-3, atol=1e-5)


def planted(strength):
    """A pool whose heads all look for neuron 5, which is on at the last token alone."""
    _, pool = make_pool(4, 64, 16, 3)
    weights = {name: torch.zeros_like(getattr(pool, name)) for name in ("q_weight", "q_bias", "k_weight", "k_bias")}
    weights["q_bias"] += 1.0
    weights["k_weight"][:, 5] = strength
    pool = dataclasses.replace(pool, **weights, positional_embedding=torch.zeros_like(pool.positional_embedding))
    z = activations(pool, 3) * 0.1
    z[..., 5] = 0
    z[:, 8, 5] = 2.0
    return z, pool


def test_the_planted_register_is_found():
    z, pool = planted(0.6)
    attention = attention.attention(attention.tokens(z, pool), pool).mean(0)
    assert registers.find_sink(attention) == 8
    drop = torch.stack([registers.zero_neurons(view, 8, pool).attention_drop for view in z]).mean(0)
    assert drop.argmax() == 5
    assert drop[5] > 0.3
    assert drop[torch.arange(64) != 5].abs().max() < 1e-6
    z, pool = planted(0.0)
    assert registers.find_sink(attention.attention(attention.tokens(z, pool), pool).mean(0)) is None


def test_a_token_that_draws_all_attention_is_the_sink():
    attention = torch.full((4, 10), 0.05)
    assert registers.find_sink(attention) is None
    attention[:, 9] = 0.16
    assert registers.find_sink(attention) == 8
    assert registers.find_sink(attention, factor=4.0) is None
    attention[:, 9], attention[:, 0] = 0.05, 0.9  # the pooled token is no sink
    assert registers.find_sink(attention) is None
