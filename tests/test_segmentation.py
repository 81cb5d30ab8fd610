import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import activations, make_pool
from reference import cosine, dense_contributions

from nadpipe.circuit import attention, naming, segmentation
from nadpipe.circuit.accumulators import Selection
from nadpipe.circuit.canvas import Labelling
from nadpipe.circuit.segmentation import Query, Tokens
from nadpipe.errors import NadpipeError

TEXTS, K = 3, 5


@pytest.fixture
def asked(pool):
    """What is asked for, and random pairs for each text; more of these are selected than are used."""
    generator = torch.Generator().manual_seed(4)
    text = naming.unit(torch.randn(TEXTS, len(pool.c_bias), generator=generator))
    count = min(K + 3, pool.heads * pool.neurons)
    chosen = torch.stack([torch.randperm(pool.heads * pool.neurons, generator=generator)[:count] for _ in range(TEXTS)])
    selection = Selection(torch.zeros(TEXTS, count), chosen // pool.neurons, chosen % pool.neurons)
    x = attention.tokens(activations(pool, 6, seed=9), pool)
    value_mean = (attention.attention(x, pool)[..., None] * attention.token_values(x, pool)).mean(0)
    return Query(pool, text, value_mean, sink=None), selection


def pairs_of(selection, pool):
    return segmentation.selected_pairs(selection, K, pool.heads, pool.neurons)


def gathered(z, query, selection, weight):
    """The published form: one term per text, token and selected pair; `weight(view, text, head, spatial token, activation)`."""
    views, spatial, _ = z.shape
    logits = np.zeros((views, TEXTS, spatial))
    k = min(K, selection.head.shape[1])
    for view in range(views):
        for p in range(TEXTS):
            for t in range(spatial):
                for head, neuron in zip(selection.head[p, :k].tolist(), selection.neuron[p, :k].tolist(), strict=True):
                    logits[view, p, t] += weight(view, p, head, t, z[view, t, neuron].item()) / K
    return logits


def test_nad_equals_the_gather_over_selected_pairs(pool, asked):
    query, selection = asked
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
        logits = segmentation.METHODS[name].logits(Tokens(z, query), pairs_of(selection, pool))
        np.testing.assert_allclose(logits, gathered(z, query, selection, weight), rtol=1e-3, atol=1e-5, err_msg=name)


def test_nad_centred_takes_the_mean_over_discovery_off_every_token(pool, asked):
    query, selection = asked
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
    text = naming.unit(torch.randn(TEXTS, 16, generator=generator))
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
            own = chosen[p][selection.head[p] == head]
            total += similarity * np.mean([z[0, t, own].sum().item() for t in neighbours]) / K
        assert logits[0, p, 8] == pytest.approx(total, rel=1e-3)
    plain = segmentation.nad(Tokens(z, Query(pool, text, torch.zeros(4, 10, 16), sink=None)), pairs)
    torch.testing.assert_close(logits[:, :, :8], plain[:, :, :8])


def test_attention_sums_to_the_cosine_of_the_embedding(pool, asked):
    query, _ = asked
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


def test_maskclip_is_the_pool_without_attention(pool, asked):
    query, _ = asked
    z = activations(pool, 2)
    for t in range(pool.tokens - 1):
        embedding = (z[:, t] @ pool.v_weight.T + pool.v_bias) @ pool.c_weight.T + pool.c_bias
        expected = F.cosine_similarity(embedding[:, None], query.text[None], dim=2)
        torch.testing.assert_close(segmentation.maskclip(Tokens(z, query), None)[:, :, t], expected, rtol=1e-4, atol=1e-5)


def test_sclip_mixes_values_by_self_attention(pool, asked):
    query, _ = asked
    z = activations(pool, 1)
    x = attention.tokens(z, pool)[0, 1:]
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
    torch.testing.assert_close(segmentation.sclip(Tokens(z, query), None)[0], expected, rtol=1e-4, atol=1e-5)


def test_every_method_gives_one_map_a_text(pool, asked):
    query, selection = asked
    tokens = Tokens(activations(pool, 2), query)
    for method in segmentation.METHODS.values():
        logits = method.logits(tokens, pairs_of(selection, pool) if method.selects else None)
        assert logits.shape == (2, TEXTS, pool.tokens - 1)
        assert torch.isfinite(logits).all()


def test_what_methods_share_does_not_leak_from_one_k_to_the_next(asked, pool):
    query, selection = asked
    tokens = Tokens(activations(pool, 2), query)
    few, many = (segmentation.selected_pairs(selection, k, pool.heads, pool.neurons) for k in (2, K))
    one_by_one = [segmentation.nad(Tokens(tokens.z, query), pairs) for pairs in (few, many)]
    together = [segmentation.nad(tokens, pairs) for pairs in (few, many)]
    for one, other in zip(one_by_one, together, strict=True):
        torch.testing.assert_close(one, other)


def test_variants_are_named_by_method_and_k():
    names = [variant.name for variant in segmentation.variants(["nad", "maskclip"], [5, 20])]
    assert names == ["nad-k5", "nad-k20", "maskclip"]
    with pytest.raises(NadpipeError, match="no method nat; there are nad, nad_centred"):
        segmentation.variants(["nat"], [5])


def test_black_images_segment_without_division_by_zero():
    _, pool = make_pool(2, 8, 12, 2)
    silent = {name: torch.zeros_like(getattr(pool, name)) for name in ("v_bias", "c_bias", "positional_embedding")}
    pool = attention.AttentionPool(**{**vars(pool), **silent})
    first = torch.zeros(1, 1, dtype=torch.long)
    pairs = segmentation.selected_pairs(Selection(torch.zeros(1, 1), first, first), 1, 2, 8)
    query = Query(pool, naming.unit(torch.ones(1, 12)), torch.zeros(2, 5, 4), sink=None)
    for name in ("nad", "nad_centred", "nad_shifted", "heads", "neurons", "maskclip", "sclip"):
        assert (segmentation.METHODS[name].logits(Tokens(torch.zeros(1, 4, 8), query), pairs) == 0).all()


def test_a_query_for_larger_views_keeps_places_and_spreads_the_means():
    _, pool = make_pool(2, 8, 12, 3)
    mean = torch.ones(2, 10, 4)
    query = Query(pool, naming.unit(torch.ones(1, 12)), mean, sink=8)
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


def merged(logits, top, left, crop, resized, size):
    """The published way: every crop bilinear to its pixels, the mean where they overlap, bilinear to the mask's size."""
    logits = logits.double()
    total, count = torch.zeros(logits.shape[1], *resized, dtype=torch.float64), torch.zeros(resized)
    for view, y, x in zip(logits, top, left, strict=True):
        total[:, y : y + crop, x : x + crop] += F.interpolate(view[None], size=(crop, crop), mode="bilinear")[0]
        count[y : y + crop, x : x + crop] += 1
    return F.interpolate((total / count)[None], size=size, mode="bilinear")[0]


IMAGES = {
    "one view": ([0], [0], 12, (12, 12), (12, 12)),
    "wide": ([0, 0, 0], [0, 6, 9], 12, (12, 21), (31, 54)),
    "both ways, made smaller": ([0, 0, 5, 5], [0, 5, 0, 5], 8, (13, 13), (9, 7)),
}


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("block", [1, 100, 10**6])
def test_pixels_are_those_of_crops_resized_and_averaged(image, block, monkeypatch):
    top, left, crop, resized, size = IMAGES[image]
    logits = torch.randn(len(top), 4, 3, 3, generator=torch.Generator().manual_seed(1))
    expected = merged(logits, top, left, crop, resized, size)
    canvas = segmentation.make_canvas(top, left, crop, 3, resized, size)
    cells = segmentation.arrange(logits.flatten(2), top, left, 3)
    torch.testing.assert_close(canvas.pixels(cells, slice(None)), expected.float(), rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(segmentation, "_BLOCK", block)
    labels = segmentation.label(cells, canvas, Labelling(torch.arange(4), 4, temperature=3.0))
    assert (labels == expected.argmax(0)).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 70), (61, 40), (500, 333)])
