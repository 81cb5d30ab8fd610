"""Embeddings rebuilt from some of the pairs, and measures of how well they replace the original ones.

Coefficients and write vectors are enough: no image is encoded again. Ablated contributions are replaced by their mean over the
discovery images (mean ablation), as in Bu & Gandelsman, arXiv 2509.19943.
"""

import dataclasses
import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import special
from torch import Tensor

from nadpipe.circuit.naming import normalise
from nadpipe.circuit.readout import Readout, sum_pairs


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """Measures of how well rebuilt embeddings replace the original ones."""

    accuracy: float  # zero-shot, share of images; NaN without labels
    accuracy_low: float  # Wilson interval
    accuracy_high: float
    relative_error: float  # mean over images of ‖rebuilt - y‖ / ‖y‖
    explained: float  # share of the variance of y over the images; 1 for y itself, 0 for its mean
    average_precision: float  # mean over attributes; NaN without any


@dataclasses.dataclass(frozen=True)
class Attributes:
    """0/1 labels of images that are not exclusive, such as colours. Each is true of some but not of all images."""

    text: Float[Tensor, "attribute embed"]
    truth: Bool[Tensor, "image attribute"]


def fidelity(
    rebuilt: Float[Tensor, "image embed"],
    embedding: Float[Tensor, "image embed"],
    text: Float[Tensor, "class embed"],
    label: Int[Tensor, " image"],
    attributes: Attributes,
    confidence: float,
) -> Fidelity:
    """Measure zero-shot accuracy and average precision of rebuilt embeddings, and their distance from the original ones.

    The predicted class of an image is the one whose text has the largest cosine to it (Radford et al., arXiv 2103.00020,
    section 3.1). The average precision of an attribute is that of the images ranked by their cosine to its text.
    label: row of `text` per image. confidence: of the Wilson interval, 0 to 1.
    """
    image = normalise(rebuilt)
    correct = int(((image @ normalise(text).T).argmax(1) == label).sum())
    low, high = wilson_interval(correct, len(label), confidence)
    error = rebuilt - embedding
    variance = (embedding - embedding.mean(0)).square().sum()
    return Fidelity(
        accuracy=correct / len(label),
        accuracy_low=low,
        accuracy_high=high,
        relative_error=float((error.norm(dim=1) / embedding.norm(dim=1)).mean()),
        explained=float(1 - error.square().sum() / variance) if variance > 0 else float("nan"),
        average_precision=float(average_precision(image @ normalise(attributes.text).T, attributes.truth).mean()),
    )


