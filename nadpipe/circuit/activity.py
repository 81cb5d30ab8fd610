"""Activity of pairs: images at both ends of their coefficients, histograms, and maps of where they fire."""

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from nadpipe.circuit.readout import Readout, write_vectors


def end_images(value: Float[Tensor, "view unit"], count: int) -> Int[Tensor, "unit shown"]:
    """Return the `count` views with the largest values of each unit, then those with the smallest; extremes first."""
    most, least = (value.topk(min(count, len(value)), dim=0, largest=largest).indices for largest in (True, False))
    return torch.cat([most, least]).T


def histogram(
    value: Float[Tensor, "view unit"], low: Float[Tensor, " unit"], high: Float[Tensor, " unit"], bins: int
) -> Int[Tensor, "unit bin"]:
    """Count the views in each of `bins` equal bins of [low, high], per unit.

    The last bin includes its upper end. The first bin holds all views of a unit that does not vary.
    """
    width = torch.where(high > low, high - low, 1)
    bin_index = ((value - low) / width * bins).long().clamp(0, bins - 1)
    units = value.shape[1]
    index = bin_index + torch.arange(units) * bins
    return torch.bincount(index.flatten(), minlength=units * bins).reshape(units, bins)


def firing(
    weight: Float[Tensor, "head token"],
    x: Float[Tensor, "token neuron"],
    head: Int[Tensor, " pair"],
    neuron: Int[Tensor, " pair"],
    prefix: int = 1,
) -> Float[Tensor, "pair spatial"]:
    """Compute where pairs fire in a view: weight · x_t[n], the part of the coefficient from each spatial token.

    weight: `token_weights` of the view. x: activations. Both start with `prefix` tokens that are not spatial; with these, the
    parts sum to the coefficient.
    """
    return weight[head, prefix:] * x[prefix:, neuron].T


def cosine_maps(
    weight: Float[Tensor, "head token"],
    x: Float[Tensor, "token neuron"],
    head: Int[Tensor, " pair"],
    neuron: Int[Tensor, " pair"],
    text: Float[Tensor, " embed"],
    length: float,
    readout: Readout,
    prefix: int = 1,
) -> Float[Tensor, "pair spatial"]:
    """Compute what pairs add to the cosine of a view and a text at each spatial token: a[h, t] x_t[n] ⟨w[h, n], q⟩ / ‖y‖.

    text: q, of unit length. length: ‖y‖, the norm of the view's embedding. prefix: as in `firing`. With
    the first `prefix` tokens and ⟨b[h], q⟩ / ‖y‖, the maps sum to the scores of `pair_scores`.
    """
    write = torch.stack([write_vectors(readout, h)[n] for h, n in zip(head.tolist(), neuron.tolist(), strict=True)])
    return firing(weight, x, head, neuron, prefix) * (write @ text / length)[:, None]


def as_bytes(maps: Float[Tensor, "*map spatial"]) -> tuple[Int8[Tensor, "*map spatial"], Float[Tensor, "*map"]]:
    """Quantise maps to steps of 1/127 of each map's largest magnitude; return them and that magnitude."""
    scale = maps.abs().amax(-1)
    steps = maps / torch.where(scale > 0, scale, 1)[..., None] * 127
    return steps.round().to(torch.int8), scale


def share_scale(
    steps: Int8[Tensor, "*pair view spatial"], scale: Float[Tensor, "*pair view"]
) -> tuple[Int8[Tensor, "*pair view spatial"], Float[Tensor, "*pair"]]:
    """Rescale the maps of each pair (see `as_bytes`) to the largest scale of its views; return them and that scale.

    The result is within one step of the maps.
    """
    shared = scale.amax(-1)
    share = scale / torch.where(shared > 0, shared, 1)[..., None]
    return (steps * share[..., None]).round().to(torch.int8), shared