def test_weights_are_linear_between_lines(size):
    canvas = segmentation.make_canvas([0, 0, 9, 9], [0, 17, 0, 17], 24, 6, (33, 41), size)
    for axis, length in zip((canvas.rows, canvas.columns), size, strict=True):
        assert (axis.lines[0], axis.lines[-1]) == (0, length - 1)
        assert len(axis.weights) == length
        for start, end in zip(axis.lines, axis.lines[1:], strict=False):
            share = torch.linspace(0, 1, end - start + 1)[:, None]
            straight = torch.lerp(axis.weights[start], axis.weights[end], share)
            torch.testing.assert_close(axis.weights[start : end + 1], straight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (61, 40), (300, 221)])
@pytest.mark.parametrize("block", [1, 2000, 10**6])
@pytest.mark.parametrize("smooth", [False, True])
def test_texts_that_are_not_computed_are_nowhere_the_best(size, block, smooth, monkeypatch):
    """On noise, and on a map of few regions; the same with all texts that may be the best as with all there are."""
    monkeypatch.setattr(segmentation, "_BLOCK", block)
    noise = torch.randn(4, 30, 36, generator=torch.Generator().manual_seed(3))
    if smooth:
        noise[:, ::3, :18] += 9
        noise[:, 4, 30:] += 20
    top, left = [0, 0, 9, 9], [0, 17, 0, 17]
    canvas = segmentation.make_canvas(top, left, 24, 6, (33, 41), size)
    cells = segmentation.arrange(noise, top, left, 6)
    every = canvas.pixels(cells, slice(None))
    first, second = every.topk(2, dim=0).values
    labels = segmentation.label(cells, canvas, Labelling(torch.arange(30), 30, temperature=2.0))
    assert ((labels == every.argmax(0)) | (first - second < 1e-5)).all()


