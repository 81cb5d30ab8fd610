"""Training-free segmentation with pairs, and baselines on the same features.

Every method maps the tokens of some views to logits (view, text, spatial) on the grid of spatial tokens. `nad` and its
ablations follow Bu & Gandelsman, arXiv 2509.19943; the baselines are MaskCLIP (arXiv 2112.01071), SCLIP (arXiv 2312.01597) and
ClearCLIP (arXiv 2407.12442).
A method is one function here and one record in `nadpipe.circuit.methods`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from nadpipe.circuit import attention as pooling
from nadpipe.circuit.accumulators import Selection
from nadpipe.circuit.attention import AttentionPool, RecordedAttention
from nadpipe.circuit.methods import METHODS
from nadpipe.circuit.naming import normalise
from nadpipe.circuit.readout import stream_values, token_values
from nadpipe.errors import NadpipeError


@dataclasses.dataclass(frozen=True)
class Query:
    """The texts to segment by, and the weights and mean values of the heads on one grid of tokens."""

    pool: AttentionPool | RecordedAttention
    text: Float[Tensor, "text embed"]  # centred, unit length
    value_mean: Float[Tensor, "head token width"]  # mean over the discovery images of a[h, t] (W_V^h x_t + b_V^h)
    sink: int | None  # spatial token to replace in every map
    sink_replacement: Literal["cosines", "vectors"] = "cosines"  # mean cosine of the neighbours, or cosine of their mean vector

    def at_grid(self, grid: int) -> "Query":
        """Return the query for views of another size.

        A head's mean is spread over the new number of tokens. The sink keeps its place in the view.
        """
        if grid == self.pool.grid:
            return self
        pool = pooling.at_grid(self.pool, grid)
        mean = pooling.resize_tokens(self.value_mean, grid, self.pool.prefix) * (self.pool.tokens / pool.tokens)
        return dataclasses.replace(self, pool=pool, value_mean=mean, sink=move_token(self.sink, self.pool.grid, grid))

    @functools.cached_property
    def pulled(self) -> Float[Tensor, "head width text"]:
        """Compute W_O^h^T q: each text in the value space of each head."""
        return torch.einsum("hed,pe->hdp", self.pool.readout.output, self.text)

    @functools.cached_property
    def positional_value(self) -> Float[Tensor, "spatial value"]:
        """Compute W_V pos_t: the part of the spatial tokens' values that comes from the positional embedding."""
        assert isinstance(self.pool, AttentionPool)
        return self.pool.positional_embedding[1:] @ self.pool.readout.value.flatten(0, 1).T

    @functools.cached_property
    def gram(self) -> Float[Tensor, "head width width2"]:
        """Compute W_O^h^T W_O^h, which gives norms of written vectors in the head's value space."""
        output = self.pool.readout.output
        return output.transpose(1, 2) @ output


@dataclasses.dataclass(frozen=True)
class Pairs:
    """K_p: the k pairs selected for each text."""

    neuron: Int[Tensor, " pair"]  # M, the 0/1 matrix (text · head, neuron) in CSR form: neurons selected in each row
    start: Int[Tensor, " row"]  # start of each row of M in `neuron`
    k: int
    by_head: Float[Tensor, "text head"]  # pairs selected in each head
    by_neuron: Float[Tensor, "text neuron"]  # pairs selected of each neuron


def selected_pairs(selection: Selection, k: int, heads: int, neurons: int) -> Pairs:
    """Return the first k pairs of a selection as a sparse 0/1 matrix and as counts."""
    head, neuron = selection.head[:, :k], selection.neuron[:, :k]
    texts = len(head)

    def counts(index: Int[Tensor, "text pair"], size: int) -> Int[Tensor, "text size"]:
        """Count how often each index occurs for each text."""
        text = torch.arange(texts, device=head.device)[:, None]
        return torch.bincount((text * size + index).flatten(), minlength=texts * size).view(texts, size)

    by_head = counts(head, heads)
    row_length = by_head.flatten()
    by_row = neuron.gather(1, head.argsort(dim=1, stable=True)).flatten()  # rows are sorted by text, then head
    return Pairs(by_row.int(), (row_length.cumsum(0) - row_length).int(), k, by_head.float(), counts(neuron, neurons).float())


