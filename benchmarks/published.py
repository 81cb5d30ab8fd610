"""The published formulation, written down anew as the side that nadpipe is compared with: dense tensors, SVDs, gathers."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nadpipe.circuit.attention import AttentionPool


def dense_contributions(
    x: Float[Tensor, "view token neuron"], attention: Float[Tensor, "view head token"], pool: AttentionPool
) -> Float[Tensor, "view head neuron embed"]:
    """Every pair's contribution of every view: for each head one einsum over tokens, neurons, its values and its output."""
    views, _, neurons = x.shape
    value, output = pool.by_head(pool.v_weight), pool.output()
    result = torch.empty(views, pool.heads, neurons, len(pool.c_bias))
    for head in range(pool.heads):
        of_token = torch.einsum("vt,vtn,dn->vnd", attention[:, head], x, value[head])
        bias = output[head] @ pool.v_bias.unflatten(0, (pool.heads, -1))[head] / neurons
        result[:, head] = torch.einsum("vnd,ed->vne", of_token, output[head]) + bias + pool.c_bias / (pool.heads * neurons)
    return result


def pair_direction(contribution: Float[Tensor, "view embed"], top_images: int) -> Float[Tensor, " embed"]:
    """Centre a pair's contributions, keep those of largest norm, SVD, first right-singular vector, sign by majority."""
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
    """Per class the selected pairs' activations and similarities gathered to (class, token, k), multiplied and averaged."""
    text = torch.arange(len(head))[:, None]
    activation = z.T[neuron]
    return (activation * similarity[text, head]).mean(1)
