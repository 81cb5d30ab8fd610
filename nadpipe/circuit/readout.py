"""The readout of an image tower: heads read a stream of tokens and write into the embedding.

With the attention of the heads and the scales of the norms before and after them fixed, every CLIP image embedding is linear in
the activations of the neurons that write into the stream (docs/method.md). For pairs of a neuron n and a head h:

    s[h, n] = gain · sum_t a[h, t] · scale[layer(h), t] · z_t[n]     coefficient: one number per view and pair
    w[h, n] = W_O^h W_V^h U[:, n]                                    write vector: a constant of the weights
    y       = sum_{h,n} s[h, n] w[h, n] + gain · constant + rest     the embedding before normalisation

In CLIP-ResNet (Bu & Gandelsman, arXiv 2509.19943), neurons are the stream itself, so U is the identity, scale and gain are 1,
and rest is 0. All functions keep the dtype and device of their inputs.
"""

import dataclasses
import functools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nadpipe.errors import NadpipeError


@dataclasses.dataclass(frozen=True)
class Readout:
    """Weights of the heads that are read out, without the weights of their attention."""

    value: Float[Tensor, "head width stream"]  # W_V^h
    value_bias: Float[Tensor, "head width"]  # b_V^h
    output: Float[Tensor, "head embed width"]  # W_O^h
    output_bias: Float[Tensor, " embed"]  # b_O
    layer: Int[Tensor, " head"]  # block of the tower that each head is in; see store.kinds.model
    write: Float[Tensor, "neuron stream"] | None = None  # U: what each neuron writes; None for the identity
    scaled: bool = False  # True if a norm behind the heads scales biases by each view's gain; they are then part of the rest

    @property
    def heads(self) -> int:
        """Number of heads, H."""
        return self.value.shape[0]

    @property
    def width(self) -> int:
        """Width of a head, d."""
        return self.value.shape[1]

    @property
    def neurons(self) -> int:
        """Number of neurons, C."""
        return self.value.shape[2] if self.write is None else self.write.shape[0]

    @property
    def embed(self) -> int:
        """Width of the joint image-text space, O."""
        return self.output.shape[1]

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return self.heads * self.neurons

    @functools.cached_property
    def neuron_value(self) -> Float[Tensor, "head width neuron"]:
        """W_V^h U: the value that each head reads from each neuron at activation 1."""
        return self.value if self.write is None else self.value @ self.write.T

    @functools.cached_property
    def joint_output(self) -> Float[Tensor, "embed value"]:
        """W_O: the output projection of all heads side by side."""
        return self.output.transpose(0, 1).flatten(1)

    @functools.cached_property
    def layer_index(self) -> Int[Tensor, " head"]:
        """Position of each head's layer among the layers that are read out, ascending."""
        return torch.unique(self.layer, return_inverse=True)[1]

    @property
    def layers(self) -> list[int]:
        """Layers that are read out, ascending."""
        return self.layer.unique().tolist()

    @functools.cached_property
    def constant(self) -> Float[Tensor, " embed"]:
        """W_O b_V + b_O: what the biases of all heads write, before the gain."""
        return self.joint_output @ self.value_bias.flatten() + self.output_bias


def count_pairs(k: int | float, readout: Readout) -> int:
    """Return k, or the number of pairs that it stands for as a share of all pairs, if it is below 1.

    Raises NadpipeError if k exceeds the number of pairs.
    """
    if k > readout.pairs:
        raise NadpipeError(
            f"k: {k} exceeds the model's {readout.pairs} pairs ({readout.heads} heads × {readout.neurons} neurons); lower it"
        )
    return int(k) if k >= 1 else max(1, round(k * readout.pairs))


@dataclasses.dataclass(frozen=True)
class Trace:
    """Record of what a tower computed for some views: all that the readout needs in addition to its weights."""

    activation: Float[Tensor, "view token neuron"]  # z at the tokens that heads read
    attention: Float[Tensor, "view head token"]  # a: row of the query that is read out
    scale: Float[Tensor, "view layer token"] | None = None  # of the norm before each layer's heads; None for 1
    gain: Float[Tensor, " view"] | None = None  # of the norm after the heads; None for 1
    rest: Float[Tensor, "view embed"] | None = None  # embedding that reaches the output by other paths; None for 0


