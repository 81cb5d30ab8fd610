"""Training-free segmentation with pairs, and the baselines on the same features.

Every method maps what is known of a view's tokens to logits (view, text, row, column) on the grid of spatial tokens:
Bu & Gandelsman, arXiv 2509.19943, for `nad`; MaskCLIP (arXiv 2112.01071) and SCLIP (arXiv 2312.01597) for
the baselines. A method is one function and one line in METHODS.
"""

import dataclasses
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from nadpipe import attnpool
from nadpipe.attnpool import AttentionPool
from nadpipe.texts import Selection, unit


@dataclasses.dataclass(frozen=True)
class Query:
    """What a run looks for: the texts, their pairs, and what the heads write on average."""

    pool: AttentionPool
    text: Float[Tensor, "text embed"]  # centred, unit length
    pairs: Tensor  # sparse CSR (text · head, neuron), 1 where the pair is selected for the text
    k: int
    value_mean: Float[Tensor, "head token width"]  # mean over the discovery images of a[h, t] (W_V^h x_t + b_V^h)
    sink: int | None  # spatial token that is replaced in every map


def selection_matrix(selection: Selection, heads: int, neurons: int) -> Tensor:
    """M: the selected pairs of every text as one sparse 0/1 matrix (text · head, neuron)."""
    texts, k = selection.head.shape
    row = torch.arange(texts, device=selection.head.device)[:, None] * heads + selection.head
    index = torch.stack([row.flatten(), selection.neuron.flatten()])
    value = torch.ones(texts * k, device=selection.head.device)
    matrix = torch.sparse_coo_tensor(index, value, (texts * heads, neurons), check_invariants=False).coalesce()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return matrix.to_sparse_csr()


def nad(z: Float[Tensor, "view spatial neuron"], query: Query) -> Float[Tensor, "view text spatial"]:
    """1/k · sum_h cos(m[h, t], q_p) · (M_p z_t)[h], as published."""
    return _combine(head_similarity(z, query, centred=False), z, query)


def nad_centred(z: Float[Tensor, "view spatial neuron"], query: Query) -> Float[Tensor, "view text spatial"]:
    """`nad` with each head's mean over the discovery images taken off m[h, t] before the cosine."""
    return _combine(head_similarity(z, query, centred=True), z, query)


def maskclip(z: Float[Tensor, "view spatial neuron"], query: Query) -> Float[Tensor, "view text spatial"]:
    """Cosine of every token's own value, projected alone, to the text: no attention, no positional embedding."""
    pool = query.pool
    value = z @ pool.v_weight.T + pool.v_bias
    return _cosine(value @ pool.c_weight.T + pool.c_bias, query)


def sclip(z: Float[Tensor, "view spatial neuron"], query: Query) -> Float[Tensor, "view text spatial"]:
    """Values mixed over spatial tokens by softmax(QQ^T) + softmax(KK^T), projected, cosine to the text."""
    pool = query.pool
    x = attnpool.tokens(z, pool)[:, 1:]
    asked, keyed = attnpool.token_queries_and_keys(x, pool)
    scale = asked.shape[-1] ** -0.5
    mix = sum(torch.softmax(part @ part.transpose(2, 3) * scale, dim=3) for part in (asked, keyed))
    value = (mix @ attnpool.token_values(x, pool)).transpose(1, 2).flatten(2)
    return _cosine(value @ pool.c_weight.T + pool.c_bias, query)


def attention(z: Float[Tensor, "view spatial neuron"], query: Query) -> Float[Tensor, "view text spatial"]:
    """sum_h ⟨m[h, t], q⟩ · T / ‖y‖: each token's share of the pooled embedding, as its own attention weighs it."""
    pool = query.pool
    x = attnpool.tokens(z, pool)
    weighed = attnpool.attention(x, pool)[..., None] * attnpool.token_values(x, pool)
    written = weighed.transpose(1, 2).flatten(2) @ pool.c_weight.T + pool.c_bias / pool.tokens
    scale = pool.tokens / written.sum(1).norm(dim=1)
    return _mend(torch.einsum("vte,pe,v->vpt", written[:, 1:], query.text, scale), query)


METHODS: dict[str, Callable[[Tensor, Query], Tensor]] = {
    "nad": nad,
    "nad_centred": nad_centred,
    "maskclip": maskclip,
    "sclip": sclip,
    "attention": attention,
}


