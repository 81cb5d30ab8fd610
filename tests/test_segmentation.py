import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import activations, make_pool
from reference import cosine, dense_contributions

from nadpipe import attnpool, segmentation, texts
from nadpipe.texts import Selection

TEXTS, K = 3, 5


@pytest.fixture
def query(pool):
    generator = torch.Generator().manual_seed(4)
    text = texts.unit(torch.randn(TEXTS, len(pool.c_bias), generator=generator))
    k = min(K, pool.heads * pool.neurons)
    chosen = torch.stack([torch.randperm(pool.heads * pool.neurons, generator=generator)[:k] for _ in range(TEXTS)])
    selection = Selection(torch.zeros(TEXTS, k), chosen // pool.neurons, chosen % pool.neurons)
    x = attnpool.tokens(activations(pool, 6, seed=9), pool)
    value_mean = (attnpool.attention(x, pool)[..., None] * attnpool.token_values(x, pool)).mean(0)
    pairs = segmentation.selection_matrix(selection, pool.heads, pool.neurons)
    return segmentation.Query(pool, text, pairs, k, value_mean, sink=None), selection


def gathered(z, query, selection, token):
    """The published form: one term per text, token and selected pair, from the dense token contributions."""
    views, spatial, _ = z.shape
    logits = np.zeros((views, TEXTS, spatial))
    for view in range(views):
        for p in range(TEXTS):
            for t in range(spatial):
                for head, neuron in zip(selection.head[p].tolist(), selection.neuron[p].tolist(), strict=True):
                    similarity = cosine(token[view, head, t + 1], query.text[p].numpy())
                    logits[view, p, t] += z[view, t, neuron].item() * similarity / query.k
    return logits


def test_nad_equals_the_gather_over_selected_pairs(pool, query):
    query, selection = query
    z = activations(pool, 2)
    _, token, _ = dense_contributions(z, pool)
    np.testing.assert_allclose(segmentation.nad(z, query), gathered(z, query, selection, token), rtol=1e-3, atol=1e-5)


def test_nad_centred_takes_the_mean_over_discovery_off_every_token(pool, query):
    query, selection = query
    z = activations(pool, 2)
    _, token, _ = dense_contributions(z, pool)
    _, discovery, _ = dense_contributions(activations(pool, 6, seed=9), pool)
    expected = gathered(z, query, selection, token - discovery.mean(0))
    np.testing.assert_allclose(segmentation.nad_centred(z, query), expected, rtol=2e-3, atol=2e-4)


def test_the_sink_is_replaced_in_both_maps_before_they_are_multiplied():
    _, pool = make_pool(4, 64, 16, 3)
    generator = torch.Generator().manual_seed(4)
    text = texts.unit(torch.randn(TEXTS, 16, generator=generator))
    chosen = torch.randint(0, 64, (TEXTS, K), generator=generator).sort(dim=1).values
    selection = Selection(torch.zeros(TEXTS, K), torch.arange(K).expand(TEXTS, K) % 4, chosen)
    pairs = segmentation.selection_matrix(selection, 4, 64)
    z = activations(pool, 1)
    _, token, _ = dense_contributions(z, pool)
    logits = segmentation.nad(z, segmentation.Query(pool, text, pairs, K, torch.zeros(4, 10, 16), sink=8))
    neighbours = (4, 5, 7)  # north-west, north and west of the last token of 3 × 3
    for p in range(TEXTS):
        total = 0.0
        for head in range(4):
            similarity = np.mean([cosine(token[0, head, t + 1], text[p].numpy()) for t in neighbours])
            own = chosen[p][selection.head[p] == head]
            total += similarity * np.mean([z[0, t, own].sum().item() for t in neighbours]) / K
        assert logits[0, p, 8] == pytest.approx(total, rel=1e-3)
    plain = segmentation.nad(z, segmentation.Query(pool, text, pairs, K, torch.zeros(4, 10, 16), sink=None))
    torch.testing.assert_close(logits[:, :, :8], plain[:, :, :8])


def test_attention_sums_to_the_cosine_of_the_embedding(pool, query):
    query, _ = query
    z = activations(pool, 2)
    _, token, total = dense_contributions(z, pool)
    logits = segmentation.attention(z, query)
    inner = token.sum(1) @ query.text.numpy().T.astype(float)
    scale = pool.tokens / np.linalg.norm(total, axis=1)
    np.testing.assert_allclose(logits, inner[:, 1:].transpose(0, 2, 1) * scale[:, None, None], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        (inner.sum(1) / np.linalg.norm(total, axis=1)[:, None]),
        F.normalize(torch.tensor(total), dim=1) @ query.text.double().T,
        rtol=1e-6,
        atol=1e-9,
    )


def test_maskclip_is_the_pool_without_attention(pool, query):
    query, _ = query
    z = activations(pool, 2)
    for t in range(pool.tokens - 1):
        embedding = (z[:, t] @ pool.v_weight.T + pool.v_bias) @ pool.c_weight.T + pool.c_bias
        expected = F.cosine_similarity(embedding[:, None], query.text[None], dim=2)
        torch.testing.assert_close(segmentation.maskclip(z, query)[:, :, t], expected, rtol=1e-4, atol=1e-5)


def test_sclip_mixes_values_by_self_attention(pool, query):
    query, _ = query
    z = activations(pool, 1)
    x = attnpool.tokens(z, pool)[0, 1:]
    width = pool.neurons // pool.heads
    mixed = []
    for head in range(pool.heads):
        rows = slice(head * width, (head + 1) * width)
        q = x @ pool.q_weight[rows].T + pool.q_bias[rows]
        k = x @ pool.k_weight[rows].T + pool.k_bias[rows]
        v = x @ pool.v_weight[rows].T + pool.v_bias[rows]
        mix = (q @ q.T / width**0.5).softmax(1) + (k @ k.T / width**0.5).softmax(1)
        mixed.append(mix @ v)
    embedding = torch.cat(mixed, 1) @ pool.c_weight.T + pool.c_bias
    expected = F.cosine_similarity(embedding[:, None], query.text[None], dim=2).T
    torch.testing.assert_close(segmentation.sclip(z, query)[0], expected, rtol=1e-4, atol=1e-5)


def test_every_method_gives_one_map_a_text(pool, query):
    query, _ = query
    for method in segmentation.METHODS.values():
        logits = method(activations(pool, 2), query)
        assert logits.shape == (2, TEXTS, pool.tokens - 1)
        assert torch.isfinite(logits).all()


def test_black_images_segment_without_division_by_zero():
    _, pool = make_pool(2, 8, 12, 2)
    silent = {name: torch.zeros_like(getattr(pool, name)) for name in ("v_bias", "c_bias", "positional_embedding")}
    pool = attnpool.AttentionPool(**{**vars(pool), **silent})
    pairs = segmentation.selection_matrix(
        Selection(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long)), 2, 8
    )
    query = segmentation.Query(pool, texts.unit(torch.ones(1, 12)), pairs, 1, torch.zeros(2, 5, 4), sink=None)
    for name in ("nad", "nad_centred", "maskclip", "sclip"):
        assert (segmentation.METHODS[name](torch.zeros(1, 4, 8), query) == 0).all()


