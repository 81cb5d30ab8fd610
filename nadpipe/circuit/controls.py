"""Units that mean nothing: controls for the names and the ablation of pairs.

A number about pairs says something about pairs only if these units do not reach it.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from nadpipe.circuit.naming import normalise


def random_directions(count: int, covariance: Float[Tensor, "embed embed"], seed: int) -> Float[Tensor, "count embed"]:
    """Draw Gaussian directions with the given covariance, scaled to unit length.

    The identity gives isotropic directions. Xᵀ X gives random mixtures of the rows of X with Gaussian weights, which have the
    spectrum of these rows.
    """
    energy, axis = torch.linalg.eigh(covariance.double())
    factor = (axis * energy.clamp(min=0).sqrt()).to(covariance.dtype)
    drawn = torch.randn(count, len(energy), generator=torch.Generator().manual_seed(seed), dtype=covariance.dtype)
    return normalise(drawn @ factor.T)


def random_sums(
    count: int, candidates: Int[np.ndarray, " candidate"], members: int, weight: Float[np.ndarray, " unit"], seed: int
) -> csr_array:
    """Draw sums of `members` different candidates each, as a sparse matrix (sum, unit) of weights.

    candidates: indices of the units to draw from; if there are fewer than `members`, each sum has all of them. weight: factor
    of each unit in every sum that has it.
    """
    rng = np.random.default_rng(seed)
    size = min(members, len(candidates))
    chosen = np.concatenate([candidates[rng.choice(len(candidates), size, replace=False, shuffle=False)] for _ in range(count)])
    rows = np.repeat(np.arange(count), size)
    return csr_array((weight[chosen].astype(np.float32), (rows, chosen)), shape=(count, len(weight)))