class Tokens:
    """Tokens of some views and the quantities that methods derive from them, each computed once on first use.

    recorded: further features of towers that record attention: attention, gain (missing for 1), stream and embedding of the
    views, and the embedding (view, token, embed) of every token by each recipe of the literature.
    """

    def __init__(
        self, z: Float[Tensor, "view spatial neuron"], query: Query, recorded: Mapping[str, Tensor] | None = None
    ) -> None:
        self.z = z
        self.query = query
        self.recorded = recorded
        self._activation: dict[int, tuple[Pairs, Tensor]] = {}  # by identity of the pairs, which it keeps alive

    @functools.cached_property
    def x(self) -> Float[Tensor, "view token neuron"]:
        """Return the tokens of a pool with their positional embedding."""
        return pooling.tokens(self.z, self.pool)

    @property
    def pool(self) -> AttentionPool:
        """Return the weights of the attention pool."""
        assert isinstance(self.query.pool, AttentionPool)
        return self.query.pool

    @functools.cached_property
    def attention(self) -> Float[Tensor, "view head token"]:
        """Compute a[h, t], or return it as recorded."""
        return pooling.attention(self.x, self.pool) if self.recorded is None else self.recorded["attention"]

    @functools.cached_property
    def values(self) -> Float[Tensor, "view head token width"]:
        """Compute W_V^h x_t + b_V^h."""
        if self.recorded is not None:
            return stream_values(self.recorded["stream"], self.query.pool.readout)
        return token_values(self.x, self.query.pool.readout)

    @functools.cached_property
    def pooled_length(self) -> Float[Tensor, " view"]:
        """Compute ‖y‖ / gain, the length by which the heads' contributions without gain are divided."""
        if self.recorded is not None:
            return self.recorded["embedding"].norm(dim=1) / self.recorded.get("gain", 1)
        weighed = self.attention[..., None] * self.values
        return _project(weighed.sum(2).flatten(1), self.query).norm(dim=1)

    @functools.cached_property
    def similarity(self) -> Float[Tensor, "view text head spatial"]:
        """Compute cos(m[h, t], q)."""
        return self._similarity(centred=False)

    @functools.cached_property
    def centred_similarity(self) -> Float[Tensor, "view text head spatial"]:
        """Compute cos(m[h, t] - its mean over the discovery images, q)."""
        return self._similarity(centred=True)

    def _similarity(self, centred: bool) -> Float[Tensor, "view text head spatial"]:
        """Compute cosines of m[h, t] = a[h, t] W_O^h (W_V^h x_t + b_V^h) + b_O / (H T), with the sink replaced.

        Inner products use W_O^h^T q and norms use the Gram matrix of W_O^h, both in the head's value space, so the
        (token, head, embed) tensor is never built.
        """
        query, pool, readout = self.query, self.query.pool, self.query.pool.readout
        value = self.attention[..., None] * self.values
        value, constant = value[:, :, pool.prefix :], readout.output_bias / (pool.heads * pool.tokens)
        if centred:
            value, constant = value - query.value_mean[:, pool.prefix :], torch.zeros_like(constant)
        value = mend_vectors(value, query)
        along = torch.einsum("hed,e->hd", readout.output, constant)
        squared = ((value @ query.gram + 2 * along[:, None]) * value).sum(3) + constant.square().sum()
        norm = squared.clamp(min=0).sqrt()
        scaled = value / torch.where(norm > 0, norm, 1)[..., None]
        inner = torch.einsum("vhtd,hdp->vpht", scaled, query.pulled)
        offset = (query.text @ constant)[:, None, None] / torch.where(norm > 0, norm, 1)[:, None]
        return mend_cosines(inner + offset, query)

    def activation(self, pairs: Pairs) -> Float[Tensor, "view text head spatial"]:
        """Compute (M_p z_t)[h]: the summed activation of the neurons selected in each head, with the sink replaced.

        All methods share the product of the same pairs.
        """
        if id(pairs) not in self._activation:
            product = sparse_product(pairs, self.by_neuron)
            maps = product.unflatten(1, (len(self.z), -1)).unflatten(0, (len(self.query.text), -1)).permute(2, 0, 1, 3)
            self._activation[id(pairs)] = pairs, mend(maps, self.query)
        return self._activation[id(pairs)][1]

    @functools.cached_property
    def by_neuron(self) -> Float[Tensor, "neuron view_spatial"]:
        """Return z with neurons first."""
        return self.z.reshape(-1, self.z.shape[2]).T.contiguous()


def sparse_product(pairs: Pairs, by_neuron: Float[Tensor, "neuron column"]) -> Float[Tensor, "row column"]:
    """Compute M z. `embedding_bag` is twice as fast as torch's CSR product."""
    return F.embedding_bag(pairs.neuron, by_neuron, pairs.start, mode="sum")


def nad(tokens: Tokens, pairs: Pairs) -> Float[Tensor, "view text spatial"]:
    """Compute 1/k · sum_h cos(m[h, t], q_p) · (M_p z_t)[h], as published."""
    return (tokens.similarity * tokens.activation(pairs)).sum(2) / pairs.k


