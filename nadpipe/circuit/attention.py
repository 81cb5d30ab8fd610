"""The attention pool of CLIP-ResNet: a readout whose attention is computed from the activations.

Equations of Bu & Gandelsman, arXiv 2509.19943, one function each. Token 0 is the mean of the spatial tokens, which follow row
by row. All functions keep the dtype and device of their inputs.
"""

import dataclasses
from collections.abc import Mapping
from typing import overload

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nadpipe.circuit.readout import Readout, Trace


@dataclasses.dataclass(frozen=True)
class AttentionPool:
    """Weights of a single-query attention pool: its readout, and the weights of its attention."""

    readout: Readout
    positional_embedding: Float[Tensor, "token stream"]
    query: Float[Tensor, "head width stream"]  # W_Q^h
    query_bias: Float[Tensor, "head width"]
    key: Float[Tensor, "head width stream"]  # W_K^h
    key_bias: Float[Tensor, "head width"]

    @property
    def heads(self) -> int:
        """Number of heads, H."""
        return self.readout.heads

    @property
    def neurons(self) -> int:
        """Number of neurons, C."""
        return self.readout.neurons

    @property
    def embed(self) -> int:
        """Width of the joint image-text space, O."""
        return self.readout.embed

    @property
    def tokens(self) -> int:
        """Number of tokens including the pooled one, T."""
        return self.positional_embedding.shape[0]

    @property
    def prefix(self) -> int:
        """Number of tokens before the spatial ones: the pooled one."""
        return 1

    @property
    def grid(self) -> int:
        """Side of the square of spatial tokens."""
        return round((self.tokens - 1) ** 0.5)


@dataclasses.dataclass(frozen=True)
class RecordedAttention:
    """Stand for the pool of a tower that records its attention: a readout on a square of spatial tokens.

    prefix: number of tokens before the spatial ones.
    """

    readout: Readout
    grid: int
    prefix: int = 1

    @property
    def heads(self) -> int:
        """Number of heads, H."""
        return self.readout.heads

    @property
    def neurons(self) -> int:
        """Number of neurons, C."""
        return self.readout.neurons

    @property
    def tokens(self) -> int:
        """Number of tokens that heads read, T."""
        return self.prefix + self.grid**2


def resize_tokens(
    values: Float[Tensor, "*head token width"], grid: int, prefix: int = 1
) -> Float[Tensor, "*head resized_token width"]:
    """Resize values per token to a grid of another side.

    Spatial tokens are resized bicubic and antialiased, as open_clip resizes positional embeddings. The first `prefix` tokens
    are kept.
    """
    kept, spatial = values[..., :prefix, :], values[..., prefix:, :]
    side = round(spatial.shape[-2] ** 0.5)
    if side == grid:
        return values
    maps = spatial.transpose(-1, -2).unflatten(-1, (side, side))
    flat = F.interpolate(maps.flatten(0, -4), size=(grid, grid), mode="bicubic", antialias=True)
    return torch.cat([kept, flat.unflatten(0, maps.shape[:-3]).flatten(-2).transpose(-1, -2)], dim=-2)


@overload
def at_grid(pool: AttentionPool, grid: int) -> AttentionPool: ...
@overload
def at_grid(pool: RecordedAttention, grid: int) -> RecordedAttention: ...
def at_grid(pool: AttentionPool | RecordedAttention, grid: int) -> AttentionPool | RecordedAttention:
    """Return the pool for views of another size: its positional embedding interpolated to `grid` × `grid`."""
    if grid == pool.grid:
        return pool
    if isinstance(pool, RecordedAttention):
        return dataclasses.replace(pool, grid=grid)
    return dataclasses.replace(pool, positional_embedding=resize_tokens(pool.positional_embedding[None], grid)[0])


def tokens(z: Float[Tensor, "view spatial neuron"], pool: AttentionPool) -> Float[Tensor, "view token neuron"]:
    """Compute x: the mean activation, then the activations, plus the positional embedding."""
    return torch.cat([z.mean(1, keepdim=True), z], dim=1) + pool.positional_embedding


def attention(x: Float[Tensor, "view token neuron"], pool: AttentionPool) -> Float[Tensor, "view head token"]:
    """Compute a[h, t] = softmax_t(q_h · k_ht / sqrt(d)), with the query of token 0 alone.

    The query is pulled back through W_K instead of projecting every token: C² + HTC multiplications per view instead of TC².
    """
    query = (x[:, 0] @ pool.query.flatten(0, 1).T + pool.query_bias.flatten()).unflatten(1, (pool.heads, -1))
    pulled = torch.einsum("vhd,hdn->vhn", query, pool.key)
    constant = torch.einsum("vhd,hd->vh", query, pool.key_bias)
    score = pulled @ x.transpose(1, 2) + constant[..., None]
    return torch.softmax(score * query.shape[-1] ** -0.5, dim=2)


def trace(z: Float[Tensor, "view spatial neuron"], pool: AttentionPool) -> Trace:
    """Compute the trace of views from their spatial activations. Pairs carry the whole embedding, so the trace has no rest."""
    x = tokens(z, pool)
    return Trace(x, attention(x, pool))


def view_trace(features: Mapping[str, Tensor], pool: AttentionPool | None) -> Trace:
    """Return the trace of views from their features: computed with a pool's weights, or, without a pool, as recorded.

    features: arrays by name, as `store.kinds.features.FEATURES` describes them.
    """
    if pool is not None:
        return trace(features["activation"], pool)
    activation = torch.cat([features[name] for name in ("prefix_activation", "activation") if name in features], dim=1)
    return Trace(
        activation=activation,
        attention=features["attention"],
        scale=features["scale"],
        gain=features.get("gain"),
        rest=features["part"].sum(1),
    )


def token_queries_and_keys(
    x: Float[Tensor, "view token neuron"], pool: AttentionPool
) -> tuple[Float[Tensor, "view head token width"], Float[Tensor, "view head token width"]]:
    """Compute every token's own query and key, per head."""
    query = x @ pool.query.flatten(0, 1).T + pool.query_bias.flatten()
    key = x @ pool.key.flatten(0, 1).T + pool.key_bias.flatten()
    query, key = (values.unflatten(2, (pool.heads, -1)).transpose(1, 2) for values in (query, key))
    return query, key
