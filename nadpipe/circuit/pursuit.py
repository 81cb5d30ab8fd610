"""Sparse codes of directions over a dictionary of texts: orthogonal matching pursuit of many signals at once."""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nadpipe.circuit.naming import normalise


@dataclasses.dataclass(frozen=True)
class SparseCode:
    """Sparse codes of signals, with atoms in the order chosen. After the end of a short code, atoms are -1 and weights 0."""

    atom: Int[Tensor, "unit rank"]
    weight: Float[Tensor, "unit rank"]
    explained: Float[Tensor, "unit rank"]  # share of the signal's energy after this many atoms


def matching_pursuit(
    signal: Float[Tensor, "unit embed"],
    dictionary: Float[Tensor, "atom embed"],
    atoms: int,
    strongest: "Strongest | None" = None,
) -> SparseCode:
    """Run orthogonal matching pursuit on a batch of signals over a dictionary of unit-length atoms.

    Each step chooses the atom with the largest |correlation| to the residual. The chosen atoms of each signal are kept as an
    orthonormal basis (Gram-Schmidt, repeated if the first pass removed most of an atom), so the residual needs no least
    squares, and one triangular solve at the end gives the weights. A pursuit stops early if its residual vanishes.

    strongest: search for the atoms; if there are many batches, create one `Strongest(dictionary)` and pass it to each call. The
    published code scales the dictionary along the wrong axis, so its atoms do not have unit length.
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
        unexplained = residual.square().sum(1) / torch.where(energy > 0, energy, 1)
        explained[:, step] = torch.where(energy > 0, 1 - unexplained, 0)
    weight = torch.linalg.solve_triangular(triangle, projection[..., None], upper=True)[..., 0]
    return SparseCode(atom, torch.where(atom >= 0, weight, 0), explained)


def _orthogonal(
    atom: Float[Tensor, "unit embed"], basis: Float[Tensor, "unit rank embed"]
) -> tuple[Float[Tensor, "unit embed"], Float[Tensor, "unit rank"]]:
    """Return the part of each atom outside the span of its basis, and the atom's coordinates inside."""
    inside = torch.einsum("ure,ue->ur", basis, atom)
    outside = atom - torch.einsum("ur,ure->ue", inside, basis)
    again = (outside.norm(dim=1) < _MOSTLY_INSIDE).nonzero()[:, 0]
    if len(again) and basis.shape[1]:  # the remainder is so small that the rounding error of the removed part matters
        correction = torch.einsum("ure,ue->ur", basis[again], outside[again])
        inside[again] += correction
        outside[again] -= torch.einsum("ur,ure->ue", correction, basis[again])
    return outside, inside


def random_atoms(dictionary: Float[Tensor, "atom embed"], generator: torch.Generator) -> Float[Tensor, "atom embed"]:
    """Draw as many random atoms of unit length as a dictionary has, from the normal distribution with its mean and covariance.

    A code over them is a control for a code over texts: it needs no text to explain what it explains.
    """
    atom = dictionary.double()
    mean = atom.mean(0)
    value, vector = torch.linalg.eigh((atom - mean).T @ (atom - mean) / len(atom))
    root = (vector * value.clamp(min=0).sqrt()) @ vector.T  # symmetric: it does not depend on the signs of the eigenvectors
    standard = torch.randn(atom.shape, generator=generator, dtype=atom.dtype)
    return normalise(standard @ root + mean).to(dictionary.dtype)


class Strongest:
    """Search for the atom with the largest |correlation| to each residual. The first of equal atoms wins.

    With `screen`, all correlations are computed in bfloat16 first, and those of the best few atoms again in full precision. A
    choice counts only if the bound on rounding errors proves that no other atom is better. The other residuals are correlated
    with all atoms in full precision, so the result is the same as without screening. `screen=None` screens if the processor
    multiplies bfloat16 fast.
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
            # reused, because allocating new memory costs more than filling it
            self.rough_correlation = self.rough.new_empty(len(self.rough), 0)

    def __call__(self, residual: Float[Tensor, "unit embed"]) -> Int[Tensor, " unit"]:
        """Return the index of each residual's atom."""
        if not self.screen:
            return self._of_all(residual)
        low = residual.bfloat16()
        if self.rough_correlation.shape[1] != len(residual):
            self.rough_correlation = self.rough.new_empty(len(self.rough), len(residual))
        torch.mm(self.rough, low.T, out=self.rough_correlation)
        bits = self.rough_correlation.view(torch.int16).bitwise_and_(0x7FFF)  # |c|; the integers have the same order
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
        """Return the best of the few atoms with the largest rough correlation, and a mask of those proven the best of all."""
        unit = torch.arange(len(residual), device=residual.device)[:, None]
        grouped = bits.unflatten(0, (-1, _GROUP))
        best = torch.topk(_value(grouped.amax(1)).T, groups + 1, dim=1)
        group = best.indices[:, :groups]
        candidates = torch.topk(_value(grouped[group, :, unit].flatten(1)), few + 1, dim=1)
        index = candidates.indices[:, :few]
        atom = (group.gather(1, index // _GROUP) * _GROUP + index % _GROUP).sort(dim=1).values  # the first of equal atoms wins
        exact = torch.einsum("uke,ue->uk", self.dictionary[atom], residual).abs()
        largest = exact.max(1)
        others = torch.maximum(best.values[:, groups], candidates.values[:, few])  # upper bound for all other atoms
        proven = largest.values > others * (1 + _HALF_STEP) + error
        return atom.gather(1, largest.indices[:, None])[:, 0], proven


def _value(bits: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Convert bit patterns of bfloat16 numbers to float32."""
    return bits.view(torch.bfloat16).float()


def fast_bfloat16(device: torch.device) -> bool:
    """Return True for a CPU that multiplies bfloat16 matrices several times faster than float32, False for a GPU.

    A GPU is fast enough without screening.
    """
    capabilities = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


_GROUP = 128  # atoms per group; groups are ranked by their largest correlation first
_FEW = (8, 8)  # groups examined, and atoms correlated again in full precision
_MORE = (40, 160)  # the same for residuals that the first round left undecided
_HALF_STEP = 2.0**-8  # relative rounding error of a bfloat16 correlation
_MOSTLY_INSIDE = 0.5  # share of an atom's length
_DEPENDENT = 1e-5  # an atom this close to the span of the chosen atoms adds only rounding errors
_EXPLAINED = 1e-10  # share of energy below which the residual is rounding error