def nad_centred(tokens: Tokens, pairs: Pairs) -> Float[Tensor, "view text spatial"]:
    """Compute `nad` with m[h, t] centred on its mean over the discovery images before the cosine."""
    return (tokens.centred_similarity * tokens.activation(pairs)).sum(2) / pairs.k


def nad_shifted(tokens: Tokens, pairs: Pairs) -> Float[Tensor, "view text spatial"]:
    """Compute `nad` with (1 + cos) / 2 in place of the cosine.

    The activation of a pair then never counts against its text. docs/segmentation.md compares the methods.
    """
    return ((1 + tokens.similarity) / 2 * tokens.activation(pairs)).sum(2) / pairs.k


def heads(tokens: Tokens, pairs: Pairs) -> Float[Tensor, "view text spatial"]:
    """Compute `nad` without neurons: 1/k · sum over selected pairs of cos(m[h, t], q_p)."""
    return torch.einsum("vpht,ph->vpt", tokens.similarity, pairs.by_head) / pairs.k


def neurons(tokens: Tokens, pairs: Pairs) -> Float[Tensor, "view text spatial"]:
    """Compute `nad` without heads: 1/k · sum over selected pairs of z_t[n]."""
    return mend((tokens.z @ pairs.by_neuron.T).transpose(1, 2), tokens.query) / pairs.k


def maskclip(tokens: Tokens, pairs: Pairs | None) -> Float[Tensor, "view text spatial"]:
    """Compute the cosine of every token's own projected value to the text: no attention, no positional embedding.

    In a vision transformer, the values are those of the last block; the positional embedding is part of its stream.
    """
    query = tokens.query
    if tokens.recorded is not None:
        return _cosine(tokens.recorded["maskclip"], query)
    value = _joined(tokens.values[:, :, 1:]) - query.positional_value  # W_V is linear: no second projection
    return _cosine(_project(value, query), query)


def values_only(tokens: Tokens, pairs: Pairs | None) -> Float[Tensor, "view text spatial"]:
    """Compute `maskclip` with the positional embedding and without replacing a sink, as the published code does."""
    if tokens.recorded is not None:
        return _plain_cosine(tokens.recorded["maskclip"], tokens.query)
    return _plain_cosine(_project(_joined(tokens.values[:, :, 1:]), tokens.query), tokens.query)


def sclip(tokens: Tokens, pairs: Pairs | None) -> Float[Tensor, "view text spatial"]:
    """Mix values over spatial tokens by softmax(QQ^T) + softmax(KK^T), project, and compute the cosine to the text.

    In a vision transformer this is the attention of the last block; the class token is among the keys, and residual connection
    and MLP follow, as published.
    """
    if tokens.recorded is not None:
        return _cosine(tokens.recorded["sclip"], tokens.query)
    queries, keys = (vectors[:, :, 1:] for vectors in pooling.token_queries_and_keys(tokens.x, tokens.pool))
    value = _joined(_self_attention(queries).add_(_self_attention(keys)) @ tokens.values[:, :, 1:])
    return _cosine(_project(value, tokens.query), tokens.query)


def self_self(tokens: Tokens, pairs: Pairs | None) -> Float[Tensor, "view text spatial"]:
    """Compute `sclip` with the pooled token among the keys and without replacing a sink, as the published code does."""
    if tokens.recorded is not None:
        return _plain_cosine(tokens.recorded["sclip"], tokens.query)
    queries, keys = pooling.token_queries_and_keys(tokens.x, tokens.pool)
    value = _joined((_self_attention(queries).add_(_self_attention(keys)) @ tokens.values)[:, :, 1:])
    return _plain_cosine(_project(value, tokens.query), tokens.query)


def clearclip(tokens: Tokens, pairs: Pairs | None) -> Float[Tensor, "view text spatial"]:
    """Mix values over spatial tokens by softmax(QQ^T), project, and compute the cosine to the text.

    In a vision transformer this is the attention of the last block, with the class token among the keys and without residual
    connection and MLP, as published.
    """
    if tokens.recorded is not None:
        return _cosine(tokens.recorded["clearclip"], tokens.query)
    queries, _ = pooling.token_queries_and_keys(tokens.x, tokens.pool)
    value = _joined(_self_attention(queries[:, :, 1:]) @ tokens.values[:, :, 1:])
    return _cosine(_project(value, tokens.query), tokens.query)


def _self_attention(vectors: Float[Tensor, "view head token width"]) -> Float[Tensor, "view head token token2"]:
    """Compute softmax(P P^T / sqrt(d)): attention between tokens by their own queries, or by their own keys."""
    vectors = vectors.contiguous()  # three times as fast as strided views of the projection
    return torch.softmax((vectors * vectors.shape[-1] ** -0.5) @ vectors.transpose(2, 3), dim=3)