def coefficients(trace: Trace, readout: Readout) -> Float[Tensor, "view head neuron"]:
    """Compute s[h, n] = gain · sum_t a[h, t] · scale[layer(h), t] · z_t[n]."""
    return token_weights(trace, readout) @ trace.activation


def token_weights(trace: Trace, readout: Readout) -> Float[Tensor, "view head token"]:
    """Compute gain · a[h, t] · scale[layer(h), t]: the weight of each token in the coefficients of a head."""
    weight = trace.attention
    if trace.scale is not None:
        weight = weight * trace.scale[:, readout.layer_index]
    if trace.gain is not None:
        weight = weight * trace.gain[:, None, None]
    return weight


def write_vectors(readout: Readout, head: int) -> Float[Tensor, "neuron embed"]:
    """Compute w[h, n] = W_O^h W_V^h U[:, n] for the neurons of one head."""
    return readout.neuron_value[head].T @ readout.output[head].T


def write_vector_entries(
    readout: Readout, head: Int[Tensor, " head"], neuron: Int[Tensor, " neuron"], embed: Int[Tensor, " embed"]
) -> Float[Tensor, "head neuron embed"]:
    """Compute w[h, n] for the given heads and neurons at the given positions of the embedding."""
    value, output = readout.neuron_value[head], readout.output[head]
    return value[:, :, neuron].transpose(1, 2) @ output[:, embed].transpose(1, 2)


def pair_constants(readout: Readout) -> Float[Tensor, "head embed"]:
    """Compute b[h] = W_O^h b_V^h / C + b_O / (H C): the part of a pair's contribution that is the same for all images.

    It is 0 for a scaled readout, whose biases are not the same for all images.
    """
    if readout.scaled:
        return torch.zeros_like(readout.output[..., 0])
    written = torch.einsum("hed,hd->he", readout.output, readout.value_bias)
    return written / readout.neurons + readout.output_bias / readout.pairs


def pooled_values(coefficient: Float[Tensor, "view head neuron"], readout: Readout) -> Float[Tensor, "view head width"]:
    """Compute W_V^h U s[h]: the sum of a head's pairs in the head's value space, without the bias."""
    return torch.einsum("vhn,hdn->vhd", coefficient, readout.neuron_value)


def sum_pairs(
    coefficient: Float[Tensor, "view head neuron"], readout: Readout, gain: Float[Tensor, " view"] | None = None
) -> Float[Tensor, "view embed"]:
    """Compute sum_{h,n} s[h, n] w[h, n] + gain · constant: the embedding before normalisation, without the rest.

    Without a gain, the constant of a scaled readout is left out, because it is part of the rest (`other_paths`).
    """
    value, output = pooled_values(coefficient, readout).flatten(1), readout.joint_output.T
    if gain is None and readout.scaled:
        return value @ output
    bias = readout.value_bias.flatten()
    if gain is None:
        return (value + bias) @ output + readout.output_bias
    return value @ output + gain[:, None] * (bias @ output + readout.output_bias)


def other_paths(trace: Trace, readout: Readout) -> Float[Tensor, "view embed"] | None:
    """Compute the part of the embedding that `sum_pairs` without a gain leaves out; None for 0.

    It is the rest, and the constant of a scaled readout.
    """
    if not readout.scaled or trace.gain is None:
        return trace.rest
    constant = trace.gain[:, None] * readout.constant
    return constant if trace.rest is None else trace.rest + constant


def residual(summed: Float[Tensor, "view embed"], embedding: Float[Tensor, "view embed"]) -> Float[Tensor, " view"]:
    """Compute ‖summed - y‖ / ‖y‖ per view: the relative error of a decomposition of y."""
    return (summed - embedding).norm(dim=1) / embedding.norm(dim=1)


def token_values(stream: Float[Tensor, "view token stream"], readout: Readout) -> Float[Tensor, "view head token width"]:
    """Compute W_V^h x_t + b_V^h: the value of every token, per head."""
    flat = stream @ readout.value.flatten(0, 1).T + readout.value_bias.flatten()
    return flat.unflatten(2, (readout.heads, -1)).transpose(1, 2)


