"""The attention pool of CLIP-ResNet, taken apart exactly.

The paper's equations (Bu & Gandelsman, arXiv 2509.19943), one function each, in the factored form: a
contribution of pair (head, neuron) is a coefficient per image times a write vector of the weights plus a constant.
Shapes: view = image or crop; token = 0 for the pooled mean, then the spatial positions row by row; width = neurons per
head, d in the paper. All functions keep the dtype and device of their inputs.
"""

import dataclasses

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class AttentionPool:
    """Weights of a single-query attention pool; matrices oriented as in torch.nn.Linear: (out, in)."""

    heads: int
    positional_embedding: Float[Tensor, "token neuron"]
    q_weight: Float[Tensor, "neuron neuron"]
    k_weight: Float[Tensor, "neuron neuron"]
    v_weight: Float[Tensor, "neuron neuron"]
    c_weight: Float[Tensor, "embed neuron"]
    q_bias: Float[Tensor, " neuron"]
    k_bias: Float[Tensor, " neuron"]
    v_bias: Float[Tensor, " neuron"]
    c_bias: Float[Tensor, " embed"]

    @property
    def neurons(self) -> int:
        """Number of neurons, C."""
        return self.v_weight.shape[1]

    @property
    def tokens(self) -> int:
        """Number of tokens with the pooled one, T."""
        return self.positional_embedding.shape[0]

    @property
    def grid(self) -> int:
        """Side of the square of spatial tokens."""
        return round((self.tokens - 1) ** 0.5)

    def by_head(self, weight: Float[Tensor, "out neuron"]) -> Float[Tensor, "head width neuron"]:
        """Rows of a q, k or v matrix, grouped by the head that reads them."""
        return weight.unflatten(0, (self.heads, -1))

    def output(self) -> Float[Tensor, "head embed width"]:
        """W_O^h: the columns of the output projection that belong to each head."""
        return self.c_weight.unflatten(1, (self.heads, -1)).transpose(0, 1)


def resize_tokens(values: Float[Tensor, "*head token width"], grid: int) -> Float[Tensor, "*head resized_token width"]:
    """Values per token on a grid of another side: the spatial ones bicubic and antialiased, as open_clip resizes positional
    embeddings, token 0 as it is."""
    pooled, spatial = values[..., :1, :], values[..., 1:, :]
    side = round(spatial.shape[-2] ** 0.5)
    if side == grid:
        return values
    maps = spatial.transpose(-1, -2).unflatten(-1, (side, side))
    flat = F.interpolate(maps.flatten(0, -4), size=(grid, grid), mode="bicubic", antialias=True)
    return torch.cat([pooled, flat.unflatten(0, maps.shape[:-3]).flatten(-2).transpose(-1, -2)], dim=-2)


def at_grid(pool: AttentionPool, grid: int) -> AttentionPool:
    """The pool for views of another size than the model's own: its positional embedding interpolated to `grid` × `grid`."""
    if grid == pool.grid:
        return pool
    return dataclasses.replace(pool, positional_embedding=resize_tokens(pool.positional_embedding[None], grid)[0])


def tokens(z: Float[Tensor, "view spatial neuron"], pool: AttentionPool) -> Float[Tensor, "view token neuron"]:
    """x: the mean activation, then the activations, plus the positional embedding."""
    return torch.cat([z.mean(1, keepdim=True), z], dim=1) + pool.positional_embedding


def attention(x: Float[Tensor, "view token neuron"], pool: AttentionPool) -> Float[Tensor, "view head token"]:
    """a[h, t] = softmax_t(q_h · k_ht / sqrt(d)), with the query of token 0 alone.

    The query is pulled back through W_K instead of projecting every token: C² + HTC multiplications a view, not TC².
    """
    query = (x[:, 0] @ pool.q_weight.T + pool.q_bias).unflatten(1, (pool.heads, -1))
    pulled = torch.einsum("vhd,hdn->vhn", query, pool.by_head(pool.k_weight))
    constant = torch.einsum("vhd,hd->vh", query, pool.k_bias.unflatten(0, (pool.heads, -1)))
    score = pulled @ x.transpose(1, 2) + constant[..., None]
    return torch.softmax(score * query.shape[-1] ** -0.5, dim=2)


def coefficients(
    attention: Float[Tensor, "view head token"], x: Float[Tensor, "view token neuron"]
) -> Float[Tensor, "view head neuron"]:
    """s[h, n] = sum_t a[h, t] x_t[n]: one number per view and pair."""
    return attention @ x


def write_vectors(pool: AttentionPool, head: int) -> Float[Tensor, "neuron embed"]:
    """w[h, n] = W_O^h W_V^h[:, n] of one head: where each of its pairs writes in the joint space."""
    return pool.by_head(pool.v_weight)[head].T @ pool.output()[head].T


