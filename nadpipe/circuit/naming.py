"""Names of units: centred texts, nearest texts, and how well the names agree with images."""

import numpy as np
import torch
from jaxtyping import Float, Int
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


def correlations(
    coefficient: Float[Tensor, "image unit"], truth: Float[Tensor, "image attribute"]
) -> Float[Tensor, "unit attribute"]:
    """Compute the point-biserial correlation of each unit's coefficient with each 0/1 attribute over the images.

    The correlation is 0 if either does not vary.
    """

    def standardise(values: Tensor) -> Tensor:
        centred = values - values.mean(0)
        norm = centred.norm(dim=0)
        return centred / torch.where(norm > norm.max() * 1e-6, norm, torch.inf)

    return standardise(coefficient.double()).T @ standardise(truth.double())


def activity_correlations(
    coefficient: Float[Tensor, "image unit"], embedding: Float[Tensor, "image embed"], text: Float[Tensor, "text embed"]
) -> Float[Tensor, "unit text"]:
    """Compute the correlation over the images of each unit's coefficient with the similarity of image and text.

    embedding: centred over the images, unit length. text: centred. This names a unit by what its images have in common, even if
    its write vector is far from every text. Similarities are linear in the embedding, so the product runs over its width, not
    over images.
    """
    embedding = embedding - embedding.mean(0)
    centred = coefficient - coefficient.mean(0)
    norm = centred.norm(dim=0)
    direction = (centred / torch.where(norm > 0, norm, torch.inf)).T @ embedding
    scale = torch.einsum("to,op,tp->t", text, embedding.T @ embedding, text).clamp(min=0).sqrt()
    return direction @ (text / torch.where(scale > 0, scale, torch.inf)[:, None]).T


def agreement(selected: Int[np.ndarray, " unit"], named: Float[np.ndarray, "unit attribute"]) -> tuple[float, float]:
    """Compute the share of units whose text names the attribute they select, and the expected share for shuffled texts.

    selected: the attribute with the largest correlation to each unit. named: 1 if the unit's text contains the attribute's
    word.
    """
    agreeing = float(named[np.arange(len(selected)), selected].mean())
    share = np.bincount(selected, minlength=named.shape[1]) / len(selected)
    return agreeing, float(share @ named.mean(0))


def spread(embedding: Float[Tensor, "image embed"], top: Int[Tensor, "unit kept"]) -> Float[Tensor, " unit"]:
    """Compute the mean cosine distance between any two of a unit's top images: 0 if all are equal, about 1 if random.

    embedding: centred over the images, unit length, so that features common to all images do not count. A unit whose top
    images are alike is monosemantic (Bu & Gandelsman, arXiv 2509.19943).
    """
    kept = top.shape[1]
    summed = embedding[top].sum(1)
    return 1 - (summed.square().sum(1) - kept) / (kept * (kept - 1))
