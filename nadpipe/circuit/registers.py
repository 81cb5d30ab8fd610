"""Attention sinks and register neurons: the token that draws attention in most images, and the neurons that cause it.

CLIP's towers use some tokens as scratch space (Darcet et al., arXiv 2309.16588), because of a few neurons (Jiang et al., arXiv
2506.08010). In a CLIP-ResNet, both show in the attention pool, so stored activations are enough to measure them.
"""

import dataclasses

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nadpipe.circuit.attention import AttentionPool, attention, rotated_products, token_keys, tokens
from nadpipe.circuit.readout import sum_pairs, token_values


@dataclasses.dataclass(frozen=True)
class Zeroed:
    """Changes in one view when each neuron in turn is set to zero at all tokens."""

    attention_drop: Float[Tensor, " neuron"]  # decrease of the token's attention, mean over heads
    embedding_change: Float[Tensor, " neuron"]  # ‖y without the neuron - y‖ / ‖y‖


def sink_shares(attention: Float[Tensor, "view spatial"], factor: float = 3.0) -> Float[Tensor, " spatial"]:
    """Compute the share of the views in which each spatial token acts as an attention sink.

    attention: mean over heads, without the pooled token.

    In a view, a token acts as a sink if its attention exceeds `factor` times the median token's and no neighbour draws more.
    The neighbours exclude attention that follows objects: tokens near the centre are often part of an object, and then draw
    several times the median, but they are rarely its peak.
    """
    side = round(attention.shape[1] ** 0.5)
    maps = attention.unflatten(1, (side, side))
    peak = maps == F.max_pool2d(maps[:, None], 3, stride=1, padding=1)[:, 0]
    strong = attention > factor * attention.quantile(0.5, dim=1, keepdim=True)
    return (strong & peak.flatten(1)).float().mean(0)


def find_sink(shares: Float[Tensor, " spatial"]) -> int | None:
    """Return the attention sink: the spatial token that acts as one in most views, or None if there is none.

    shares: result of `sink_shares`.
    """
    token = int(shares.argmax())
    return token if shares[token] > 0.5 else None


def zero_neurons(z: Float[Tensor, "spatial neuron"], token: int, pool: AttentionPool) -> Zeroed:
    """Set each neuron of one view to zero in turn, and compute exactly how attention and embedding change.

    token: the spatial token, from 0, whose attention is measured.

    Without neuron n, with δ_t its activation at a token (δ_0 their mean), scores and values change in closed form:

        q·k_t -> q·k_t - δ_t q·W_K[:, n] - δ_0 W_Q[:, n]·k_t + δ_0 δ_t W_Q[:, n]·W_K[:, n]
        v_t -> v_t - δ_t W_V[:, n]

    so the tower does not run again. With rotary positions, k_t and W_K are turned as at token t. Heads are processed one by
    one, so (neuron, token) is the largest array.
    """
    x, readout = tokens(z[None], pool)[0], pool.readout
    scale = (pool.neurons // pool.heads) ** -0.5
    delta = torch.cat([z.mean(0, keepdim=True), z]).T  # neuron token
    query = (pool.query.flatten(0, 1) @ x[0] + pool.query_bias.flatten()).unflatten(0, (pool.heads, -1))
    keys = token_keys(x[None], pool)[0]
    values = token_values(x[None], readout)[0]
    full_attention = attention(x[None], pool)[0]
    drop = torch.zeros(pool.neurons)
    change = torch.zeros(pool.neurons, pool.embed)
    for head in range(pool.heads):
        mean_delta, q_weight, k_weight = delta[:, :1], pool.query[head], pool.key[head]
        score = query[head] @ keys[head].T - delta * rotated_products(query[head].expand_as(k_weight.T), k_weight.T, pool)
        score = score - mean_delta * (q_weight.T @ keys[head].T)
        score = score + mean_delta * delta * rotated_products(q_weight.T, k_weight.T, pool)
        changed = torch.softmax(score * scale, dim=1)
        drop += full_attention[head, token + 1] - changed[:, token + 1]
        written = changed @ values[head] - (changed * delta).sum(1, keepdim=True) * readout.value[head].T
        change += (written - full_attention[head] @ values[head]) @ readout.output[head].T
    embedding = sum_pairs(full_attention[None] @ x[None], readout)[0]
    return Zeroed(drop / pool.heads, change.norm(dim=1) / embedding.norm())