def test_a_token_that_draws_all_attention_is_the_sink():
    attention = torch.full((4, 10), 0.05)
    assert segmentation.find_sink(attention) is None
    attention[:, 9] = 0.5
    assert segmentation.find_sink(attention) == 8
    attention[:, 9], attention[:, 0] = 0.05, 0.9  # the pooled token is no sink
    assert segmentation.find_sink(attention) is None


def test_the_sink_takes_the_mean_of_its_west_north_and_north_west():
    logits = torch.arange(9.0).view(1, 1, 3, 3)
    mended = segmentation.replace_sink(logits, 8)
    assert mended[0, 0, 2, 2] == pytest.approx((7 + 5 + 4) / 3)
    assert mended.flatten()[:8].tolist() == logits.flatten()[:8].tolist()
    assert segmentation.replace_sink(logits, 2)[0, 0, 0, 2] == 1  # top row: west alone
    assert segmentation.replace_sink(logits, 0)[0, 0, 0, 0] == 2  # corner: east and south
    assert segmentation.replace_sink(logits, None) is logits


def test_crops_are_averaged_where_they_overlap():
    logits = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    merged = segmentation.merge_views(logits, [0, 0], [0, 2], crop=4, height=4, width=6)
    assert merged.shape == (1, 4, 6)
    assert merged[0, 0].tolist() == [1, 1, 2, 2, 3, 3]


def test_one_view_is_bilinear_to_pixels():
    logits = torch.randn(1, 2, 3, 3)
    merged = segmentation.merge_views(logits, [0], [0], crop=12, height=12, width=12)
    torch.testing.assert_close(merged, F.interpolate(logits, size=(12, 12), mode="bilinear", align_corners=False)[0])


def test_labels_are_the_best_class_and_temperature_sharpens_them():
    logits = torch.tensor([[[0.1, 0.2]], [[0.3, 0.1]]])
    labels, cold = segmentation.label(logits, 1, 2, temperature=100.0)
    assert labels.tolist() == [[1, 0]]
    _, warm = segmentation.label(logits, 1, 2, temperature=1.0)
    assert cold.min() > 0.99
    assert warm.max() < 0.6
    assert segmentation.label(logits, 5, 7, temperature=1.0)[0].shape == (5, 7)


def test_labels_one_class_at_a_time_equal_the_softmax_over_all():
    logits = torch.randn(6, 4, 5)
    resized = F.interpolate(logits[None], size=(9, 13), mode="bilinear", align_corners=False)[0]
    expected, classes = torch.softmax(resized * 3, dim=0).max(0)
    labels, probability = segmentation.label(logits, 9, 13, temperature=3.0)
    assert (labels == classes).all()
    torch.testing.assert_close(probability, expected)
