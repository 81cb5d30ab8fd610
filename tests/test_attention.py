from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import activations
from open_clip.model import resize_pos_embed
from reference import dense_contributions

from nadpipe.circuit import attention
from nadpipe.circuit.naming import normalise
from nadpipe.circuit.readout import (
    attended_tokens,
    coefficients,
    pair_constants,
    pair_scores,
    pooled_values,
    project_attended,
    residual,
    sum_pairs,
    token_scores,
    token_values,
    write_vectors,
)


def test_every_pair_equals_the_dense_tensor(pool):
    z = activations(pool, 3)
    dense, _, _ = dense_contributions(z, pool)
    coefficient = coefficients(attention.trace(z, pool), pool.readout)
    constant = pair_constants(pool.readout)
    for head in range(pool.heads):
        factored = coefficient[:, head, :, None] * write_vectors(pool.readout, head) + constant[head]
        np.testing.assert_allclose(factored, dense[:, head], rtol=1e-4, atol=1e-5)


def test_pairs_sum_to_the_embedding_of_open_clip(module_and_pool):
    module, pool = module_and_pool
    z = activations(pool, 5)
    coefficient = coefficients(attention.trace(z, pool), pool.readout)
    picture = z.transpose(1, 2).unflatten(2, (pool.grid, pool.grid))
    embedding = module(picture)
    summed = sum_pairs(coefficient, pool.readout)
    assert residual(summed, embedding).max() < 1e-5
    dense, _, total = dense_contributions(z, pool)
    np.testing.assert_allclose(dense.sum((1, 2)), total, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(summed, total, rtol=1e-4, atol=1e-5)


def test_a_pool_needs_no_scale_gain_or_rest(pool):
    view = attention.trace(activations(pool, 2), pool)
    assert view.scale is None
    assert view.gain is None
    assert view.rest is None


def test_attention_sums_to_one_over_tokens_for_every_head(pool):
    share = attention.trace(activations(pool, 2), pool).attention
    assert share.shape == (2, pool.heads, pool.tokens)
    torch.testing.assert_close(share.sum(2), torch.ones(2, pool.heads))


def test_queries_and_keys_of_token_zero_give_the_pooled_attention(pool):
    view = attention.trace(activations(pool, 2), pool)
    query, key = attention.token_queries_and_keys(view.activation, pool)
    score = torch.einsum("vhd,vhtd->vht", query[:, :, 0], key) * query.shape[-1] ** -0.5
    torch.testing.assert_close(score.softmax(2), view.attention, rtol=1e-4, atol=1e-6)


def test_pooled_values_are_the_attended_token_values_without_bias(pool):
    view = attention.trace(activations(pool, 2), pool)
    attended = (view.attention[..., None] * token_values(view.activation, pool.readout)).sum(2)
    pooled = pooled_values(coefficients(view, pool.readout), pool.readout)
    torch.testing.assert_close(pooled + pool.readout.value_bias, attended, rtol=1e-4, atol=1e-5)


def test_the_mean_of_attended_values_is_projected_once(pool):
    view = attention.trace(activations(pool, 4), pool)
    expected = (view.attention[..., None] * token_values(view.activation, pool.readout)).mean(0)
    attended = attended_tokens(view.attention, view.activation) / 4
    projected = project_attended(attended, view.attention.mean(0), pool.readout)
    torch.testing.assert_close(projected, expected, rtol=1e-4, atol=1e-5)


def test_scores_of_pairs_and_of_tokens_sum_to_the_cosine(module_and_pool):
    module, pool = module_and_pool
    z = activations(pool, 1)
    embedding = module(z.transpose(1, 2).unflatten(2, (pool.grid, pool.grid)))
    text = normalise(torch.randn(3, embedding.shape[1], generator=torch.Generator().manual_seed(3)))
    cosine = normalise(embedding) @ text.T
    view = attention.trace(z, pool)
    coefficient = coefficients(view, pool.readout)[0]
    pairs, tokens = pair_scores(coefficient, text, pool.readout), token_scores(view, text, pool.readout)
    assert pairs.shape == (3, pool.heads, pool.neurons)
    assert tokens.shape == (3, pool.tokens)
    torch.testing.assert_close(pairs.sum((1, 2)), cosine[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens.sum(1), cosine[0], rtol=1e-4, atol=1e-5)
    score = pair_scores(coefficient, text[:1], pool.readout)[0, 0, 0]
    written = coefficient[0, 0] * write_vectors(pool.readout, 0)[0] + pair_constants(pool.readout)[0]
    assert score == pytest.approx(float(written @ text[0] / embedding.norm()), rel=1e-3, abs=1e-6)


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
    summed = sum_pairs(coefficients(attention.trace(z, pool), pool.readout), pool.readout)
    np.testing.assert_allclose(summed, total, rtol=1e-4, atol=1e-5)


def test_axes_are_checked(pool):
    with pytest.raises(Exception, match="attention"):
        attention.attention(torch.zeros(3, pool.neurons), pool)
