"""Readouts against a vision transformer with random weights: heads of several blocks, LayerNorms folded into the weights."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import activations, make_pool

from nadpipe.circuit import attention
from nadpipe.circuit.readout import (
    Readout,
    Trace,
    coefficients,
    dense_contributions,
    pair_constants,
    pair_scores,
    pooled_values,
    residual,
    sum_pairs,
    write_vector_entries,
    write_vectors,
)
from nadpipe.circuit.units import SUBSPACE_UNITS
from nadpipe.errors import NadpipeError
from nadpipe.store.pool import read_pool
from nadpipe.store.readout import read_readout, write_readout
from nadpipe.store.stamp import Stamp

VIEWS, TOKENS, STREAM, WIDTH, NEURONS, EMBED = 3, 5, 12, 4, 9, 7
BLOCKS, HEADS = 5, 3
BLOCK = 1  # the neurons are those of this block, so the heads of all later blocks read them
LATE = range(BLOCK + 1, BLOCKS)
ORDER = [4, 0, 8, 2, 6, 1, 5, 7, 3]  # of the late heads in the readout, so that layers are mixed


class Transformer:
    """A pre-norm vision transformer with a class token, in float64."""

    def __init__(self):
        rng = np.random.default_rng(0)

        def weight(*shape, size=1.5):
            return size * rng.normal(size=shape) / np.sqrt(shape[-1])

        self.tokens = rng.normal(size=(VIEWS, TOKENS, STREAM)) * np.linspace(0.5, 3, TOKENS)[:, None] + 0.7
        self.norm = 1 + weight(BLOCKS, 2, STREAM), weight(BLOCKS, 2, STREAM)  # γ and β in front of attention and MLP
        self.last_norm = 1 + weight(STREAM), weight(STREAM)
        self.query, self.key, self.value = (weight(BLOCKS, HEADS, WIDTH, STREAM) for _ in range(3))
        self.value_bias = weight(BLOCKS, HEADS, WIDTH)
        self.output, self.output_bias = weight(BLOCKS, HEADS, STREAM, WIDTH), weight(BLOCKS, STREAM)
        self.first, self.first_bias = weight(BLOCKS, NEURONS, STREAM), weight(BLOCKS, NEURONS)
        self.second, self.second_bias = weight(BLOCKS, STREAM, NEURONS), weight(BLOCKS, STREAM)
        self.projection = weight(EMBED, STREAM)

    def run(self):
        """Return the embedding and the trace. The rest is summed over its paths: it is not the embedding minus the pairs."""
        stream = self.tokens
        other_paths = self.tokens[:, 0]  # what the class token gets, except from neurons and biases through late heads
        activation, shares, scales = np.empty(0), [], []
        for block in range(BLOCKS):
            gain, shift = self.norm[0][block], self.norm[1][block]
            sigma = deviation(stream)
            normed = centre(stream) / sigma * gain[0] + shift[0]
            added = self.output_bias[block]
            for head in range(HEADS):
                share = self.attend(normed, block, head)
                value, output = self.value[block, head], self.output[block, head]
                attended = share @ (normed @ value.T + self.value_bias[block, head]) @ output.T
                added = added + attended
                if block > BLOCK:
                    without = centre(stream - activation @ self.second[BLOCK].T) / sigma * gain[0]
                    other_paths = other_paths + (share @ (without @ value.T) @ output.T)[:, 0]
                    shares.append(share[:, 0])
            if block > BLOCK:
                scales.append(1 / sigma[..., 0])
            else:
                other_paths = other_paths + added[:, 0]
            stream = stream + added
            hidden = (centre(stream) / deviation(stream) * gain[1] + shift[1]) @ self.first[block].T + self.first_bias[block]
            hidden = np.maximum(hidden, 0)
            if block == BLOCK:
                activation = hidden
            added = hidden @ self.second[block].T + self.second_bias[block]
            other_paths, stream = other_paths + added[:, 0], stream + added
        sigma = deviation(stream[:, 0])
        gain, shift = self.last_norm
        embedding, rest = (
            (centre(vector) / sigma * gain + shift) @ self.projection.T for vector in (stream[:, 0], other_paths)
        )
        share = np.stack(shares, axis=1)[:, ORDER]
        return single(embedding), Trace(*map(single, (activation, share, np.stack(scales, axis=1), 1 / sigma[:, 0], rest)))

    def attend(self, normed, block, head):
        """Return the attention (view, token, token) of a head."""
        query, key = normed @ self.query[block, head].T, normed @ self.key[block, head].T
        score = np.exp(query @ key.transpose(0, 2, 1) / np.sqrt(WIDTH))
        return score / score.sum(2, keepdims=True)

    def readout(self):
        """Return the readout, with the norms' centring, γ and β folded into the weights of the late heads."""
        centring = np.eye(STREAM) - 1 / STREAM
        gain, shift = self.norm[0][:, 0], self.norm[1][:, 0]
        last = self.projection * self.last_norm[0] @ centring
        late = [(block, head) for block in LATE for head in range(HEADS)]
        late = [late[index] for index in ORDER]
        return Readout(
            value=single([self.value[position] * gain[position[0]] @ centring for position in late]),
            value_bias=single([self.value[position] @ shift[position[0]] + self.value_bias[position] for position in late]),
            output=single([last @ self.output[position] for position in late]),
            output_bias=single(last @ self.output_bias[list(LATE)].sum(0)),
            layer=torch.tensor([block for block, _ in late]),
            write=single(self.second[BLOCK].T),
        )


