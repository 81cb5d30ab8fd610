"""Segmentation with a vision transformer, against a direct evaluation of each formula in float64."""

import numpy as np
import pytest
import torch
from reference import cosine
from vit_reference import Reference, make_visual, open_tower, pixels

from nadpipe.circuit import segmentation
from nadpipe.circuit.accumulators import Selection
from nadpipe.circuit.attention import RecordedAttention
from nadpipe.circuit.naming import normalise
from nadpipe.circuit.segmentation import LOGITS, Query, Tokens

TEXTS, K, BLOCK, HEADS, SPATIAL = 3, 40, 1, 6, 16


@pytest.fixture(scope="module")
def scene():
    """Return texts, selected pairs, head means, the tokens of one view and their reference."""
    visual = make_visual(ls_init_value=0.7)
    tower = open_tower(visual, block=BLOCK)
    features = tower.features(pixels(), tokens=True)
    generator = torch.Generator().manual_seed(4)
    text = normalise(torch.randn(TEXTS, 10, generator=generator))
    index = torch.stack([torch.randperm(HEADS * 60, generator=generator)[:K] for _ in range(TEXTS)])
    selection = Selection(torch.zeros(TEXTS, K), index // 60, index % 60)
    value_mean = torch.randn(HEADS, SPATIAL + 1, 8, generator=generator) * 0.01
    query = Query(RecordedAttention(tower.readout, tower.grid), text, value_mean, sink=None)
    by_recipe = dict(zip(tower.recipes, features["token_embedding"].unbind(1), strict=True))
    recorded = {name: features[name] for name in ("attention", "gain", "stream", "embedding")} | by_recipe
    pairs = segmentation.selected_pairs(selection, K, HEADS, 60)
    return Tokens(features["activation"], query, recorded), pairs, selection, Reference(visual, pixels()[0])


def head_tokens(reference, constant=True):
    """Return m[h, t] / gain (head, token, embed) with each head's share of the output biases."""
    late = range(BLOCK + 1, 4)
    rows = [
        share[0][:, None] * values
        for layer in late
        for share, values in zip(reference.attention[layer], reference.token_values(layer), strict=True)
    ]
    bias = sum(reference.bias(layer, "attn.out_proj") * reference.factor(layer, "ls_1") for layer in late)
    bias = bias / (HEADS * (SPATIAL + 1)) if constant else 0
    return np.array([[reference.read_out(token + bias) / reference.gain for token in head] for head in rows])


def gathered(tokens, selection, weight):
    z = tokens.z[0].numpy()
    return [
        [
            sum(
                weight(p, head, t, z[t, neuron])
                for head, neuron in zip(selection.head[p].tolist(), selection.neuron[p].tolist(), strict=True)
            )
            / K
            for t in range(SPATIAL)
        ]
        for p in range(TEXTS)
    ]


def test_methods_that_select_pairs_equal_the_gather(scene):
    tokens, pairs, selection, reference = scene
    text, written = tokens.query.text.numpy(), head_tokens(reference)
    centred = head_tokens(reference, constant=False)
    readout = tokens.query.pool.readout
    centred = centred - torch.einsum("htd,hed->hte", tokens.query.value_mean, readout.output).numpy()

    def similarity(p, head, t, values=written):
        return cosine(values[head, t + 1], text[p])

    forms = {
        "nad": lambda p, head, t, active: active * similarity(p, head, t),
        "nad_shifted": lambda p, head, t, active: active * (1 + similarity(p, head, t)) / 2,
        "nad_centred": lambda p, head, t, active: active * similarity(p, head, t, centred),
        "heads": lambda p, head, t, active: similarity(p, head, t),
        "neurons": lambda p, head, t, active: active,
    }
    for name, weight in forms.items():
        logits = LOGITS[name](tokens, pairs)[0]
        np.testing.assert_allclose(logits, gathered(tokens, selection, weight), rtol=1e-3, atol=1e-5, err_msg=name)


def test_attention_is_what_each_token_adds_to_the_cosine(scene):
    tokens, _, _, reference = scene
    text = tokens.query.text.numpy()
    length = np.linalg.norm(reference.embedding)
    expected = (head_tokens(reference).sum(0)[1:] * reference.gain) @ text.T / length * (SPATIAL + 1)
    np.testing.assert_allclose(LOGITS["attention"](tokens, None)[0].T, expected, rtol=1e-3, atol=1e-5)


def test_baselines_change_the_last_block_as_published(scene):
    tokens, _, _, reference = scene
    text, stream = tokens.query.text.numpy(), reference.streams[3]
    normed = reference.normed(3, stream)
    parts = [reference.head(3, head) for head in range(3)]
    bias, factor = reference.bias(3, "attn.out_proj"), reference.factor(3, "ls_1")

    def mixed(*kinds):
        """Return the output of the attention with the sum of some self-self attentions; without any, of each token alone."""
        total = bias
        for head in parts:
            (v, v_bias), output = head[2], head[3]
            share = np.eye(len(normed)) if not kinds else 0
            for kind in kinds:
                projected = normed @ head[kind][0].T + head[kind][1]
                score = projected @ projected.T / np.sqrt(projected.shape[1])
                score = np.exp(score - score.max(1, keepdims=True))
                share = share + score / score.sum(1, keepdims=True)
            total = total + share @ (normed @ v.T + v_bias) @ output.T
        return total * factor

    full = stream + mixed(0, 1)
    hidden = reference.norm("transformer.resblocks.3.ln_2", full) @ reference.weight(3, "mlp.c_fc").T + reference.bias(
        3, "mlp.c_fc"
    )
    hidden = hidden / (1 + np.exp(-1.702 * hidden))
    added = hidden @ reference.weight(3, "mlp.c_proj").T + reference.bias(3, "mlp.c_proj")
    full = full + added * reference.factor(3, "ls_2")
    expected = {"maskclip": mixed(), "values_only": mixed(), "sclip": full, "self_self": full, "clearclip": mixed(0)}
    for name, values in expected.items():
        embedding = reference.embed(values)[1:]
        cosines = [[cosine(token, row) for token in embedding] for row in text]
        np.testing.assert_allclose(LOGITS[name](tokens, None)[0], cosines, rtol=1e-3, atol=1e-5, err_msg=name)


def test_the_sink_is_replaced(scene):
    tokens, pairs, _, _ = scene
    query = Query(tokens.query.pool, tokens.query.text, tokens.query.value_mean, sink=5)
    mended = Tokens(tokens.z, query, tokens.recorded)
    for name in ("maskclip", "sclip", "clearclip", "neurons"):
        before, after = (LOGITS[name](each, pairs) for each in (tokens, mended))
        torch.testing.assert_close(after[:, :, 5], before[:, :, [0, 1, 4]].mean(2))
        assert torch.equal(after[:, :, :5], before[:, :, :5])
    for name in ("self_self", "values_only"):
        assert torch.equal(LOGITS[name](tokens, None), LOGITS[name](mended, None))
