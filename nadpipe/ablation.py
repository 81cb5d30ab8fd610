"""Embeddings rebuilt from a part of what the pairs write, and how much of the model is left in them.

Everything follows from coefficients and write vectors: no image is encoded again. What is left out is replaced by its mean
over the discovery images (mean ablation), as in Bu & Gandelsman, arXiv 2509.19943.
"""

import dataclasses

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from nadpipe.attnpool import AttentionPool, sum_pairs
from nadpipe.texts import unit


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """What rebuilt embeddings have kept of the original ones."""

    accuracy: float  # zero-shot, share of images; NaN without labels
    accuracy_low: float  # Wilson interval
    accuracy_high: float
    relative_error: float  # mean over images of ‖rebuilt - y‖ / ‖y‖
    explained: float  # share of the variance of y over the images; 1 for y itself, 0 for its mean


def fidelity(
    rebuilt: Float[Tensor, "image embed"],
    embedding: Float[Tensor, "image embed"],
    text: Float[Tensor, "class embed"],
    label: Int[Tensor, " image"],
    confidence: float,
) -> Fidelity:
    """Zero-shot accuracy of rebuilt embeddings, and their distance from the original ones.

    An image gets the class whose text has the largest cosine to it (Radford et al., arXiv 2103.00020, section 3.1).
    """
    right = int(((unit(rebuilt) @ unit(text).T).argmax(1) == label).sum())
    interval = stats.binomtest(right, len(label)).proportion_ci(confidence, method="wilson")
    lost = rebuilt - embedding
    varied = (embedding - embedding.mean(0)).square().sum()
    return Fidelity(
        accuracy=right / len(label),
        accuracy_low=float(interval.low),
        accuracy_high=float(interval.high),
        relative_error=float((lost.norm(dim=1) / embedding.norm(dim=1)).mean()),
        explained=float(1 - lost.square().sum() / varied) if varied > 0 else float("nan"),
    )


def keep_pairs(
    coefficient: Float[Tensor, "image head neuron"],
    mean: Float[Tensor, "head neuron"],
    kept: Bool[Tensor, "head neuron"],
    pool: AttentionPool,
) -> Float[Tensor, "image embed"]:
    """The embedding with all pairs but the kept ones at their mean."""
    return sum_pairs(torch.where(kept, coefficient, mean), pool)


def rank_units(norm: Float[np.ndarray, "*unit"]) -> Int[np.ndarray, " ranked"]:
    """Pairs (as head · neurons + neuron), or neurons, by falling root mean square of their contribution; of equal ones the
    first."""
    return np.argsort(-norm, axis=None, kind="stable")


def chosen_units(order: Int[np.ndarray, " ranked"], count: int, shape: tuple[int, ...]) -> Bool[Tensor, "*unit"]:
    """A mask of the first `count` units of an order."""
    kept = torch.zeros(shape, dtype=torch.bool).flatten()
    kept[torch.from_numpy(order[:count].copy())] = True
    return kept.reshape(shape)


def coordinates(
    centred: Float[Tensor, "image neuron"],
    write: Float[Tensor, "neuron embed"],
    direction: Float[Tensor, "neuron component embed"],
) -> Float[Tensor, "image neuron component"]:
    """One head's part of where its neurons' centred contributions lie on their directions: (s - mean s) ⟨w, direction⟩."""
    along = torch.einsum("no,nco->nc", write, direction)
    return centred[:, :, None] * along


def decode(
    coordinate: Float[Tensor, "image neuron component"], direction: Float[Tensor, "neuron component embed"]
) -> Float[Tensor, "component image embed"]:
    """What units write along their first 1, 2, … directions: running sums over components."""
    parts = torch.stack([coordinate[:, :, at] @ direction[:, at] for at in range(direction.shape[1])])
    return parts.cumsum(0)


def recode(
    direction: Float[Tensor, "unit embed"], atom: Float[Tensor, "unit rank embed"], counts: list[int]
) -> Float[Tensor, "count unit embed"]:
    """Each direction as the best combination (least squares) of the first atoms of its code, for several numbers of them.

    Atoms that a code does not have are zero rows.
    """
    basis, _ = torch.linalg.qr(atom.transpose(1, 2))  # unit embed rank; zero atoms give columns that must not count
    there = (atom.norm(dim=2) > 0).to(atom.dtype)
    along = torch.einsum("uer,ue->ur", basis, direction) * there
    return torch.stack([torch.einsum("uer,ur->ue", basis[..., :count], along[:, :count]) for count in counts])