def centre(values):
    return values - values.mean(-1, keepdims=True)


def deviation(values):
    return np.sqrt(values.var(-1, keepdims=True) + 1e-5)


def single(values):
    return torch.from_numpy(np.asarray(values, np.float32))


@pytest.fixture(scope="module")
def transformer():
    """Return the embedding, the trace and the readout of a transformer."""
    model = Transformer()
    return *model.run(), model.readout()


def decompose(trace, readout):
    """Return pairs + gain · constant + rest."""
    summed = sum_pairs(coefficients(trace, readout), readout, trace.gain)
    return summed if trace.rest is None else summed + trace.rest


def test_coefficients_are_the_sum_over_tokens_with_scale_and_gain(transformer):
    _, trace, readout = transformer
    coefficient = coefficients(trace, readout)
    assert coefficient.shape == (VIEWS, len(ORDER), NEURONS)
    for view in range(VIEWS):
        for head, layer in enumerate(readout.layer.tolist()):
            for neuron in range(NEURONS):
                total = 0.0
                for token in range(TOKENS):
                    read = float(trace.scale[view, layer - BLOCK - 1, token] * trace.activation[view, token, neuron])
                    total += float(trace.attention[view, head, token]) * read
                assert coefficient[view, head, neuron] == pytest.approx(float(trace.gain[view]) * total, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("layer", [[0, 0, 0, 0], [7, 3, 11, 3]])
def test_layers_need_not_be_consecutive(layer):
    generator = torch.Generator().manual_seed(0)
    arrays = [torch.rand(shape, generator=generator) for shape in [(2, 5, 6), (2, 4, 5), (2, len(set(layer)), 5), (2,)]]
    trace = Trace(*arrays)
    value, output = torch.randn(4, 3, 6, generator=generator), torch.randn(4, 8, 3, generator=generator)
    readout = Readout(value, torch.zeros(4, 3), output, torch.zeros(8), layer=torch.tensor(layer))
    for head in range(4):
        scale = trace.scale[:, sorted(set(layer)).index(layer[head])]
        expected = torch.einsum("vt,vtn->vn", trace.attention[:, head] * scale, trace.activation) * trace.gain[:, None]
        torch.testing.assert_close(coefficients(trace, readout)[:, head], expected)


def test_write_vectors_go_through_value_and_output_of_the_head(transformer):
    *_, readout = transformer
    assert (readout.heads, readout.width, readout.neurons, readout.embed) == (len(ORDER), WIDTH, NEURONS, EMBED)
    assert readout.pairs == len(ORDER) * NEURONS
    for head in range(readout.heads):
        for neuron in range(NEURONS):
            expected = readout.output[head] @ (readout.value[head] @ readout.write[neuron])
            torch.testing.assert_close(write_vectors(readout, head)[neuron], expected, rtol=1e-4, atol=1e-5)
    head, neuron, embed = torch.tensor([5, 0]), torch.tensor([8, 1, 1]), torch.tensor([6, 2])
    entries = write_vector_entries(readout, head, neuron, embed)
    expected = torch.stack([write_vectors(readout, int(index))[neuron][:, embed] for index in head])
    torch.testing.assert_close(entries, expected, rtol=1e-4, atol=1e-5)


def test_pairs_constants_and_rest_are_the_embedding_of_the_running_model(transformer):
    embedding, trace, readout = transformer
    assert residual(decompose(trace, readout), embedding).max() < 1e-5
    coefficient, gain = coefficients(trace, readout), trace.gain[:, None]
    pairs = sum(coefficient[:, head] @ write_vectors(readout, head) for head in range(readout.heads))
    constant = pair_constants(readout).sum(0) * NEURONS
    assert residual(pairs + gain * constant + trace.rest, embedding).max() < 1e-5
    for term in (pairs, gain * constant, trace.rest):  # none is too small to matter
        assert (term.norm(dim=1) > 0.1 * embedding.norm(dim=1)).all()


def replace_readout(**change):
    return lambda trace, readout: (trace, dataclasses.replace(readout, **{key: f(readout) for key, f in change.items()}))


def replace_trace(**change):
    return lambda trace, readout: (dataclasses.replace(trace, **{key: f(trace) for key, f in change.items()}), readout)


WRONG = {
    "no gain": replace_trace(gain=lambda trace: None),
    "gain of another view": replace_trace(gain=lambda trace: trace.gain.roll(1)),
    "no scale": replace_trace(scale=lambda trace: None),
    "scale of other layers": replace_trace(scale=lambda trace: trace.scale.flip(1)),
    "scale of other tokens": replace_trace(scale=lambda trace: trace.scale.roll(1, 2)),
    "no rest": replace_trace(rest=lambda trace: None),
    "attention of other heads": replace_trace(attention=lambda trace: trace.attention.roll(1, 1)),
    "activation of other tokens": replace_trace(activation=lambda trace: trace.activation.roll(1, 1)),
    "other layers": replace_readout(layer=lambda readout: readout.layer.roll(1)),
    "other neurons": replace_readout(write=lambda readout: readout.write.roll(1, 0)),
    "other values": replace_readout(value=lambda readout: readout.value.roll(1, 0)),
    "other outputs": replace_readout(output=lambda readout: readout.output.roll(1, 0)),
    "no value bias": replace_readout(value_bias=lambda readout: torch.zeros_like(readout.value_bias)),
    "no output bias": replace_readout(output_bias=lambda readout: torch.zeros_like(readout.output_bias)),
}


@pytest.mark.parametrize("part", WRONG)
def test_a_wrong_part_does_not_give_the_embedding(transformer, part):
    embedding, trace, readout = transformer
    assert residual(decompose(*WRONG[part](trace, readout)), embedding).max() > 1e-2


def test_the_identity_as_write_vectors_changes_nothing():
    _, pool = make_pool(4, 64, 16, 3)
    trace = attention.trace(activations(pool, 3), pool)
    explicit = dataclasses.replace(pool.readout, write=torch.eye(64))
    ones = Trace(trace.activation, trace.attention, torch.ones(3, 1, 10), torch.ones(3), torch.zeros(3, 16))
    torch.testing.assert_close(coefficients(ones, explicit), coefficients(trace, pool.readout))
    torch.testing.assert_close(write_vectors(explicit, 2), write_vectors(pool.readout, 2))
    torch.testing.assert_close(decompose(ones, explicit), decompose(trace, pool.readout))


@pytest.mark.parametrize("unit", SUBSPACE_UNITS)
def test_neurons_and_heads_are_sums_of_pairs(transformer, unit):
    _, trace, readout = transformer
    coefficient = coefficients(trace, readout)
    write = torch.stack([write_vectors(readout, head) for head in range(readout.heads)])
    dense = dense_contributions(coefficient, write, pair_constants(readout))
    expected = dense.sum(1 if unit == "neuron" else 2)
    kind = SUBSPACE_UNITS[unit]
    varying = torch.einsum("vur,ure->vue", kind.factors(coefficient, readout), kind.writes(readout, slice(None)))
    assert kind.count(readout) == expected.shape[1]
    torch.testing.assert_close(varying + kind.constants(readout), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kind.writes(readout, slice(2, 5)), kind.writes(readout, slice(None))[2:5])


def test_pooled_values_are_sums_over_what_neurons_write(transformer):
    _, trace, readout = transformer
    coefficient = coefficients(trace, readout)
    expected = torch.einsum("vhn,ns,hds->vhd", coefficient, readout.write, readout.value)
    torch.testing.assert_close(pooled_values(coefficient, readout), expected, rtol=1e-4, atol=1e-4)


def test_scores_of_pairs_are_inner_products_with_their_contributions(transformer):
    _, trace, readout = transformer
    coefficient = coefficients(dataclasses.replace(trace, gain=None), readout)[0]  # constants are not scaled either
    text = torch.nn.functional.normalize(torch.randn(2, EMBED, generator=torch.Generator().manual_seed(1)), dim=1)
    write = torch.stack([write_vectors(readout, head) for head in range(readout.heads)])
    dense = dense_contributions(coefficient[None], write, pair_constants(readout))[0]
    expected = torch.einsum("hne,te->thn", dense, text) / dense.sum((0, 1)).norm()
    torch.testing.assert_close(pair_scores(coefficient, text, readout), expected, rtol=1e-4, atol=1e-5)


def test_the_residual_is_relative_to_the_embedding(transformer):
    embedding = transformer[0]
    torch.testing.assert_close(residual(embedding * 1.01, embedding), torch.full((VIEWS,), 0.01), rtol=1e-3, atol=0)


def test_a_stored_readout_is_the_one_that_was_written(tmp_path):
    generator = torch.Generator().manual_seed(0)
    arrays = {"value": (3, 2, 6), "value_bias": (3, 2), "output": (3, 5, 2), "output_bias": (5,), "write": (7, 6)}
    values = {name: torch.randn(shape, generator=generator) for name, shape in arrays.items()}
    for write in (values["write"], None):
        readout = Readout(**{**values, "write": write}, layer=torch.tensor([1, 1, 4]))
        attributes = {"grid": 1, "tokens": 2, "block": 3}
        write_readout(tmp_path / "readout.zarr", readout, Stamp(model="m", architecture="a"), attributes)
        loaded, stamp = read_readout(tmp_path / "readout.zarr")
        assert (stamp.model, stamp.architecture) == ("m", "a")
        for name in (*arrays, "layer"):
            stored, original = getattr(loaded, name), getattr(readout, name)
            assert (stored is original is None) or torch.equal(stored, original)
        assert torch.equal(loaded.joint_output, readout.joint_output)
        with pytest.raises(NadpipeError, match="attention weights"):
            read_pool(tmp_path / "readout.zarr")
