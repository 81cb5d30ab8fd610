"""The direction that a unit (pair, neuron or head) writes along, from coefficients and write vectors.

The published procedure (Bu & Gandelsman, arXiv 2509.19943) centres a unit's contributions over the images, keeps the top
images, which are those with the largest norm, and takes the first right-singular vectors. The sign of each is chosen so that
more than half of the kept images project positively (on a tie, a pair keeps the sign of its write vector). Pairs have a closed
form; neurons and heads need small SVDs in factor space. The dense (image, head, neuron, embed) tensor is never built.
"""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nadpipe.circuit.accumulators import TopFactors
from nadpipe.circuit.naming import normalise
from nadpipe.circuit.readout import Readout, write_vectors
from nadpipe.errors import NadpipeError

_ZERO = 1e-6  # singular values below this share of the first are rounding errors
_FEWEST, _MOST = 10, 50  # top images by share; the upper bound keeps memory independent of the number of images
_IMAGES_PER_TOP = 5  # with fewer images per top image, signs follow the median


def count_top_images(images: int, share: float, count: int | None = None) -> int:
    """Return the number of top images: `count`, or else the share of the images, at least 10 and at most 50.

    If there are fewer than 10 images, all of them are top images. Raises NadpipeError if `count` exceeds the images.
    """
    if count is None:
        return min(images, max(_FEWEST, min(_MOST, round(share * images))))
    if count > images:
        raise NadpipeError(
            f"directions.top_images: {count} exceeds the {images} discovery images; lower it, or set it to null to use "
            "directions.top_share"
        )
    return count


def warn_of_top_images(images: int, top: int) -> str | None:
    """Return a warning if more than a fifth of the images are top images, else None.

    The majority among nearly all images is on the side of the median, not on the side of the extremes.
    """
    if top * _IMAGES_PER_TOP <= images:
        return None
    return (
        f"directions.top_images: {top} of {images} discovery images are more than a fifth, so the signs of directions follow "
        f"the median image instead of the extremes; use at least {top * _IMAGES_PER_TOP} discovery images, or lower top_images"
    )


@dataclasses.dataclass(frozen=True)
class PairFit:
    """Signs of the directions of one head's pairs, norms of their write vectors, and mean norms of the kept contributions."""

    sign: Int[Tensor, " neuron"]
    write_norm: Float[Tensor, " neuron"]
    top_norm: Float[Tensor, " neuron"]


def fit_pairs(deviation: Float[Tensor, "kept neuron"], write: Float[Tensor, "neuron embed"]) -> PairFit:
    """Fit the direction ± w / ‖w‖, which equals the first right-singular vector of the kept, centred contributions.

    Centred contributions (s - mean s) w are rank one with norms |s - mean s| ‖w‖, so the images decide only the sign.
    """
    write_norm = write.norm(dim=1)
    positive, negative = (deviation > 0).sum(0), (deviation < 0).sum(0)
    sign = torch.where(positive >= negative, 1, -1)
    return PairFit(sign, write_norm, deviation.abs().mean(0).to(write.dtype) * write_norm)


def pair_directions(readout: Readout, head: int, sign: Int[Tensor, " neuron"]) -> Float[Tensor, "neuron embed"]:
    """Compute sign · w / ‖w‖ for the pairs of one head; zero for a pair that does not write (w = 0)."""
    return normalise(write_vectors(readout, head)) * sign[:, None]


@dataclasses.dataclass(frozen=True)
class SubspaceFit:
    """Directions of units that are not rank one: orthonormal per unit, zero beyond the unit's rank."""

    direction: Float[Tensor, "unit component embed"]
    explained: Float[Tensor, "unit component"]  # share of the kept images' centred energy; NaN for a unit without energy
    top_norm: Float[Tensor, " unit"]


def orthonormal_basis(
    write: Float[Tensor, "unit rank embed"],
) -> tuple[Float[Tensor, "unit embed basis"], Float[Tensor, "unit basis rank"]]:
    """Compute the thin QR of each unit's write vectors: a contribution factor · write equals basis · (root · factor)."""
    basis, root = torch.linalg.qr(write.transpose(1, 2))
    return basis, root


def fit_subspaces(
    top: TopFactors,
    basis: Float[Tensor, "unit embed basis"],
    root: Float[Tensor, "unit basis rank"],
    components: int,
) -> SubspaceFit:
    """Fit the first right-singular vectors of each unit's kept, centred contributions by an SVD in its factor space."""
    coordinate = torch.einsum("vur,ukr->uvk", top.factor, root)
    _, singular, right = torch.linalg.svd(coordinate, full_matrices=False)
    rank = min(components, singular.shape[1])
    nonzero = (singular[:, :rank] > singular[:, :1] * _ZERO) & (singular[:, :1] > 0)
    right = right[:, :rank] * nonzero[..., None]
    projection = torch.einsum("uvk,uck->uvc", coordinate, right)
    sign = torch.where((projection > 0).sum(1) >= (projection < 0).sum(1), 1, -1)
    direction = torch.einsum("uek,uck->uce", basis, right * sign[..., None])
    energy = singular.square()
    pad = torch.nn.functional.pad
    explained = pad(energy[:, :rank], (0, components - rank)) / energy.sum(1, keepdim=True)
    return SubspaceFit(pad(direction, (0, 0, 0, components - rank)), explained, top.norm.mean(0))
