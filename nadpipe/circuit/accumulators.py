"""Statistics over any number of views in constant memory.

Every accumulator has the same interface: `add` includes a block of views, `merge` includes another accumulator (such as that of
another shard), and `result` returns the statistic. Merging gives the same result as adding all blocks to one accumulator.
"""

import dataclasses
from typing import Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Result = TypeVar("Result", covariant=True)


class Accumulator(Protocol[Result]):
    """Interface of all accumulators. It leaves out `add`, whose blocks differ from one accumulator to the next."""

    def merge(self, other: "Accumulator") -> None:
        """Include an accumulator of other views."""

    def result(self) -> Result:
        """Return the statistic over all views so far."""


class Mean:
    """Mean over views, accumulated in float64."""

    def __init__(self, count: int = 0, total: Tensor | None = None) -> None:
        self.count = count
        self.total = total

    def add(self, block: Float[Tensor, "view ..."], views: int | None = None) -> None:
        """Include a block of views. `views`: number of views, if a row is a sum over several."""
        total = block.double().sum(0)
        self.total = total if self.total is None else self.total + total
        self.count += len(block) if views is None else views

    def merge(self, other: "Mean") -> None:
        """Include an accumulator of other views."""
        if other.total is None:
            return
        self.total = other.total if self.total is None else self.total + other.total
        self.count += other.count

    def result(self) -> Float[Tensor, "..."]:
        """Return the mean."""
        assert self.total is not None
        return self.total / self.count


def subtract_mean(block: Float[Tensor, "view ..."], mean: Float[Tensor, "..."]) -> Float[Tensor, "view ..."]:
    """Return the block minus the mean in the block's precision; differences within its rounding error become zero."""
    deviation = block.double() - mean
    deviation[deviation.abs() <= 4 * torch.finfo(block.dtype).eps * mean.abs()] = 0
    return deviation.to(block.dtype)


@dataclasses.dataclass(frozen=True)
class PairMoments:
    """Moments of every pair's coefficient over all views, and its largest deviations from the mean."""

    views: int
    keep: int
    mean: Float[Tensor, "head neuron"]
    std: Float[Tensor, "head neuron"]  # population standard deviation: divided by the number of views
    farthest: Float[Tensor, "kept head neuron"]  # deviations from the mean, largest magnitude first


