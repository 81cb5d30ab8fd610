"""What the explorer shows of pairs: the images at their ends, how their coefficients are spread, and where they fire."""

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor


def end_images(value: Float[Tensor, "view unit"], count: int) -> Int[Tensor, "unit shown"]:
    """Views at both ends of each unit: the `count` with the largest values, then those with the smallest, ends first."""
    most, least = (value.topk(min(count, len(value)), dim=0, largest=largest).indices for largest in (True, False))
    return torch.cat([most, least]).T


def histogram(
    value: Float[Tensor, "view unit"], low: Float[Tensor, " unit"], high: Float[Tensor, " unit"], bins: int
) -> Int[Tensor, "unit bin"]:
    """Views in each of `bins` equal parts of [low, high], per unit; the last part has its upper end. All in the first where the
    unit does not vary."""
    width = torch.where(high > low, high - low, 1)
    part = ((value - low) / width * bins).long().clamp(0, bins - 1)
    units = value.shape[1]
    index = part + torch.arange(units) * bins
    return torch.bincount(index.flatten(), minlength=units * bins).reshape(units, bins)


def firing(
    attention: Float[Tensor, "head token"],
    x: Float[Tensor, "token neuron"],
    head: Int[Tensor, " pair"],
    neuron: Int[Tensor, " pair"],
) -> Float[Tensor, "pair spatial"]:
    """Where in a view pairs fire: a[h, t] x_t[n] over its spatial tokens; with token 0 they sum to the coefficient."""
    return attention[head, 1:] * x[1:, neuron].T


def as_bytes(maps: Float[Tensor, "*map spatial"]) -> tuple[Int8[Tensor, "*map spatial"], Float[Tensor, "*map"]]:
    """Maps in steps of 1/127 of each map's largest magnitude, and that magnitude."""
    scale = maps.abs().amax(-1)
    steps = maps / torch.where(scale > 0, scale, 1)[..., None] * 127
    return steps.round().to(torch.int8), scale