def pair_constants(pool: AttentionPool) -> Float[Tensor, "head embed"]:
    """b[h] = W_O^h b_V^h / C + b_O / (H C): the part of a contribution that no image changes, the same for every neuron."""
    value_bias = pool.v_bias.unflatten(0, (pool.heads, -1))
    written = torch.einsum("hed,hd->he", pool.output(), value_bias)
    return written / pool.neurons + pool.c_bias / (pool.heads * pool.neurons)


def pooled_values(coefficient: Float[Tensor, "view head neuron"], pool: AttentionPool) -> Float[Tensor, "view head width"]:
    """W_V^h s[h]: what a head's pairs sum to, in the head's own value space, without the bias."""
    return torch.einsum("vhn,hdn->vhd", coefficient, pool.by_head(pool.v_weight))


def sum_pairs(coefficient: Float[Tensor, "view head neuron"], pool: AttentionPool) -> Float[Tensor, "view embed"]:
    """The sum of r[h, n] = s[h, n] w[h, n] + b[h] over all pairs: the image embedding y before normalisation."""
    value = pooled_values(coefficient, pool).flatten(1) + pool.v_bias
    return value @ pool.c_weight.T + pool.c_bias


def residual(summed: Float[Tensor, "view embed"], embedding: Float[Tensor, "view embed"]) -> Float[Tensor, " view"]:
    """‖sum over pairs - y‖ / ‖y‖ per view: how far the decomposition is from exact."""
    return (summed - embedding).norm(dim=1) / embedding.norm(dim=1)


def token_values(x: Float[Tensor, "view token neuron"], pool: AttentionPool) -> Float[Tensor, "view head token width"]:
    """W_V^h x_t + b_V^h: every token's value, per head."""
    return (x @ pool.v_weight.T + pool.v_bias).unflatten(2, (pool.heads, -1)).transpose(1, 2)


def attended_tokens(
    attention: Float[Tensor, "view head token"], x: Float[Tensor, "view token neuron"]
) -> Float[Tensor, "head token neuron"]:
    """sum over views of a[h, t] x_t: linear in the views, so that a mean over many is projected once."""
    return torch.einsum("vht,vtn->htn", attention, x)


def project_attended(
    attended: Float[Tensor, "head token neuron"], attention: Float[Tensor, "head token"], pool: AttentionPool
) -> Float[Tensor, "head token width"]:
    """The mean over views of a[h, t] (W_V^h x_t + b_V^h), from the means of a[h, t] x_t and of a[h, t]."""
    bias = pool.v_bias.unflatten(0, (pool.heads, 1, -1))
    return torch.einsum("htn,hdn->htd", attended, pool.by_head(pool.v_weight)) + attention[..., None] * bias


def token_queries_and_keys(
    x: Float[Tensor, "view token neuron"], pool: AttentionPool
) -> tuple[Float[Tensor, "view head token width"], Float[Tensor, "view head token width"]]:
    """Every token's own query and key, per head."""
    query = x @ pool.q_weight.T + pool.q_bias
    key = x @ pool.k_weight.T + pool.k_bias
    return tuple(part.unflatten(2, (pool.heads, -1)).transpose(1, 2) for part in (query, key))


def pair_scores(
    coefficient: Float[Tensor, "head neuron"], text: Float[Tensor, "text embed"], pool: AttentionPool
) -> Float[Tensor, "text head neuron"]:
    """⟨r[h, n], q⟩ / ‖y‖: what every pair adds to the cosine of one image and each text of unit length; they sum to it."""
    norm = sum_pairs(coefficient[None], pool).norm()
    constant = pair_constants(pool) @ text.T
    scores = [coefficient[head] * (text @ write_vectors(pool, head).T) + constant[head, :, None] for head in range(pool.heads)]
    return torch.stack(scores, dim=1) / norm


def token_scores(
    x: Float[Tensor, "token neuron"], text: Float[Tensor, "text embed"], pool: AttentionPool
) -> Float[Tensor, "text token"]:
    """sum_h ⟨m[h, t], q⟩ / ‖y‖ with m[h, t] = a[h, t] W_O^h (W_V^h x_t + b_V^h) + b_O / (H T): what every token adds to the
    cosine of one image and each text; they sum to it."""
    weighed = attention(x[None], pool)[0, ..., None] * token_values(x[None], pool)[0]
    written = weighed.transpose(0, 1).flatten(1) @ pool.c_weight.T + pool.c_bias / pool.tokens
    return (written @ text.T).T / written.sum(0).norm()
