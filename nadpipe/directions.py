"""The direction that a unit (pair, neuron or head) writes along, from coefficients and write vectors.

The published procedure (Bu & Gandelsman, arXiv 2509.19943): centre a unit's contributions over the images,
keep the `top_images` of largest norm, take the first right-singular vectors, each with the sign that more than half of
the kept images project on positively (on a tie, the write vector's own sign for pairs). Here in closed form for pairs,
and by small SVDs in factor space for neurons and heads; the dense (image, head, neuron, embed) tensor is never built.
Everything is accumulated block by block over images, so memory does not grow with their number.
"""

import dataclasses
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nadpipe.attnpool import AttentionPool, pair_constants, pooled_values


class Mean:
    """Mean over views of arrays that come in blocks, in float64."""

    def __init__(self, count: int = 0, total: Tensor | None = None) -> None:
        self.count = count
        self.total = total

    def add(self, block: Float[Tensor, "view ..."], views: int | None = None) -> None:
        """Count another block of views in; `views` when its rows are sums over that many."""
        total = block.double().sum(0)
        self.total = total if self.total is None else self.total + total
        self.count += len(block) if views is None else views

    def merge(self, other: "Mean") -> None:
        """Count in what was accumulated over other views."""
        self.total = other.total if self.total is None else self.total + other.total
        self.count += other.count

    def value(self) -> Float[Tensor, "..."]:
        """The mean over all views so far."""
        return self.total / self.count


def centred(block: Float[Tensor, "view ..."], mean: Float[Tensor, "..."]) -> Float[Tensor, "view ..."]:
    """The block minus the mean, in the block's precision; differences within its rounding of the mean are zero."""
    deviation = block.double() - mean
    deviation[deviation.abs() <= 4 * torch.finfo(block.dtype).eps * mean.abs()] = 0
    return deviation.to(block.dtype)


class Extremes:
    """Per pair: mean, second moment and the `keep` largest and `keep` smallest coefficients, in one pass over blocks.

    The `keep` coefficients farthest from the mean are among these 2 · keep, whatever the mean turns out to be. Parts
    accumulated apart, over shards say, are merged to the same.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.mean = Mean()
        self.square = Mean()
        self.extreme: Float[Tensor, "head neuron kept"] | None = None  # ascending; all of them up to 2 · keep views

    def add(self, block: Float[Tensor, "view head neuron"]) -> None:
        """Count another block of views in."""
        self.mean.add(block)
        self.square.add(block.double().square())
        self._keep(block.permute(1, 2, 0))

    def merge(self, other: "Extremes") -> None:
        """Count in what was accumulated over other views."""
        self.mean.merge(other.mean)
        self.square.merge(other.square)
        self._keep(other.extreme)

    def _keep(self, values: Float[Tensor, "head neuron view"]) -> None:
        if self.extreme is not None:
            values = torch.cat([self.extreme, values], dim=2)
        ordered = torch.from_numpy(np.sort(values.numpy(), axis=2))  # several times faster than torch's sort or top k
        if ordered.shape[2] > 2 * self.keep:
            ordered = torch.cat([ordered[..., : self.keep], ordered[..., -self.keep :]], dim=2)
        self.extreme = ordered

    def farthest(self) -> Float[Tensor, "kept head neuron"]:
        """Deviations from the mean, the `keep` farthest first (fewer when there are fewer views)."""
        deviation = self.extreme.double() - self.mean.value()[..., None]
        deviation[self.constant()] = 0
        order = deviation.abs().argsort(dim=2, descending=True, stable=True)[..., : self.keep]
        return deviation.gather(2, order).permute(2, 0, 1)

    def constant(self) -> Bool[Tensor, "head neuron"]:
        """Pairs whose coefficient is the same in every view, within its rounding."""
        spread = self.extreme[..., -1].double() - self.extreme[..., 0]
        return spread <= 4 * torch.finfo(self.extreme.dtype).eps * self.mean.value().abs()

    def std(self) -> Float[Tensor, "head neuron"]:
        """Standard deviation over views (divided by their number, not one less)."""
        variance = self.square.value() - self.mean.value().square()
        variance[self.constant()] = 0
        return variance.clamp(min=0).sqrt()


@dataclasses.dataclass(frozen=True)
class PairFit:
    """Directions of all pairs of one head and what they were fitted to."""

    direction: Float[Tensor, "neuron embed"]
    sign: Int[Tensor, " neuron"]
    write_norm: Float[Tensor, " neuron"]
    top_norm: Float[Tensor, " neuron"]


def fit_pairs(deviation: Float[Tensor, "kept neuron"], write: Float[Tensor, "neuron embed"]) -> PairFit:
    """± w / ‖w‖, which equals the first right-singular vector of the kept, centred contributions.

    Centred contributions (s - mean s) w are rank one, with norms |s - mean s| ‖w‖; so the sign is the only thing that the
    images decide. A pair that does not write (w = 0) gets a zero direction.
    """
    write_norm = write.norm(dim=1)
    positive, negative = (deviation > 0).sum(0), (deviation < 0).sum(0)
    sign = torch.where(positive >= negative, 1, -1)
    unit = write / torch.where(write_norm > 0, write_norm, 1)[:, None]
    top_norm = deviation.abs().mean(0).to(write.dtype) * write_norm
    return PairFit(unit * sign[:, None], sign, write_norm, top_norm)


def unit_factors(
    unit: Literal["neuron", "head"], coefficient: Float[Tensor, "view head neuron"], pool: AttentionPool
) -> Float[Tensor, "view unit rank"]:
    """What of a unit's contribution differs between images: a neuron's coefficients over heads, a head's pooled value.

    r[n] = sum_h s[h, n] w[h, n] has rank at most H; r[h] = sum_n s[h, n] w[h, n] = W_O^h (W_V^h s[h]) at most d.
    """
    return coefficient.transpose(1, 2) if unit == "neuron" else pooled_values(coefficient, pool)


def unit_writes(unit: Literal["neuron", "head"], pool: AttentionPool, units: slice) -> Float[Tensor, "unit rank embed"]:
    """What the factors of these units multiply: w[h, n] over heads for a neuron, the rows of W_O^h^T for a head."""
    if unit == "head":
        return pool.output()[units].transpose(1, 2)
    return torch.einsum("hdu,hed->uhe", pool.by_head(pool.v_weight)[..., units], pool.output())


def unit_constants(unit: Literal["neuron", "head"], pool: AttentionPool) -> Float[Tensor, "unit embed"]:
    """The part of each unit's contribution that no image changes: its pairs' constants b[h], summed."""
    constant = pair_constants(pool)
    return constant.sum(0).expand(pool.neurons, -1) if unit == "neuron" else constant * pool.neurons


class TopByNorm:
    """Per unit, the `keep` views whose centred factors have the largest norm, in one pass over blocks."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.factor: Float[Tensor, "kept unit rank"] | None = None
        self.norm: Float[Tensor, "kept unit"] | None = None
        self.energy = Mean()

    def add(self, factor: Float[Tensor, "view unit rank"], root: Float[Tensor, "unit basis rank"]) -> None:
        """Count a block in. `root` maps a factor to coordinates in an orthonormal basis of the unit's write space."""
        norm = torch.einsum("vur,ukr->vuk", factor, root).norm(dim=2)
        self.energy.add(norm.square())
        if self.norm is not None:
            factor, norm = torch.cat([self.factor, factor]), torch.cat([self.norm, norm])
        order = norm.argsort(dim=0, descending=True, stable=True)[: self.keep]
        self.norm = norm.gather(0, order)
        self.factor = factor.gather(0, order[..., None].expand(-1, -1, factor.shape[2]))

    def of(self, units: slice) -> "TopByNorm":
        """The same for some of the units."""
        part = TopByNorm(self.keep)
        part.factor, part.norm = self.factor[:, units], self.norm[:, units]
        return part


