from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import activations
from open_clip.model import resize_pos_embed
from reference import dense_contributions

from nadpipe.circuit import attention


def decompose(z, pool):
    x = attention.tokens(z, pool)
    attention = attention.attention(x, pool)
    return x, attention, attention.coefficients(attention, x)


def test_every_pair_equals_the_dense_tensor(pool):
    z = activations(pool, 3)
    dense, _, _ = dense_contributions(z, pool)
    _, _, coefficient = decompose(z, pool)
    constant = attention.pair_constants(pool)
    for head in range(pool.heads):
        factored = coefficient[:, head, :, None] * attention.write_vectors(pool, head) + constant[head]
        np.testing.assert_allclose(factored, dense[:, head], rtol=1e-4, atol=1e-5)


def test_pairs_sum_to_what_open_clip_computes(module_and_pool):
    module, pool = module_and_pool
    z = activations(pool, 5)
    _, _, coefficient = decompose(z, pool)
    picture = z.transpose(1, 2).unflatten(2, (pool.grid, pool.grid))
    embedding = module(picture)
    summed = attention.sum_pairs(coefficient, pool)
    assert attention.residual(summed, embedding).max() < 1e-5
    dense, _, total = dense_contributions(z, pool)
    np.testing.assert_allclose(dense.sum((1, 2)), total, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(summed, total, rtol=1e-4, atol=1e-5)


def test_residual_says_how_far_off_a_wrong_embedding_is(pool):
    embedding = torch.ones(2, len(pool.c_bias))
    assert attention.residual(embedding * 1.01, embedding) == pytest.approx([0.01, 0.01], rel=1e-3)


def test_attention_is_a_share_of_every_token_and_head(pool):
    _, attention, _ = decompose(activations(pool, 2), pool)
    assert attention.shape == (2, pool.heads, pool.tokens)
    torch.testing.assert_close(attention.sum(2), torch.ones(2, pool.heads))


def test_queries_and_keys_of_token_zero_give_the_pooled_attention(pool):
    x, attention, _ = decompose(activations(pool, 2), pool)
    query, key = attention.token_queries_and_keys(x, pool)
    score = torch.einsum("vhd,vhtd->vht", query[:, :, 0], key) * query.shape[-1] ** -0.5
    torch.testing.assert_close(score.softmax(2), attention, rtol=1e-4, atol=1e-6)


def test_pooled_values_are_the_attended_token_values_without_bias(pool):
    x, attention, coefficient = decompose(activations(pool, 2), pool)
    attended = (attention[..., None] * attention.token_values(x, pool)).sum(2)
    bias = pool.v_bias.unflatten(0, (pool.heads, -1))
    torch.testing.assert_close(attention.pooled_values(coefficient, pool) + bias, attended, rtol=1e-4, atol=1e-5)


def test_the_mean_of_attended_values_is_projected_once(pool):
    x, attention, _ = decompose(activations(pool, 4), pool)
    expected = (attention[..., None] * attention.token_values(x, pool)).mean(0)
    attended = attention.attended_tokens(attention, x) / 4
    torch.testing.assert_close(attention.project_attended(attended, attention.mean(0), pool), expected, rtol=1e-4, atol=1e-5)


def test_positions_are_resized_as_open_clip_resizes_them(pool):
    resized = attention.at_grid(pool, 2 * pool.grid)
    assert resized.grid == 2 * pool.grid
    state = {"visual.positional_embedding": pool.positional_embedding.clone()}
    resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=(2 * pool.grid,) * 2)))
    torch.testing.assert_close(resized.positional_embedding, state["visual.positional_embedding"])
    assert attention.at_grid(pool, pool.grid) is pool


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_constant_image_is_decomposed_like_any_other(pool, value):
    z = torch.full((1, pool.tokens - 1, pool.neurons), value)
    _, _, total = dense_contributions(z, pool)
    np.testing.assert_allclose(attention.sum_pairs(decompose(z, pool)[2], pool), total, rtol=1e-4, atol=1e-5)


def test_axes_are_checked(pool):
    with pytest.raises(Exception, match="attention"):
        attention.attention(torch.zeros(3, pool.neurons), pool)