def attention(tokens: Tokens, pairs: Pairs | None) -> Float[Tensor, "view text spatial"]:
    """Compute sum_h ⟨m[h, t], q⟩ · T / ‖y‖: each token's attention-weighted contribution to the pooled embedding.

    Texts are pulled into the heads' value space, so one vector per view is projected, not one per token.
    """
    query, pool = tokens.query, tokens.query.pool
    weighed = tokens.attention[..., None] * tokens.values
    inner = torch.einsum("vhtd,hdp->vpt", weighed[:, :, pool.prefix :], query.pulled)
    inner = inner + (query.text @ pool.readout.output_bias / pool.tokens)[:, None]
    return mend(inner * (pool.tokens / tokens.pooled_length)[:, None, None], query)


_FUNCTIONS = (nad, nad_centred, nad_shifted, heads, neurons, maskclip, sclip, clearclip, attention, self_self, values_only)
LOGITS: dict[str, Callable[..., Float[Tensor, "view text spatial"]]] = {  # functions of tokens and pairs, by method
    function.__name__: function for function in _FUNCTIONS
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A method and its number of pairs per text; k is None for methods that select no pairs."""

    method: str
    k: int | None

    @property
    def name(self) -> str:
        """Name in folders and legends."""
        return self.method if self.k is None else f"{self.method}-k{self.k}"


def variants(methods: Sequence[str], k: Sequence[int]) -> list[Variant]:
    """Return every method, once per distinct k if it selects pairs. Raises NadpipeError for an unknown method."""
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise NadpipeError(f"--methods: unknown method {unknown[0]}; choose from {', '.join(METHODS)}")
    return [Variant(name, size) for name in methods for size in (dict.fromkeys(k) if METHODS[name].selects else (None,))]


def _project(value: Float[Tensor, "*token value"], query: Query) -> Float[Tensor, "*token embed"]:
    """Compute W_O v + b_O."""
    return value @ query.pool.readout.joint_output.T + query.pool.readout.output_bias


def _joined(values: Float[Tensor, "view head token width"]) -> Float[Tensor, "view token value"]:
    """Return the heads' values side by side."""
    return values.transpose(1, 2).flatten(2)


def _plain_cosine(embedding: Float[Tensor, "view spatial embed"], query: Query) -> Float[Tensor, "view text spatial"]:
    return (normalise(embedding) @ query.text.T).transpose(1, 2)


def _cosine(embedding: Float[Tensor, "view spatial embed"], query: Query) -> Float[Tensor, "view text spatial"]:
    """Compute cosines with the sink replaced."""
    return mend_cosines(_plain_cosine(mend_vectors(embedding, query), query), query)


# ------------------------------------------------------------------------------------------------------ attention sink


def mend(spatial: Float[Tensor, "*map spatial"], query: Query) -> Float[Tensor, "*map spatial"]:
    """Replace the query's sink in maps over spatial tokens."""
    return replace_sink(spatial.unflatten(-1, (query.pool.grid, query.pool.grid)), query.sink).flatten(-2)


def mend_vectors(vectors: Float[Tensor, "*map spatial width"], query: Query) -> Float[Tensor, "*map spatial width"]:
    """Replace the query's sink in vectors over spatial tokens, if the query averages vectors."""
    return mend(vectors.transpose(-2, -1), query).transpose(-2, -1) if query.sink_replacement == "vectors" else vectors


def mend_cosines(cosines: Float[Tensor, "*map spatial"], query: Query) -> Float[Tensor, "*map spatial"]:
    """Replace the query's sink in cosines over spatial tokens, if the query averages cosines."""
    return mend(cosines, query) if query.sink_replacement == "cosines" else cosines


def replace_sink(spatial: Float[Tensor, "*map row column"], sink: int | None) -> Float[Tensor, "*map row column"]:
    """Replace the sink token by the mean of its existing west, north and north-west neighbours."""
    if sink is None:
        return spatial
    row, column = divmod(sink, spatial.shape[-1])
    neighbours = [(row, column - 1), (row - 1, column), (row - 1, column - 1)]
    inside = [(r, c) for r, c in neighbours if r >= 0 and c >= 0] or [(row, column + 1), (row + 1, column)]
    mended = spatial.clone()
    mended[..., row, column] = torch.stack([spatial[..., r, c] for r, c in inside]).mean(0)
    return mended


def move_token(token: int | None, grid: int, new_grid: int) -> int | None:
    """Return the spatial token at the same place on a grid of another side. Corners stay corners."""
    if token is None or grid == new_grid:
        return token
    row, column = (round(index * (new_grid - 1) / max(1, grid - 1)) for index in divmod(token, grid))
    return row * new_grid + column
