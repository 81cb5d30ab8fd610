"""Whether names are true: against labels of the images, and by taking away the pairs that a concept names."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def correlations(
    coefficient: Float[Tensor, "image unit"], truth: Float[Tensor, "image attribute"]
) -> Float[Tensor, "unit attribute"]:
    """Point-biserial correlation of each unit's coefficient with each 0/1 attribute over the images; 0 where nothing varies."""

    def standard(values: Tensor) -> Tensor:
        centred = values - values.mean(0)
        norm = centred.norm(dim=0)
        return centred / torch.where(norm > norm.max() * 1e-6, norm, torch.inf)

    return standard(coefficient.double()).T @ standard(truth.double())


def activity_correlations(
    coefficient: Float[Tensor, "image unit"], embedding: Float[Tensor, "image embed"], text: Float[Tensor, "text embed"]
) -> Float[Tensor, "unit text"]:
    """Correlation over the images of each unit's coefficient with the similarity of image and text.

    embedding: of the images, less their mean, unit length. text: centred. What the unit's images share names it, also where its
    write vector is far from every text. The similarities are linear in the embedding, so that units meet texts in its width.
    """
    embedding = embedding - embedding.mean(0)
    centred = coefficient - coefficient.mean(0)
    norm = centred.norm(dim=0)
    direction = (centred / torch.where(norm > 0, norm, torch.inf)).T @ embedding
    scale = torch.einsum("to,op,tp->t", text, embedding.T @ embedding, text).clamp(min=0).sqrt()
    return direction @ (text / torch.where(scale > 0, scale, torch.inf)[:, None]).T


def agreement(selected: Int[np.ndarray, " unit"], named: Float[np.ndarray, "unit attribute"]) -> tuple[float, float]:
    """Share of units whose text names the attribute that they select, and the same for texts dealt out at random.

    selected: the attribute of largest correlation of each unit. named: 1 where the unit's text has the attribute's word.
    """
    found = float(named[np.arange(len(selected)), selected].mean())
    share = np.bincount(selected, minlength=named.shape[1]) / len(selected)
    return found, float(share @ named.mean(0))


def spread(embedding: Float[Tensor, "image embed"], top: Int[Tensor, "unit kept"]) -> Float[Tensor, " unit"]:
    """Mean cosine distance between two of a unit's top images: 0 when they are all the same, about 1 when they are random.

    embedding: of the images, less their mean, unit length, so that what all images share does not count. The paper measures
    how monosemantic a unit is by how alike its top images are.
    """
    kept = top.shape[1]
    summed = embedding[top].sum(1)
    return 1 - (summed.square().sum(1) - kept) / (kept * (kept - 1))