def test_few_texts_are_computed_where_one_is_ahead():
    logits = torch.zeros(3, 3, 5)
    logits[0, :2], logits[1, 2], logits[2] = 1.0, 3.0, -1.0
    logits[1, 1, 3] = 2.0  # in two blocks, not in the one below: there it is ahead anyway
    assert segmentation.contenders(logits).tolist() == [[True, True, False], [True, True, False]]
    assert segmentation.contenders(logits[:, :2, :2]).tolist() == [[True, False, False]]


def pixels(logits, how):
    """Labels of an image whose pixels are its tokens."""
    size = tuple(logits.shape[1:])
    canvas = segmentation.Canvas(*(segmentation.make_axis(torch.eye(side, dtype=torch.float64)) for side in size))
    return segmentation.label(logits, canvas, how)


def test_a_class_takes_its_best_text():
    logits = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 3.0, 0.0]], [[0.5, 2.0, 1.0]]])
    assert pixels(logits, Labelling(torch.tensor([0, 0, 1]), 2, temperature=1.0)).tolist() == [[0, 0, 1]]


def around(share):
    """Thresholds a little below and above a probability."""
    return share - 1e-4, share + 1e-4


def test_improbable_pixels_are_background():
    logits = torch.tensor([[[5.0, 0.1, 0.0]], [[0.0, 0.0, 5.0]]])
    for temperature in (1.0, 3.0):
        share = torch.softmax(logits[:, 0, 1] * temperature, 0).max().item()
        hows = [Labelling(torch.tensor([1, 2]), 3, temperature, background=0, threshold=at) for at in around(share)]
        assert [pixels(logits, how).tolist() for how in hows] == [[[1, 1, 2]], [[1, 0, 2]]]  # the background has no text


def test_a_probability_is_of_all_texts_and_of_the_best_one():
    logits = torch.tensor([[[1.0]], [[0.8]], [[0.5]]])
    share = torch.softmax(logits.flatten(), 0).max().item()
    hows = [Labelling(torch.tensor([1, 1, 2]), 3, 1.0, background=0, threshold=at) for at in around(share)]
    assert [pixels(logits, how).item() for how in hows] == [1, 0]


def test_classes_that_cover_too_little_give_way_to_the_next_best():
    logits = torch.zeros(3, 1, 10)
    logits[0], logits[1, 0, 5:], logits[2, 0, 9] = 0.5, 1.0, 2.0
    assert pixels(logits, Labelling(torch.arange(3), 3, 1.0, area=0.2)).tolist() == [[0] * 5 + [1] * 5]
    assert pixels(logits, Labelling(torch.arange(3), 3, 1.0, area=0.1))[0, 9] == 2
    assert pixels(logits, Labelling(torch.arange(3), 3, 1.0, background=2, area=0.2))[0, 9] == 2  # never too small
    assert pixels(logits, Labelling(torch.arange(3), 3, 1.0, area=0.9)).unique().tolist() == [0]  # the largest one stays
    share = torch.softmax(torch.tensor([0.5, 1.0, 2.0]), 0)[1].item()  # of all texts, as published, also of those left out
    hows = [Labelling(torch.arange(4), 4, 1.0, background=3, threshold=at, area=0.2) for at in around(share)]
    with_background = torch.cat([logits, torch.full((1, 1, 10), -99.0)])
    assert [pixels(with_background, how)[0, 9].item() for how in hows] == [1, 3]