def head_similarity(
    z: Float[Tensor, "view spatial neuron"], query: Query, centred: bool
) -> Float[Tensor, "view text head spatial"]:
    """cos(m[h, t], q) with m[h, t] = a[h, t] W_O^h (W_V^h x_t + b_V^h) + b_O / (H T), or with its mean taken off.

    Inner products go through W_O^h^T q and norms through the Gram matrix of W_O^h, in the head's value space: the
    (token, head, embed) tensor is never built.
    """
    pool = query.pool
    output = pool.output()
    gram = output.transpose(1, 2) @ output
    x = attnpool.tokens(z, pool)
    value = attnpool.attention(x, pool)[..., None] * attnpool.token_values(x, pool)
    pulled = torch.einsum("hed,pe->hdp", output, query.text)
    if centred:
        value = value - query.value_mean
        constant = torch.zeros_like(pool.c_bias)
    else:
        constant = pool.c_bias / (pool.heads * pool.tokens)
    value = value[:, :, 1:]
    inner = torch.einsum("vhtd,hdp->vpht", value, pulled) + (query.text @ constant)[:, None, None]
    squared = torch.einsum("vhtd,hde,vhte->vht", value, gram, value)
    squared = squared + 2 * torch.einsum("vhtd,hed,e->vht", value, output, constant) + constant.square().sum()
    norm = squared.clamp(min=0).sqrt()
    return inner / torch.where(norm > 0, norm, 1)[:, None]


def selected_activation(z: Float[Tensor, "view spatial neuron"], query: Query) -> Float[Tensor, "view text head spatial"]:
    """(M_p z_t)[h]: the summed activation of the neurons that each text selects in each head, as a sparse product."""
    views, spatial, neurons = z.shape
    product = query.pairs @ z.reshape(-1, neurons).T
    return product.unflatten(1, (views, spatial)).unflatten(0, (len(query.text), query.pool.heads)).permute(2, 0, 1, 3)


def _combine(similarity: Tensor, z: Tensor, query: Query) -> Tensor:
    """The sink is replaced in both maps, before they are multiplied."""
    return (_mend(similarity, query) * _mend(selected_activation(z, query), query)).sum(2) / query.k


def _cosine(embedding: Float[Tensor, "view spatial embed"], query: Query) -> Float[Tensor, "view text spatial"]:
    return _mend((unit(embedding) @ query.text.T).transpose(1, 2), query)


def _mend(spatial: Float[Tensor, "*map spatial"], query: Query) -> Float[Tensor, "*map spatial"]:
    return replace_sink(spatial.unflatten(-1, (query.pool.grid, query.pool.grid)), query.sink).flatten(-2)


def find_sink(attention: Float[Tensor, "head token"], factor: float = 3.0) -> int | None:
    """The spatial token (counted from 0 without the pooled one) that draws attention whatever the image, if there is one.

    That is the token of the largest mean attention over heads and images, when it gets `factor` times the median.
    """
    spatial = attention.mean(0)[1:]
    token = int(spatial.argmax())
    return token if spatial[token] > factor * spatial.median() else None


def replace_sink(spatial: Float[Tensor, "*map row column"], sink: int | None) -> Float[Tensor, "*map row column"]:
    """Maps with the sink token replaced by the mean of its west, north and north-west neighbours (those that exist)."""
    if sink is None:
        return spatial
    row, column = divmod(sink, spatial.shape[-1])
    neighbours = [(row, column - 1), (row - 1, column), (row - 1, column - 1)]
    inside = [(r, c) for r, c in neighbours if r >= 0 and c >= 0] or [(row, column + 1), (row + 1, column)]
    mended = spatial.clone()
    mended[..., row, column] = torch.stack([spatial[..., r, c] for r, c in inside]).mean(0)
    return mended


def merge_views(
    logits: Float[Tensor, "view text row column"],
    top: list[int],
    left: list[int],
    crop: int,
    height: int,
    width: int,
) -> Float[Tensor, "text height width"]:
    """Logits of one image's crops, bilinear to pixels of the resized image and averaged where crops overlap."""
    total = logits.new_zeros(logits.shape[1], height, width)
    count = logits.new_zeros(height, width)
    for view, y, x in zip(logits, top, left, strict=True):
        pixels = F.interpolate(view[None], size=(crop, crop), mode="bilinear", align_corners=False)[0]
        total[:, y : y + crop, x : x + crop] += pixels
        count[y : y + crop, x : x + crop] += 1
    return total / count


def label(
    logits: Float[Tensor, "text resized_height resized_width"], height: int, width: int, temperature: float
) -> tuple[Int[Tensor, "height width"], Float[Tensor, "height width"]]:
    """Class and its softmax probability per pixel of an image of the given size.

    One class is resized at a time, with a running maximum and sum, so that memory does not grow with the classes.
    """
    best = logits.new_full((height, width), -torch.inf)
    total = torch.zeros_like(best)
    classes = torch.zeros(height, width, dtype=torch.long, device=logits.device)
    for at in range(len(logits)):
        one = F.interpolate(logits[None, at : at + 1], size=(height, width), mode="bilinear", align_corners=False)[0, 0]
        one = one * temperature
        better = one > best
        new = torch.where(better, one, best)
        total = total * torch.exp(best - new) + torch.exp(one - new)
        classes[better], best = at, new
    return classes, 1 / total
