import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import activations, make_pool
from reference import cosine, dense_contributions

from nadpipe.circuit import segmentation
from nadpipe.circuit.accumulators import Selection
from nadpipe.circuit.attention import tokens, trace
from nadpipe.circuit.methods import METHODS
from nadpipe.circuit.naming import normalise
from nadpipe.circuit.readout import token_values
from nadpipe.circuit.segmentation import LOGITS, Query, Tokens
from nadpipe.errors import NadpipeError

TEXTS, K = 3, 5


@pytest.fixture
def query(pool):
    """Return random texts, with head means over six other views."""
    text = normalise(torch.randn(TEXTS, pool.embed, generator=torch.Generator().manual_seed(4)))
    view = trace(activations(pool, 6, seed=9), pool)
    value_mean = (view.attention[..., None] * token_values(view.activation, pool.readout)).mean(0)
    return Query(pool, text, value_mean, sink=None)


@pytest.fixture
def selection(pool):
    """Return random pairs for each text, more than are used."""
    generator = torch.Generator().manual_seed(4)
    count = min(K + 3, pool.readout.pairs)
    index = torch.stack([torch.randperm(pool.readout.pairs, generator=generator)[:count] for _ in range(TEXTS)])
    return Selection(torch.zeros(TEXTS, count), index // pool.neurons, index % pool.neurons)


def pairs_of(selection, pool, k=K):
    return segmentation.selected_pairs(selection, k, pool.heads, pool.neurons)


def gathered(z, query, selection, weight):
    """Return logits in the published form: the sum of `weight(view, text, head, spatial token, activation)` over pairs."""
    views, spatial, _ = z.shape
    logits = np.zeros((views, TEXTS, spatial))
    k = min(K, selection.head.shape[1])
    for view in range(views):
        for p in range(TEXTS):
            for t in range(spatial):
                for head, neuron in zip(selection.head[p, :k].tolist(), selection.neuron[p, :k].tolist(), strict=True):
                    logits[view, p, t] += weight(view, p, head, t, z[view, t, neuron].item()) / K
    return logits


def test_nad_equals_the_gather_over_selected_pairs(pool, query, selection):
    z = activations(pool, 2)
    _, token, _ = dense_contributions(z, pool)

    def similarity(view, p, head, t):
        return cosine(token[view, head, t + 1], query.text[p].numpy())

    forms = {
        "nad": lambda view, p, head, t, active: active * similarity(view, p, head, t),
        "nad_shifted": lambda view, p, head, t, active: active * (1 + similarity(view, p, head, t)) / 2,
        "heads": lambda view, p, head, t, active: similarity(view, p, head, t),
        "neurons": lambda view, p, head, t, active: active,
    }
    for name, weight in forms.items():
        logits = LOGITS[name](Tokens(z, query), pairs_of(selection, pool))
        np.testing.assert_allclose(logits, gathered(z, query, selection, weight), rtol=1e-3, atol=1e-5, err_msg=name)


def test_nad_centred_subtracts_the_mean_over_discovery_from_every_token(pool, query, selection):
    z = activations(pool, 2)
    _, token, _ = dense_contributions(z, pool)
    _, discovery, _ = dense_contributions(activations(pool, 6, seed=9), pool)
    token = token - discovery.mean(0)
    expected = gathered(
        z, query, selection, lambda view, p, head, t, active: active * cosine(token[view, head, t + 1], query.text[p].numpy())
    )
    logits = segmentation.nad_centred(Tokens(z, query), pairs_of(selection, pool))
    np.testing.assert_allclose(logits, expected, rtol=2e-3, atol=2e-4)


def test_the_sink_is_replaced_in_both_maps_before_they_are_multiplied():
    _, pool = make_pool(4, 64, 16, 3)
    generator = torch.Generator().manual_seed(4)
    text = normalise(torch.randn(TEXTS, 16, generator=generator))
    chosen = torch.randint(0, 64, (TEXTS, K), generator=generator).sort(dim=1).values
    selection = Selection(torch.zeros(TEXTS, K), torch.arange(K).expand(TEXTS, K) % 4, chosen)
    pairs = segmentation.selected_pairs(selection, K, 4, 64)
    z = activations(pool, 1)
    _, token, _ = dense_contributions(z, pool)
    logits = segmentation.nad(Tokens(z, Query(pool, text, torch.zeros(4, 10, 16), sink=8)), pairs)
    neighbours = (4, 5, 7)  # north-west, north and west of the last token of 3 × 3
    for p in range(TEXTS):
        total = 0.0
        for head in range(4):
            similarity = np.mean([cosine(token[0, head, t + 1], text[p].numpy()) for t in neighbours])
            selected = chosen[p][selection.head[p] == head]
            total += similarity * np.mean([z[0, t, selected].sum().item() for t in neighbours]) / K
        assert logits[0, p, 8] == pytest.approx(total, rel=1e-3)
    plain = segmentation.nad(Tokens(z, Query(pool, text, torch.zeros(4, 10, 16), sink=None)), pairs)
    torch.testing.assert_close(logits[:, :, :8], plain[:, :, :8])


def test_the_vectors_at_the_sink_are_averaged_before_the_cosine(pool, query, selection):
    """The published order: the mean of the neighbours' head vectors, then its cosine to the text."""
    if pool.grid == 1:
        return  # no neighbours
    query = dataclasses.replace(query, sink=pool.tokens - 2, sink_replacement="vectors")
    side = pool.grid
    last = side * side - 1
    neighbours = [last - 1, last - side, last - side - 1]
    z = activations(pool, 2)
    _, token, _ = dense_contributions(z, pool)
    _, discovery, _ = dense_contributions(activations(pool, 6, seed=9), pool)
    for name, vectors in (("nad", token), ("nad_centred", token - discovery.mean(0))):
        replaced = vectors.copy()
        replaced[:, :, last + 1] = vectors[:, :, [t + 1 for t in neighbours]].mean(2)
        z_replaced = z.clone()
        z_replaced[:, last] = z[:, neighbours].mean(1)
        similarity = normalise(torch.from_numpy(replaced[:, :, 1:])) @ query.text.T.double()  # view head spatial text

        def weight(view, p, head, t, active, similarity=similarity):
            return active * similarity[view, head, t, p].item()

        expected = gathered(z_replaced, query, selection, weight)
        logits = LOGITS[name](Tokens(z, query), pairs_of(selection, pool))
        np.testing.assert_allclose(logits, expected, rtol=2e-3, atol=2e-4, err_msg=name)
    plain = segmentation.maskclip(Tokens(z, dataclasses.replace(query, sink=None)), None)
    mended = segmentation.maskclip(Tokens(z, query), None)
    torch.testing.assert_close(mended[:, :, :last], plain[:, :, :last])
    averaged = z.clone()
    averaged[:, last] = z[:, neighbours].mean(1)  # the embedding is affine in z
    expected = segmentation.maskclip(Tokens(averaged, dataclasses.replace(query, sink=None)), None)
    torch.testing.assert_close(mended[:, :, last], expected[:, :, last], rtol=1e-4, atol=1e-5)


def test_attention_sums_to_the_cosine_of_the_embedding(pool, query):
    z = activations(pool, 2)
    _, token, total = dense_contributions(z, pool)
    logits = segmentation.attention(Tokens(z, query), None)
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
    z = activations(pool, 2)
    readout = pool.readout
    for t in range(pool.tokens - 1):
        values = torch.einsum("hdn,vn->vhd", readout.value, z[:, t]) + readout.value_bias
        embedding = torch.einsum("hed,vhd->ve", readout.output, values) + readout.output_bias
        expected = F.cosine_similarity(embedding[:, None], query.text[None], dim=2)
        torch.testing.assert_close(segmentation.maskclip(Tokens(z, query), None)[:, :, t], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["sclip", "clearclip"])
def test_values_are_mixed_by_self_attention(pool, query, method):
    z = activations(pool, 1)
    x = tokens(z, pool)[0, 1:]
    readout, width = pool.readout, pool.neurons // pool.heads
    embedding = readout.output_bias
    for head in range(pool.heads):
        q = x @ pool.query[head].T + pool.query_bias[head]
        k = x @ pool.key[head].T + pool.key_bias[head]
        v = x @ readout.value[head].T + readout.value_bias[head]
        mix = (q @ q.T / width**0.5).softmax(1)
        if method == "sclip":
            mix = mix + (k @ k.T / width**0.5).softmax(1)
        embedding = embedding + mix @ v @ readout.output[head].T
    expected = F.cosine_similarity(embedding[:, None], query.text[None], dim=2).T
    torch.testing.assert_close(LOGITS[method](Tokens(z, query), None)[0], expected, rtol=1e-4, atol=1e-5)


def test_self_self_attends_to_the_pooled_token_and_keeps_the_sink(pool, query):
    """The published baseline: softmax(QQ^T) + softmax(KK^T) over all tokens."""
    query = dataclasses.replace(query, sink=pool.tokens - 2)
    z = activations(pool, 1)
    x = tokens(z, pool)[0].double()
    readout, width = pool.readout, pool.neurons // pool.heads
    embedding = readout.output_bias.double()
    for head in range(pool.heads):
        q = x @ pool.query[head].T.double() + pool.query_bias[head]
        k = x @ pool.key[head].T.double() + pool.key_bias[head]
        v = x @ readout.value[head].T.double() + readout.value_bias[head]
        mix = (q @ q.T / width**0.5).softmax(1) + (k @ k.T / width**0.5).softmax(1)
        embedding = embedding + mix @ v @ readout.output[head].T.double()
    expected = F.cosine_similarity(embedding[1:, None], query.text[None].double(), dim=2).T.float()
    torch.testing.assert_close(segmentation.self_self(Tokens(z, query), None)[0], expected, rtol=1e-4, atol=1e-5)


def test_values_only_keeps_the_positional_embedding_and_the_sink(pool, query):
    """The published MaskCLIP baseline: W_O (W_V (z_t + pos_t) + b_V) + b_O."""
    query = dataclasses.replace(query, sink=pool.tokens - 2)
    z = activations(pool, 2)
    readout = pool.readout
    for t in range(pool.tokens - 1):
        x = z[:, t] + pool.positional_embedding[t + 1]
        values = torch.einsum("hdn,vn->vhd", readout.value, x) + readout.value_bias
        embedding = torch.einsum("hed,vhd->ve", readout.output, values) + readout.output_bias
        expected = F.cosine_similarity(embedding[:, None], query.text[None], dim=2)
        torch.testing.assert_close(segmentation.values_only(Tokens(z, query), None)[:, :, t], expected, rtol=1e-4, atol=1e-5)


def test_every_method_gives_one_map_per_text(pool, query, selection):
    views = Tokens(activations(pool, 2), query)
    assert set(LOGITS) == set(METHODS)
    for name, method in METHODS.items():
        logits = LOGITS[name](views, pairs_of(selection, pool) if method.selects else None)
        assert logits.shape == (2, TEXTS, pool.tokens - 1)
        assert torch.isfinite(logits).all()


def test_methods_and_numbers_of_pairs_do_not_affect_each_other(pool, query, selection):
    z = activations(pool, 2)
    variants = [(name, pairs_of(selection, pool, k)) for k in (2, K) for name in ("nad", "nad_centred", "nad_shifted")]
    separate = [LOGITS[name](Tokens(z, query), pairs) for name, pairs in variants]
    shared = Tokens(z, query)
    for (name, pairs), expected in zip(variants, separate, strict=True):
        torch.testing.assert_close(LOGITS[name](shared, pairs), expected)


def test_methods_share_the_sparse_product_of_each_number_of_pairs(pool, query, selection, monkeypatch):
    """Three methods that multiply activations, for three numbers of pairs, need three sparse products per view."""
    products = []

    def counted(pairs, by_neuron, product=segmentation.sparse_product):
        products.append(pairs.k)
        return product(pairs, by_neuron)

    monkeypatch.setattr(segmentation, "sparse_product", counted)
    variants = segmentation.variants(["nad", "nad_centred", "nad_shifted", "heads", "neurons", "maskclip"], [1, 2, K])
    pairs = {k: pairs_of(selection, pool, k) for k in (1, 2, K)}
    for seed in range(2):
        shared = Tokens(activations(pool, 1, seed), query)
        for variant in variants:
            LOGITS[variant.method](shared, None if variant.k is None else pairs[variant.k])
        assert products == [1, 2, K]
        products.clear()


def test_variants_are_named_by_method_and_k():
    names = [variant.name for variant in segmentation.variants(["nad", "maskclip"], [5, 20])]
    assert names == ["nad-k5", "nad-k20", "maskclip"]
    with pytest.raises(NadpipeError, match=r"unknown method nat; .*nad, nad_centred"):
        segmentation.variants(["nat"], [5])


def test_black_images_segment_without_division_by_zero():
    _, pool = make_pool(2, 8, 12, 2)
    for bias in (pool.readout.value_bias, pool.readout.output_bias, pool.positional_embedding):
        bias.zero_()
    first = torch.zeros(1, 1, dtype=torch.long)
    pairs = segmentation.selected_pairs(Selection(torch.zeros(1, 1), first, first), 1, 2, 8)
    query = Query(pool, normalise(torch.ones(1, 12)), torch.zeros(2, 5, 4), sink=None)
    for name in (
        "nad",
        "nad_centred",
        "nad_shifted",
        "heads",
        "neurons",
        "maskclip",
        "sclip",
        "clearclip",
        "self_self",
        "values_only",
    ):
        assert (LOGITS[name](Tokens(torch.zeros(1, 4, 8), query), pairs) == 0).all()


def test_a_query_for_larger_views_keeps_places_and_spreads_the_means():
    _, pool = make_pool(2, 8, 12, 3)
    mean = torch.ones(2, 10, 4)
    query = Query(pool, normalise(torch.ones(1, 12)), mean, sink=8)
    assert query.at_grid(3) is query
    larger = query.at_grid(5)
    assert (larger.pool.grid, larger.sink) == (5, 24)
    torch.testing.assert_close(larger.pool.positional_embedding[0], pool.positional_embedding[0])
    torch.testing.assert_close(larger.value_mean[:, 1:], torch.full((2, 25, 4), 10 / 26))
    assert [segmentation.move_token(token, 3, 7) for token in (0, 2, 4, 6, None)] == [0, 6, 24, 42, None]


def test_the_sink_takes_the_mean_of_its_west_north_and_north_west():
    logits = torch.arange(9.0).view(1, 1, 3, 3)
    mended = segmentation.replace_sink(logits, 8)
    assert mended[0, 0, 2, 2] == pytest.approx((7 + 5 + 4) / 3)
    assert mended.flatten()[:8].tolist() == logits.flatten()[:8].tolist()
    assert segmentation.replace_sink(logits, 2)[0, 0, 0, 2] == 1  # top row: west alone
    assert segmentation.replace_sink(logits, 0)[0, 0, 0, 0] == 2  # corner: east and south
    assert segmentation.replace_sink(logits, None) is logits
