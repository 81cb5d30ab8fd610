"""Names of units: centred texts, nearest texts, and how well the names agree with images."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import special
from torch import Tensor


def normalise(vector: Float[Tensor, "*row embed"]) -> Float[Tensor, "*row embed"]:
    """Scale each row to unit length. A zero row stays zero."""
    norm = vector.norm(dim=-1, keepdim=True)
    return vector / torch.where(norm > 0, norm, 1)


def centre(embedding: Float[Tensor, "text embed"], reference: Float[Tensor, "reference embed"]) -> Float[Tensor, "text embed"]:
    """Subtract the mean of a reference from each text and normalise again, which removes the modality gap.

    The reference is the text set itself, unless the set is too small for a meaningful mean.
    """
    return normalise(embedding - reference.mean(0))


def nearest(
    direction: Float[Tensor, "unit embed"], text: Float[Tensor, "text embed"], count: int
) -> tuple[Float[Tensor, "unit rank"], Int[Tensor, "unit rank"]]:
    """Return cosines and indices of the `count` texts nearest to each direction, best first. Rows have unit length."""
    cosine, index = torch.topk(direction @ text.T, min(count, len(text)), dim=1)
    return cosine, index


def standardise(values: Float[Tensor, "image column"]) -> Float[Tensor, "image column"]:
    """Centre each column over the images and scale it to unit length. A column that does not vary becomes zero."""
    centred = values - values.mean(0)
    norm = centred.norm(dim=0)
    return centred / torch.where(norm > norm.max() * 1e-6, norm, torch.inf)


def correlations(
    coefficient: Float[Tensor, "image unit"], truth: Float[Tensor, "image attribute"]
) -> Float[Tensor, "unit attribute"]:
    """Compute the point-biserial correlation of each unit's coefficient with each 0/1 attribute over the images.

    The correlation is 0 if either does not vary.
    """
    return standardise(coefficient.double()).T @ standardise(truth.double())


def activity_correlations(
    coefficient: Float[Tensor, "image unit"], embedding: Float[Tensor, "image embed"], text: Float[Tensor, "text embed"]
) -> Float[Tensor, "unit text"]:
    """Compute the correlation over the images of each unit's coefficient with the similarity of image and text.

    embedding: centred over the images, unit length. text: centred. This names a unit by what its images have in common, even if
    its write vector is far from every text. Similarities are linear in the embedding, so the product runs over its width, not
    over images.
    """
    centred = coefficient - coefficient.mean(0)
    norm = centred.norm(dim=0)
    direction = (centred / torch.where(norm > 0, norm, torch.inf)).T @ (embedding - embedding.mean(0))
    return direction @ standardised_texts(embedding, text).T


def standardised_texts(
    embedding: Float[Tensor, "image embed"], text: Float[Tensor, "text embed"]
) -> Float[Tensor, "text embed"]:
    """Scale each text so that its similarity to the images has unit length over the images, after centring.

    The product with the covariance of a unit's coefficient and the embedding is then the correlation of `activity_correlations`
    times the unit's standard deviation, which does not change the order of the texts.
    """
    centred = embedding - embedding.mean(0)
    scale = torch.einsum("to,op,tp->t", text, centred.T @ centred, text).clamp(min=0).sqrt()
    return text / torch.where(scale > 0, scale, torch.inf)[:, None]


_CONNECTING = frozenset({"a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with"})


def word_shares(texts: Sequence[str], words: Sequence[str]) -> Float[np.ndarray, "text word"]:
    """Compute the share of each text's words that equal each of the given words. Articles, prepositions and "and" do not count.

    A text of two words with the given one scores 0.5, so a name is not better for listing more.
    """
    parts = [[part for part in text.split() if part not in _CONNECTING] for text in texts]
    return np.array([[part.count(word) / max(1, len(part)) for word in words] for part in parts]).reshape(-1, len(words))


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Mean score of some units' names, or a difference of two such means, and what each attribute adds to its error.

    influence: sum over the units that select an attribute of their distance from the mean, divided by the number of units.
    present: True for attributes that a unit selects.
    """

    mean: float
    influence: Float[np.ndarray, " attribute"]
    present: Bool[np.ndarray, " attribute"]

    def __sub__(self, other: "Agreement") -> "Agreement":
        """Return the difference of two means over units that select from the same attributes."""
        return Agreement(self.mean - other.mean, self.influence - other.influence, self.present | other.present)

    def interval(self, confidence: float) -> tuple[float, float]:
        """Compute the cluster-robust t interval, with attributes as clusters; NaN for fewer than two attributes.

        Units are not independent: those that select one attribute are right or wrong together. The variance is therefore
        G / (G - 1) times the sum of the squared influences of the G attributes, with G - 1 degrees of freedom (Cameron &
        Miller, A Practitioner's Guide to Cluster-Robust Inference, 2015).
        """
        clusters = int(self.present.sum())
        if clusters < 2:
            return float("nan"), float("nan")
        error = np.sqrt(clusters / (clusters - 1) * np.square(self.influence).sum())
        reach = float(special.stdtrit(clusters - 1, (1 + confidence) / 2) * error)
        return self.mean - reach, self.mean + reach


def agreement(selected: Int[np.ndarray, " unit"], score: Float[np.ndarray, "unit attribute"]) -> Agreement:
    """Average over units the score of their names for the attribute that they select.

    selected: the attribute with the largest correlation to each unit. score: of each unit's name for each attribute, such as
    `word_shares`.
    """
    value = score[np.arange(len(selected)), selected]
    attributes = score.shape[1]
    distance = np.bincount(selected, value - value.mean(), minlength=attributes) / len(selected)
    return Agreement(float(value.mean()), distance, np.bincount(selected, minlength=attributes) > 0)


def spread(embedding: Float[Tensor, "image embed"], top: Int[Tensor, "unit kept"]) -> Float[Tensor, " unit"]:
    """Compute the mean cosine distance between any two of a unit's top images: 0 if all are equal, about 1 if random.

    embedding: centred over the images, unit length, so that features common to all images do not count. A unit whose top
    images are alike is monosemantic (Bu & Gandelsman, arXiv 2509.19943).
    """
    kept = top.shape[1]
    summed = embedding[top].sum(1)
    return 1 - (summed.square().sum(1) - kept) / (kept * (kept - 1))