class Extremes:
    """Mean, second moment, and the `keep` largest and `keep` smallest coefficients of every pair.

    For any mean, the `keep` coefficients farthest from it are among these 2 · keep, so one pass is enough.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.mean = Mean()
        self.square = Mean()
        self.extreme: Float[Tensor, "head neuron kept"] | None = None  # ascending; all coefficients up to 2 · keep views

    def add(self, block: Float[Tensor, "view head neuron"]) -> None:
        """Include a block of views."""
        self.mean.add(block)
        self.square.add(block.double().square())
        self._keep(block.permute(1, 2, 0))

    def merge(self, other: "Extremes") -> None:
        """Include an accumulator of other views."""
        if other.extreme is None:
            return
        self.mean.merge(other.mean)
        self.square.merge(other.square)
        self._keep(other.extreme)

    def result(self) -> PairMoments:
        """Return the moments of all pairs."""
        assert self.extreme is not None
        mean = self.mean.result()
        spread = self.extreme[..., -1].double() - self.extreme[..., 0]
        constant = spread <= 4 * torch.finfo(self.extreme.dtype).eps * mean.abs()  # the same in every view, within rounding
        return PairMoments(self.mean.count, self.keep, mean, self._std(mean, constant), self._farthest(mean, constant))

    def _keep(self, values: Float[Tensor, "head neuron view"]) -> None:
        if self.extreme is not None:
            values = torch.cat([self.extreme, values], dim=2)
        ordered = torch.from_numpy(np.sort(values.numpy(), axis=2))  # several times faster than torch's sort or topk
        if ordered.shape[2] > 2 * self.keep:
            ordered = torch.cat([ordered[..., : self.keep], ordered[..., -self.keep :]], dim=2)
        self.extreme = ordered

    def _farthest(
        self, mean: Float[Tensor, "head neuron"], constant: Bool[Tensor, "head neuron"]
    ) -> Float[Tensor, "kept head neuron"]:
        assert self.extreme is not None
        deviation = self.extreme.double() - mean[..., None]
        deviation[constant] = 0
        order = deviation.abs().argsort(dim=2, descending=True, stable=True)[..., : self.keep]
        return deviation.gather(2, order).permute(2, 0, 1)

    def _std(self, mean: Float[Tensor, "head neuron"], constant: Bool[Tensor, "head neuron"]) -> Float[Tensor, "head neuron"]:
        variance = self.square.result() - mean.square()
        variance[constant] = 0
        return variance.clamp(min=0).sqrt()


@dataclasses.dataclass(frozen=True)
class TopFactors:
    """Centred factors of each unit in the views where its contribution has the largest norm."""

    factor: Float[Tensor, "kept unit rank"]
    norm: Float[Tensor, "kept unit"]
    energy: Float[Tensor, " all_units"]  # mean square norm over all views

    def of(self, units: slice) -> "TopFactors":
        """Return the factors of some units."""
        return TopFactors(self.factor[:, units], self.norm[:, units], self.energy[units])


class TopByNorm:
    """The `keep` views of each unit whose centred factors have the largest norm."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.factor: Float[Tensor, "kept unit rank"] | None = None
        self.norm: Float[Tensor, "kept unit"] | None = None
        self.energy = Mean()

    def add(self, factor: Float[Tensor, "view unit rank"], root: Float[Tensor, "unit basis rank"]) -> None:
        """Include a block of views. `root` maps a factor to an orthonormal basis of the unit's write space."""
        norm = torch.einsum("vur,ukr->vuk", factor, root).norm(dim=2)
        self.energy.add(norm.square())
        self._keep(factor, norm)

    def merge(self, other: "TopByNorm") -> None:
        """Include an accumulator of other views."""
        if other.factor is not None and other.norm is not None:
            self.energy.merge(other.energy)
            self._keep(other.factor, other.norm)

    def result(self) -> TopFactors:
        """Return the kept factors of all units."""
        assert self.factor is not None
        assert self.norm is not None
        return TopFactors(self.factor, self.norm, self.energy.result())

    def _keep(self, factor: Float[Tensor, "view unit rank"], norm: Float[Tensor, "view unit"]) -> None:
        if self.factor is not None and self.norm is not None:
            factor, norm = torch.cat([self.factor, factor]), torch.cat([self.norm, norm])
        order = norm.argsort(dim=0, descending=True, stable=True)[: self.keep]
        self.norm = norm.gather(0, order)
        self.factor = factor.gather(0, order[..., None].expand(-1, -1, factor.shape[2]))


@dataclasses.dataclass(frozen=True)
class Selection:
    """The pairs selected for each text, best first."""

    cosine: Float[Tensor, "text rank"]
    head: Int[Tensor, "text rank"]
    neuron: Int[Tensor, "text rank"]


class TopPairs:
    """The k pairs of each text whose direction has the largest cosine to it, accumulated over heads instead of views."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.selection: Selection | None = None

    def add(self, head: int, direction: Float[Tensor, "neuron embed"], text: Float[Tensor, "text embed"]) -> None:
        """Include the pairs of a head. Of equal cosines the lower head, then the lower neuron, comes first."""
        cosine = text @ direction.T
        neuron = torch.arange(len(direction), device=text.device).expand_as(cosine)
        self._keep(Selection(cosine, torch.full_like(neuron, head), neuron))

    def merge(self, other: "TopPairs") -> None:
        """Include an accumulator of other, higher heads."""
        if other.selection is not None:
            self._keep(other.selection)

    def result(self) -> Selection:
        """Return the selection over all heads so far."""
        assert self.selection is not None
        return self.selection

    def _keep(self, new: Selection) -> None:
        columns = [new.cosine, new.head, new.neuron]
        if self.selection is not None:
            kept = [self.selection.cosine, self.selection.head, self.selection.neuron]
            columns = [torch.cat(both, dim=1) for both in zip(kept, columns, strict=True)]
        order = columns[0].argsort(dim=1, descending=True, stable=True)[:, : self.k]
        self.selection = Selection(*(column.gather(1, order) for column in columns))
