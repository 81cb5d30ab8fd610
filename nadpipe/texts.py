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


def matching_pursuit(
    signal: Float[Tensor, "unit embed"],
    dictionary: Float[Tensor, "atom embed"],
    atoms: int,
    strongest: "Strongest | None" = None,
) -> SparseCode:
    """Orthogonal matching pursuit of a batch of signals over a dictionary of unit atoms.

    Greedy choice of the atom with the largest |correlation| to the residual; the chosen atoms of each signal are kept as
    an orthonormal basis (Gram-Schmidt, twice where the first pass took most of an atom away), so the residual needs no
    least squares, and the weights come from one triangular solve at the end. Stops early where the residual vanishes.
    strongest: finds the atoms, to be made once for many batches; Strongest(dictionary) unless given. (The published code
    scales the dictionary along the wrong axis, so its atoms are not of unit length; here they must be.)
    """
    count, width = signal.shape
    rank = min(atoms, width, len(dictionary))
    strongest = strongest or Strongest(dictionary)
    energy = signal.square().sum(1)
    residual = signal.clone()
    basis = signal.new_zeros(count, rank, width)
    triangle = torch.eye(rank, dtype=signal.dtype, device=signal.device).repeat(count, 1, 1)
    projection = signal.new_zeros(count, rank)
    atom = torch.full((count, rank), -1, dtype=torch.long, device=signal.device)
    explained = signal.new_zeros(count, rank)
    active = energy > 0
    for step in range(rank):
        chosen = strongest(residual)
        new, inside = _orthogonal(dictionary[chosen], basis[:, :step])
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


def _orthogonal(
    atom: Float[Tensor, "unit embed"], basis: Float[Tensor, "unit rank embed"]
) -> tuple[Float[Tensor, "unit embed"], Float[Tensor, "unit rank"]]:
    """What of each atom lies outside its basis, and its coordinates inside."""
    inside = torch.einsum("ure,ue->ur", basis, atom)
    outside = atom - torch.einsum("ur,ure->ue", inside, basis)
    again = (outside.norm(dim=1) < _MOSTLY_INSIDE).nonzero()[:, 0]
    if len(again) and basis.shape[1]:  # rounding of the large part taken off is large beside the small part left
        part = torch.einsum("ure,ue->ur", basis[again], outside[again])
        inside[again] += part
        outside[again] -= torch.einsum("ur,ure->ue", part, basis[again])
    return outside, inside


class Strongest:
    """The atom with the largest |correlation| to each residual.

    With `screen`, all correlations are computed in bfloat16, those of the best few atoms again in full precision, and the
    answer is taken only where the bound on the rounding proves that no other atom can be larger; the other residuals are
    correlated in full precision. So the answer is that of full precision, within its own rounding. screen None: where the
    processor is fast at it. Of equal atoms the first is taken.
    """

    def __init__(self, dictionary: Float[Tensor, "atom embed"], screen: bool | None = None) -> None:
        screen = fast_bfloat16(dictionary.device) if screen is None else screen
        self.screen = screen and len(dictionary) > 2 * _MORE[0] * _GROUP
        self.dictionary = torch.nn.functional.pad(dictionary, (0, 0, 0, -len(dictionary) % _GROUP))  # whole groups
        if self.screen:
            self.rough = self.dictionary.bfloat16()
            self.rounding = (self.dictionary - self.rough).norm(dim=1).max()
            self.length = self.rough.float().norm(dim=1).max()
            self.accumulated = 3 * dictionary.shape[1] * 2.0**-24  # rounding of the float32 sums, relative to the norms
            self.rough_correlation = self.rough.new_empty(
                len(self.rough), 0
            )  # used again: fresh memory costs more than filling it

    def __call__(self, residual: Float[Tensor, "unit embed"]) -> Int[Tensor, " unit"]:
        """Index of the atom of each residual."""
        if not self.screen:
            return self._of_all(residual)
        low = residual.bfloat16()
        if self.rough_correlation.shape[1] != len(residual):
            self.rough_correlation = self.rough.new_empty(len(self.rough), len(residual))
        torch.mm(self.rough, low.T, out=self.rough_correlation)
        bits = self.rough_correlation.view(torch.int16).bitwise_and_(0x7FFF)  # |c|; as integers they have the same order
        norm = residual.norm(dim=1)
        error = self.rounding * norm + self.length * (residual - low).norm(dim=1) + self.accumulated * norm
        chosen, proven = self._of_few(residual, bits, error, *_FEW)
        rest = (~proven).nonzero()[:, 0]
        if len(rest):
            chosen[rest], proven[rest] = self._of_few(residual[rest], bits[:, rest], error[rest], *_MORE)
            rest = (~proven).nonzero()[:, 0]
        if len(rest):
            chosen[rest] = self._of_all(residual[rest])
        return chosen

    def _of_all(self, residual: Tensor) -> Tensor:
        grouped = (self.dictionary @ residual.T).abs_().unflatten(0, (-1, _GROUP))
        group = grouped.amax(1).argmax(0)
        unit = torch.arange(len(residual), device=residual.device)
        return group * _GROUP + grouped[group, :, unit].argmax(1)

    def _of_few(self, residual: Tensor, bits: Tensor, error: Tensor, groups: int, few: int) -> tuple[Tensor, Tensor]:
        """The best atom of the few that look best, and whether it is proven to be the best of all."""
        unit = torch.arange(len(residual), device=residual.device)[:, None]
        grouped = bits.unflatten(0, (-1, _GROUP))
        best = torch.topk(_value(grouped.amax(1)).T, groups + 1, dim=1)
        group = best.indices[:, :groups]
        looks = torch.topk(_value(grouped[group, :, unit].flatten(1)), few + 1, dim=1)
        at = looks.indices[:, :few]
        atom = (group.gather(1, at // _GROUP) * _GROUP + at % _GROUP).sort(dim=1).values  # of equal ones the first counts
        exact = torch.einsum("uke,ue->uk", self.dictionary[atom], residual).abs()
        largest = exact.max(1)
        others = torch.maximum(best.values[:, groups], looks.values[:, few])  # no atom outside looks better than this
        proven = largest.values > others * (1 + _HALF_STEP) + error
        return atom.gather(1, largest.indices[:, None])[:, 0], proven


def _value(bits: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The bfloat16 numbers that these bits are, in float32."""
    return bits.view(torch.bfloat16).float()


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 matrices several times faster than float32 ones. (A GPU needs no screening.)"""
    able = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(able.get("amx_bf16") or able.get("avx512_bf16"))


_GROUP = 128  # atoms whose largest correlation is looked at first
_FEW = (8, 8)  # groups looked into, and atoms of them correlated again
_MORE = (40, 160)  # the same for the residuals that these did not decide
_HALF_STEP = 2.0**-8  # of bfloat16, relative: rounding of a correlation
_MOSTLY_INSIDE = 0.5  # of an atom's length
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
