"""Text sets against directions: centring, the nearest texts, and sparse codes by orthogonal matching pursuit."""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor


def unit(vector: Float[Tensor, "*row embed"]) -> Float[Tensor, "*row embed"]:
    """Unit length per row; a zero row stays zero."""
    norm = vector.norm(dim=-1, keepdim=True)
    return vector / torch.where(norm > 0, norm, 1)


def centre(embedding: Float[Tensor, "text embed"], reference: Float[Tensor, "reference embed"]) -> Float[Tensor, "text embed"]:
    """Take the mean of a reference set off each text and make it unit length again: the modality gap goes.

    The reference is the text set itself, unless the set is too small to have a mean that means anything.
    """
    return unit(embedding - reference.mean(0))


def nearest(
    direction: Float[Tensor, "unit embed"], text: Float[Tensor, "text embed"], count: int
) -> tuple[Float[Tensor, "unit rank"], Int[Tensor, "unit rank"]]:
    """Cosines and indices of the `count` texts nearest to each direction, best first; unit rows on both sides."""
    return torch.topk(direction @ text.T, min(count, len(text)), dim=1)


@dataclasses.dataclass(frozen=True)
class SparseCode:
    """Sparse codes of signals, atoms in the order they were chosen; -1 and 0 where a pursuit ended early."""

    atom: Int[Tensor, "unit rank"]
    weight: Float[Tensor, "unit rank"]
    explained: Float[Tensor, "unit rank"]  # share of the signal's energy after this many atoms


def matching_pursuit(signal: Float[Tensor, "unit embed"], dictionary: Float[Tensor, "atom embed"], atoms: int) -> SparseCode:
    """Orthogonal matching pursuit of a batch of signals over a dictionary of unit atoms.

    Greedy choice of the atom with the largest |correlation| to the residual; the chosen atoms of each signal are kept as
    an orthonormal basis (modified Gram-Schmidt, twice), so the residual needs no least squares, and the weights come
    from one triangular solve at the end. Stops early where the residual vanishes. (The published code scales the
    dictionary along the wrong axis, so its atoms are not of unit length; here they must be.)
    """
    count, width = signal.shape
    rank = min(atoms, width, len(dictionary))
    energy = signal.square().sum(1)
    residual = signal.clone()
    basis = signal.new_zeros(count, rank, width)
    triangle = torch.eye(rank, dtype=signal.dtype, device=signal.device).repeat(count, 1, 1)
    projection = signal.new_zeros(count, rank)
    atom = torch.full((count, rank), -1, dtype=torch.long, device=signal.device)
    explained = signal.new_zeros(count, rank)
    active = energy > 0
    for step in range(rank):
        correlation = residual @ dictionary.T
        chosen = correlation.abs().argmax(1)
        new = dictionary[chosen]
        inside = signal.new_zeros(count, step)
        for _ in range(2):  # a second pass restores the orthogonality that rounding took
            part = torch.einsum("ure,ue->ur", basis[:, :step], new)
            inside += part
            new = new - torch.einsum("ur,ure->ue", part, basis[:, :step])
        height = new.norm(dim=1)
        active = active & (height > _DEPENDENT) & (residual.square().sum(1) > _EXPLAINED * energy)
        new = torch.where(active[:, None], new / torch.where(height > 0, height, 1)[:, None], 0)
        basis[:, step] = new
        triangle[:, :step, step] = torch.where(active[:, None], inside, 0)
        triangle[:, step, step] = torch.where(active, height, 1)
        projection[:, step] = (residual * new).sum(1)
        residual = residual - projection[:, step, None] * new
        atom[:, step] = torch.where(active, chosen, -1)
        left = residual.square().sum(1) / torch.where(energy > 0, energy, 1)
        explained[:, step] = torch.where(energy > 0, 1 - left, 0)
    weight = torch.linalg.solve_triangular(triangle, projection[..., None], upper=True)[..., 0]
    return SparseCode(atom, torch.where(atom >= 0, weight, 0), explained)


_DEPENDENT = 1e-5  # an atom this close to the span of those chosen adds nothing but rounding
_EXPLAINED = 1e-10  # share of energy below which the residual is rounding


@dataclasses.dataclass(frozen=True)
class Selection:
    """The pairs that stand for each text, best first."""

    cosine: Float[Tensor, "text rank"]
    head: Int[Tensor, "text rank"]
    neuron: Int[Tensor, "text rank"]


class TopPairs:
    """Per text the k pairs whose direction has the largest cosine to it, gathered head by head (k pairs a text)."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.cosine: Float[Tensor, "text rank"] | None = None
        self.head: Int[Tensor, "text rank"] | None = None
        self.neuron: Int[Tensor, "text rank"] | None = None

    def add(self, head: int, direction: Float[Tensor, "neuron embed"], text: Float[Tensor, "text embed"]) -> None:
        """Count the pairs of another head in; of equal cosines the lower head, then neuron, comes first."""
        cosine = text @ direction.T
        neuron = torch.arange(len(direction), device=text.device).expand_as(cosine)
        heads = torch.full_like(neuron, head)
        if self.cosine is not None:
            cosine = torch.cat([self.cosine, cosine], dim=1)
            heads, neuron = torch.cat([self.head, heads], dim=1), torch.cat([self.neuron, neuron], dim=1)
        order = cosine.argsort(dim=1, descending=True, stable=True)[:, : self.k]
        self.cosine, self.head, self.neuron = (part.gather(1, order) for part in (cosine, heads, neuron))

    def value(self) -> Selection:
        """The selection over all heads so far."""
        return Selection(self.cosine, self.head, self.neuron)