@dataclasses.dataclass(frozen=True)
class SubspaceFit:
    """Directions of units that are not rank one: orthonormal per unit, zero beyond the unit's rank."""

    direction: Float[Tensor, "unit component embed"]
    explained: Float[Tensor, "unit component"]  # share of the kept images' centred energy; NaN where there is none
    top_norm: Float[Tensor, " unit"]


def orthonormal_basis(
    write: Float[Tensor, "unit rank embed"],
) -> tuple[Float[Tensor, "unit embed basis"], Float[Tensor, "unit basis rank"]]:
    """Thin QR of each unit's write vectors: a contribution factor · write equals basis · (root · factor)."""
    return torch.linalg.qr(write.transpose(1, 2))


def fit_subspaces(
    top: TopByNorm,
    basis: Float[Tensor, "unit embed basis"],
    root: Float[Tensor, "unit basis rank"],
    components: int,
) -> SubspaceFit:
    """The first right-singular vectors of each unit's kept, centred contributions, by an SVD in its factor space."""
    coordinate = torch.einsum("vur,ukr->uvk", top.factor, root)
    _, singular, right = torch.linalg.svd(coordinate, full_matrices=False)
    rank = min(components, singular.shape[1])
    alive = (singular[:, :rank] > singular[:, :1] * _ZERO) & (singular[:, :1] > 0)
    right = right[:, :rank] * alive[..., None]
    projection = torch.einsum("uvk,uck->uvc", coordinate, right)
    sign = torch.where((projection > 0).sum(1) >= (projection < 0).sum(1), 1, -1)
    direction = torch.einsum("uek,uck->uce", basis, right * sign[..., None])
    energy = singular.square()
    pad = torch.nn.functional.pad
    explained = pad(energy[:, :rank], (0, components - rank)) / energy.sum(1, keepdim=True)
    return SubspaceFit(pad(direction, (0, 0, 0, components - rank)), explained, top.norm.mean(0))


_ZERO = 1e-6  # singular values below this share of the first are rounding
