"""The attention pool of CLIP-ResNet: a readout whose attention is computed from the activations.

Equations of Bu & Gandelsman, arXiv 2509.19943, one function each. Token 0 is the mean of the spatial tokens, which follow row
by row. All functions keep the dtype and device of their inputs.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import overload

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nadpipe.circuit.readout import Readout, Trace


@dataclasses.dataclass(frozen=True)
class AttentionPool:
    """Weights of a single-query attention pool: its readout, and the weights of its attention.

    A pool with rotary positions turns queries and keys by angles that depend on the token; its positional embedding is 0.
    """

    readout: Readout
    positional_embedding: Float[Tensor, "token stream"]
    query: Float[Tensor, "head width stream"]  # W_Q^h
    query_bias: Float[Tensor, "head width"]
    key: Float[Tensor, "head width stream"]  # W_K^h
    key_bias: Float[Tensor, "head width"]
    frequency: Float[Tensor, " frequency"] | None = None  # radians across the image's side; None without rotary positions

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

    @functools.cached_property
    def rotation(self) -> tuple[Float[Tensor, "token width"], Float[Tensor, "token width"]]:
        """Compute cosine and sine of the angle by which each entry of a query or key is turned.

        The first half of the entries turns with the token's row, the second half with its column. Two neighbouring entries
        share an angle. Token 0 is not turned. Raises ValueError for a pool without rotary positions.
        """
        if self.frequency is None:
            raise ValueError("the pool has no rotary positions")
        angle = torch.arange(self.grid, device=self.frequency.device)[:, None] / self.grid * self.frequency
        by_row, by_column = angle.repeat_interleave(self.grid, 0), angle.repeat(self.grid, 1)
        spatial = torch.cat([by_row, by_column], dim=1).repeat_interleave(2, dim=1)
        angles = torch.cat([torch.zeros_like(spatial[:1]), spatial])
        return angles.cos(), angles.sin()


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
    """Return the pool for views of another size: its positional embedding interpolated to `grid` × `grid`.

    Rotary positions follow from the grid.
    """
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
    Keys with rotary positions are turned after the projection, so every token is projected.
    """
    query = (x[:, 0] @ pool.query.flatten(0, 1).T + pool.query_bias.flatten()).unflatten(1, (pool.heads, -1))
    if pool.frequency is None:
        pulled = torch.einsum("vhd,hdn->vhn", query, pool.key)
        constant = torch.einsum("vhd,hd->vh", query, pool.key_bias)
        score = pulled @ x.transpose(1, 2) + constant[..., None]
    else:
        score = torch.einsum("vhd,vhtd->vht", query, token_keys(x, pool))
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
    """Compute every token's own query and key, per head, turned if the pool has rotary positions."""
    query = (x @ pool.query.flatten(0, 1).T + pool.query_bias.flatten()).unflatten(2, (pool.heads, -1)).transpose(1, 2)
    return _rotate(query, pool), token_keys(x, pool)


def token_keys(x: Float[Tensor, "view token neuron"], pool: AttentionPool) -> Float[Tensor, "view head token width"]:
    """Compute every token's key, per head, turned if the pool has rotary positions."""
    key = x @ pool.key.flatten(0, 1).T + pool.key_bias.flatten()
    return _rotate(key.unflatten(2, (pool.heads, -1)).transpose(1, 2), pool)


def rotated_products(
    query: Float[Tensor, "row width"], key: Float[Tensor, "row width"], pool: AttentionPool
) -> Float[Tensor, "row turned_token"]:
    """Compute the inner product of each row's query with its key as turned at each token.

    Without rotary positions it is the same at all tokens, and the result has one column.
    """
    if pool.frequency is None:
        return (query * key).sum(1, keepdim=True)
    cosine, sine = pool.rotation
    return (query * key) @ cosine.T + (query * _quarter_turn(key)) @ sine.T


def _rotate(vectors: Float[Tensor, "view head token width"], pool: AttentionPool) -> Float[Tensor, "view head token width"]:
    if pool.frequency is None:
        return vectors
    cosine, sine = pool.rotation
    return vectors * cosine + _quarter_turn(vectors) * sine


def _quarter_turn(vectors: Float[Tensor, "*row width"]) -> Float[Tensor, "*row width"]:
    """Turn each two neighbouring entries (a, b) to (-b, a)."""
    return torch.stack([-vectors[..., 1::2], vectors[..., ::2]], dim=-1).flatten(-2)