def stream_values(
    streams: Float[Tensor, "view layer token stream"], readout: Readout
) -> Float[Tensor, "view head token width"]:
    """Compute W_V^h x_t + b_V^h with the stream x that the layer of each head reads."""
    values = [
        torch.einsum("vtn,hdn->vhtd", streams[:, index], readout.value[readout.layer_index == index])
        for index in range(streams.shape[1])
    ]
    order = readout.layer_index.argsort(stable=True).argsort()
    return torch.cat(values, dim=1)[:, order] + readout.value_bias[:, None]


def attended_tokens(
    attention: Float[Tensor, "view head token"], stream: Float[Tensor, "view token stream"]
) -> Float[Tensor, "head token stream"]:
    """Sum a[h, t] x_t over views. The sum is linear, so a mean over many views is projected only once."""
    return torch.einsum("vht,vtn->htn", attention, stream)


def attended_streams(
    attention: Float[Tensor, "view head token"], streams: Float[Tensor, "view layer token stream"], readout: Readout
) -> Float[Tensor, "head token stream"]:
    """Sum a[h, t] x_t over views, with the stream x that the layer of each head reads."""
    attended = attention.new_empty(*attention.shape[1:], streams.shape[3])
    for index in range(streams.shape[1]):
        heads = readout.layer_index == index
        attended[heads] = attended_tokens(attention[:, heads], streams[:, index])
    return attended


def project_attended(
    attended: Float[Tensor, "head token stream"], attention: Float[Tensor, "head token"], readout: Readout
) -> Float[Tensor, "head token width"]:
    """Compute the mean over views of a[h, t] (W_V^h x_t + b_V^h) from the means of a[h, t] x_t and of a[h, t]."""
    return torch.einsum("htn,hdn->htd", attended, readout.value) + attention[..., None] * readout.value_bias[:, None]


def pair_scores(
    coefficient: Float[Tensor, "head neuron"],
    text: Float[Tensor, "text embed"],
    readout: Readout,
    rest: Float[Tensor, " embed"] | None = None,
) -> Float[Tensor, "text head neuron"]:
    """Compute ⟨r[h, n], q⟩ / ‖y‖: the amount that every pair adds to the cosine of one image and each text of unit length.

    rest: part of y that is not in pairs (`other_paths`); None for 0. The scores of all pairs and ⟨rest, q⟩ / ‖y‖ sum to the
    cosine.
    """
    summed = sum_pairs(coefficient[None], readout)[0]
    norm = (summed if rest is None else summed + rest).norm()
    constant = pair_constants(readout) @ text.T
    scores = [
        coefficient[head] * (text @ write_vectors(readout, head).T) + constant[head, :, None] for head in range(readout.heads)
    ]
    return torch.stack(scores, dim=1) / norm


def token_scores(
    trace: Trace, text: Float[Tensor, "text embed"], readout: Readout, rest: Float[Tensor, " embed"] | None = None
) -> Float[Tensor, "text token"]:
    """Compute the amount that every token of one view adds, through all pairs, to the cosine of the view and each text.

    trace: of one view. rest: as in `pair_scores`. In a CLIP-ResNet it is sum_h ⟨m[h, t], q⟩ / ‖y‖ with
    m[h, t] = a[h, t] W_O^h (W_V^h x_t + b_V^h) + b_O / (H T). The scores of all tokens sum to those of all pairs.
    """
    weight, activation = token_weights(trace, readout)[0], trace.activation[0]
    value = torch.einsum("tn,hdn->htd", activation, readout.neuron_value)
    weighed = weight[..., None] * value
    if not readout.scaled:
        weighed = weighed + trace.attention[0][..., None] * readout.value_bias[:, None]
    written = weighed.transpose(0, 1).flatten(1) @ readout.joint_output.T
    if not readout.scaled:
        written = written + readout.output_bias / len(activation)
    summed = written.sum(0)
    return (written @ text.T).T / (summed if rest is None else summed + rest).norm()


def dense_contributions(
    coefficient: Float[Tensor, "view head neuron"],
    write: Float[Tensor, "head neuron embed"],
    constant: Float[Tensor, "head embed"],
) -> Float[Tensor, "view head neuron embed"]:
    """Compute r[h, n] = s[h, n] w[h, n] + b[h] of each view."""
    return torch.addcmul(constant[:, None], coefficient[..., None], write)  # one allocation, that of the result
