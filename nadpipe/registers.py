"""Attention sinks and register neurons: which token draws attention whatever the image, and which neurons make it do so.

CLIP's towers keep some tokens as scratch space (Darcet et al., arXiv 2309.16588), and a few neurons put it there (Jiang et al.,
arXiv 2506.08010). In a CLIP-ResNet both show in the attention pool alone, so cached activations are enough to measure them.
"""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from nadpipe import attnpool
from nadpipe.attnpool import AttentionPool


@dataclasses.dataclass(frozen=True)
class Zeroed:
    """What happens to one view when each neuron in turn is zero at all of its tokens."""

    attention_drop: Float[Tensor, " neuron"]  # fall of the token's attention, mean over heads
    embedding_change: Float[Tensor, " neuron"]  # ‖y without the neuron - y‖ / ‖y‖


def find_sink(attention: Float[Tensor, "head token"], factor: float = 3.0) -> int | None:
    """The spatial token (counted from 0 without the pooled one) that draws attention whatever the image, if there is one.

    attention: mean over images. That is the token of the largest mean over heads, when it gets `factor` times the median.
    """
    spatial = attention.mean(0)[1:]
    token = int(spatial.argmax())
    return token if spatial[token] > factor * spatial.median() else None


def zero_neurons(z: Float[Tensor, "spatial neuron"], token: int, pool: AttentionPool) -> Zeroed:
    """Zero every neuron of one view in turn, exactly, and see how much less attention the spatial token gets.

    Without neuron n, with δ_t its activation at a token (δ_0 their mean), scores and values change in closed form:

        q·k_t -> q·k_t - δ_t q·W_K[:, n] - δ_0 W_Q[:, n]·k_t + δ_0 δ_t W_Q[:, n]·W_K[:, n]
        v_t -> v_t - δ_t W_V[:, n]

    so no view is run again; heads are taken one by one, so that (neuron, token) is the largest array of a step.
    """
    x = attnpool.tokens(z[None], pool)[0]
    scale = (pool.neurons // pool.heads) ** -0.5
    delta = torch.cat([z.mean(0, keepdim=True), z]).T  # neuron token
    q_weight, k_weight, v_weight = (pool.by_head(weight) for weight in (pool.q_weight, pool.k_weight, pool.v_weight))
    query = (pool.q_weight @ x[0] + pool.q_bias).unflatten(0, (pool.heads, -1))
    keys = (x @ pool.k_weight.T + pool.k_bias).unflatten(1, (pool.heads, -1))
    values = attnpool.token_values(x[None], pool)[0]
    whole = attnpool.attention(x[None], pool)[0]
    drop = torch.zeros(pool.neurons)
    change = torch.zeros(pool.neurons, len(pool.c_bias))
    for head in range(pool.heads):
        own, asked = delta[:, :1], q_weight[head]
        score = query[head] @ keys[:, head].T - delta * (query[head] @ k_weight[head])[:, None]
        score = score - own * (asked.T @ keys[:, head].T) + own * delta * (asked * k_weight[head]).sum(0)[:, None]
        attention = torch.softmax(score * scale, dim=1)
        drop += whole[head, token + 1] - attention[:, token + 1]
        written = attention @ values[head] - (attention * delta).sum(1, keepdim=True) * v_weight[head].T
        change += (written - whole[head] @ values[head]) @ pool.output()[head].T
    embedding = attnpool.sum_pairs(attnpool.coefficients(whole[None], x[None]), pool)[0]
    return Zeroed(drop / pool.heads, change.norm(dim=1) / embedding.norm())
