"""Reimplement the published formulation, as the side that nadpipe is compared with: dense tensors, SVDs, gathers."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nadpipe.circuit.attention import AttentionPool


def dense_contributions(
    x: Float[Tensor, "view token neuron"], attention: Float[Tensor, "view head token"], pool: AttentionPool
) -> Float[Tensor, "view head neuron embed"]:
    """Compute every pair's contribution: per head one einsum over tokens, neurons, the head's values and its output."""
    views, _, neurons = x.shape
    readout = pool.readout
    result = torch.empty(views, pool.heads, neurons, pool.embed)
    for head in range(pool.heads):
        value = torch.einsum("vt,vtn,dn->vnd", attention[:, head], x, readout.value[head])
        bias = readout.output[head] @ readout.value_bias[head] / neurons + readout.output_bias / readout.pairs
        result[:, head] = torch.einsum("vnd,ed->vne", value, readout.output[head]) + bias
    return result


def pair_direction(contribution: Float[Tensor, "view embed"], top_images: int) -> Float[Tensor, " embed"]:
    """Centre a pair's contributions, keep those of largest norm, and return the first right-singular vector.

    Its sign is the one on which more than half of the kept images project positively.
    """
    centred = contribution - contribution.mean(0)
    kept = centred[centred.norm(dim=1).argsort(descending=True)[:top_images]]
    direction = torch.linalg.svd(kept, full_matrices=False).Vh[0]
    return direction if ((kept @ direction) > 0).float().mean() > 0.5 else -direction


def gathered_logits(
    z: Float[Tensor, "spatial neuron"],
    similarity: Float[Tensor, "text head spatial"],
    head: Int[Tensor, "text rank"],
    neuron: Int[Tensor, "text rank"],
) -> Float[Tensor, "text spatial"]:
    """Gather the activations and similarities of the selected pairs to (text, rank, spatial), multiply and average."""
    text = torch.arange(len(head))[:, None]
    activation = z.T[neuron]
    return (activation * similarity[text, head]).mean(1)