def wilson_interval(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """Compute Wilson's interval of a proportion (1927, Journal of the American Statistical Association 22:209)."""
    quantile = float(special.ndtri((1 + confidence) / 2))
    scale, middle = trials + quantile**2, successes + quantile**2 / 2
    reach = quantile * math.sqrt(successes * (trials - successes) / trials + quantile**2 / 4)
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def average_precision(
    score: Float[Tensor, "image attribute"], truth: Bool[Tensor, "image attribute"]
) -> Float[Tensor, " attribute"]:
    """Compute the average precision of each attribute: the mean, over its images, of the precision at their score.

    The precision at a score is the share of the attribute's images among all images with this score or a higher one.
    scikit-learn's function takes one attribute per call, and its checks of the arguments take most of the time.
    """
    order = score.argsort(dim=0, descending=True)
    fallen = -score.gather(0, order).T.contiguous()
    found = truth.gather(0, order).T.double()
    counted = torch.searchsorted(fallen, fallen, right=True)  # images with this score or a higher one
    precision = found.cumsum(1).gather(1, counted - 1) / counted
    return (found * precision).sum(1) / found.sum(1)


def auroc(score: Float[np.ndarray, " image"], label: Bool[np.ndarray, " image"]) -> float:
    """Compute the probability that a labelled image scores higher than another one. Ties count half."""
    inside, outside = score[label], np.sort(score[~label])
    smaller, not_larger = (np.searchsorted(outside, inside, side) for side in ("left", "right"))
    return float((smaller + not_larger).mean() / (2 * len(outside)))


def keep_pairs(
    coefficient: Float[Tensor, "image head neuron"],
    mean: Float[Tensor, "head neuron"],
    kept: Bool[Tensor, "head neuron"],
    readout: Readout,
) -> Float[Tensor, "image embed"]:
    """Compute the sum of all pairs with all except the kept ones at their mean: the embedding without the rest."""
    return sum_pairs(torch.where(kept, coefficient, mean), readout)


def rank_units(norm: Float[np.ndarray, "*unit"]) -> Int[np.ndarray, " ranked"]:
    """Rank units by decreasing norm, such as the root mean square of their contribution; equal units keep their order.

    Returns flat indices: that of a pair is head · neurons + neuron.
    """
    return np.argsort(-norm, axis=None, kind="stable")


def effects(
    coefficient: Float[Tensor, "image neuron"], along: Float[Tensor, "neuron text"], score: Float[Tensor, "image text"]
) -> Float[Tensor, "neuron text"]:
    """Compute the covariance over the images of what each pair of a head adds to each text's score with that score.

    along: ⟨w, text⟩ of each pair. score: ⟨embedding, text⟩. If pairs are all of the embedding, their effects on a text sum to
    the variance of its score.
    """
    centred = (score - score.mean(0)) / len(score)
    return along * (coefficient.T @ centred)


def rank_for_text(
    cosine: Float[np.ndarray, "head neuron"], sign: Int[np.ndarray, "head neuron"], effect: Float[np.ndarray, "head neuron"]
) -> dict[str, Int[np.ndarray, " pair"]]:
    """Rank all pairs for the ablation of one text by several rules. Returns the rank of each pair, from 0.

    cosine: of the write vector to the text. sign: of the pair's direction. effect: see `effects`. The rule neurons ranks
    whole neurons by the sum of their effects over heads, so that the pairs of a neuron follow each other.
    """
    heads, neurons = effect.shape
    orders = {
        "write": rank_units(cosine),
        "direction": rank_units(cosine * sign),
        "magnitude": rank_units(np.abs(cosine)),
        "effect": rank_units(effect),
        "neurons": (rank_units(effect.sum(0))[:, None] + neurons * np.arange(heads)).ravel(),
    }
    return {rule: np.argsort(order, kind="stable") for rule, order in orders.items()}


def removed_scores(
    centred: Float[Tensor, "image neuron"],
    along: Float[Tensor, "neuron ablation"],
    rank: Int[Tensor, "neuron ablation"],
    count: Int[Tensor, " ablation"],
) -> Float[Tensor, "image ablation"]:
    """Compute what a score loses if the pairs of one head whose rank is below `count` are set to their mean.

    Several ablations, each with a score of its own, cost one product. along: ⟨w, text⟩ of each pair and the text of the score.
    """
    return centred @ torch.where(rank < count, along, 0)


def select_units(order: Int[np.ndarray, " ranked"], count: int, shape: tuple[int, ...]) -> Bool[Tensor, "*unit"]:
    """Return a mask of the first `count` units of an order."""
    kept = torch.zeros(shape, dtype=torch.bool).flatten()
    kept[torch.from_numpy(order[:count].copy())] = True
    return kept.reshape(shape)


def coordinates(
    centred: Float[Tensor, "image neuron"],
    write: Float[Tensor, "neuron embed"],
    direction: Float[Tensor, "neuron component embed"],
) -> Float[Tensor, "image neuron component"]:
    """Project the centred contributions of one head's pairs on directions of their neurons: (s - mean s) ⟨w, direction⟩."""
    along = torch.einsum("no,nco->nc", write, direction)
    return centred[:, :, None] * along


def decode(
    coordinate: Float[Tensor, "image neuron component"], direction: Float[Tensor, "neuron component embed"]
) -> Float[Tensor, "component image embed"]:
    """Sum the contributions of units along their first 1, 2, … directions."""
    written = [coordinate[:, :, component] @ direction[:, component] for component in range(direction.shape[1])]
    return torch.stack(written).cumsum(0)


def recode(
    direction: Float[Tensor, "unit embed"], atom: Float[Tensor, "unit rank embed"], counts: list[int]
) -> Float[Tensor, "count unit embed"]:
    """Approximate each direction by the first atoms of its code (least squares), for several numbers of atoms.

    Missing atoms of a code are zero rows.
    """
    basis, _ = torch.linalg.qr(atom.transpose(1, 2))  # unit embed rank; columns of zero atoms are arbitrary
    nonzero = (atom.norm(dim=2) > 0).to(atom.dtype)
    along = torch.einsum("uer,ue->ur", basis, direction) * nonzero
    return torch.stack([torch.einsum("uer,ur->ue", basis[..., :count], along[:, :count]) for count in counts])
