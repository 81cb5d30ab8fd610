"""Training-free segmentation with pairs, and the baselines on the same features.

Every method maps what is known of some views' tokens to logits (view, text, spatial) on the grid of spatial tokens:
Bu & Gandelsman, arXiv 2509.19943, for `nad` and its ablations; MaskCLIP (arXiv 2112.01071) and SCLIP (arXiv 2312.01597) for
the baselines. A method is one function and one line in METHODS.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from nadpipe import attnpool
from nadpipe.attnpool import AttentionPool
from nadpipe.errors import NadpipeError
from nadpipe.texts import Selection, unit


@dataclasses.dataclass(frozen=True)
class Query:
    """What a run looks for, on one grid of tokens: the texts, and what the heads write on average."""

    pool: AttentionPool
    text: Float[Tensor, "text embed"]  # centred, unit length
    value_mean: Float[Tensor, "head token width"]  # mean over the discovery images of a[h, t] (W_V^h x_t + b_V^h)
    sink: int | None  # spatial token that is replaced in every map

    def at_grid(self, grid: int) -> "Query":
        """The same for views of another size. A head's mean is spread over as many more tokens; the sink stays where it is
        in the view."""
        if grid == self.pool.grid:
            return self
        pool = attnpool.at_grid(self.pool, grid)
        mean = attnpool.resize_tokens(self.value_mean, grid) * (self.pool.tokens / pool.tokens)
        return dataclasses.replace(self, pool=pool, value_mean=mean, sink=move_token(self.sink, self.pool.grid, grid))

    @functools.cached_property
    def pulled(self) -> Float[Tensor, "head width text"]:
        """W_O^h^T q: each text in the value space of each head."""
        return torch.einsum("hed,pe->hdp", self.pool.output(), self.text)

    @functools.cached_property
    def placed(self) -> Float[Tensor, "spatial out"]:
        """W_V pos_t: what the positional embedding adds to the spatial tokens' values."""
        return self.pool.positional_embedding[1:] @ self.pool.v_weight.T

    @functools.cached_property
    def gram(self) -> Float[Tensor, "head width width2"]:
        """W_O^h^T W_O^h: what norms of written vectors need, in the head's value space."""
        output = self.pool.output()
        return output.transpose(1, 2) @ output


@dataclasses.dataclass(frozen=True)
class Pairs:
    """K_p, the k pairs that stand for each text."""

    neuron: Int[Tensor, " pair"]  # M, the 0/1 matrix (text · head, neuron) by rows, as in CSR: neurons selected in each row
    start: Int[Tensor, " row"]  # where each row of M begins in `neuron`
    k: int
    by_head: Float[Tensor, "text head"]  # pairs selected in each head
    by_neuron: Float[Tensor, "text neuron"]  # pairs selected of each neuron


def selected_pairs(selection: Selection, k: int, heads: int, neurons: int) -> Pairs:
    """The first k pairs of a selection as sparse 0/1 matrix and as counts."""
    head, neuron = selection.head[:, :k], selection.neuron[:, :k]
    texts = len(head)

    def counts(index: Int[Tensor, "text pair"], size: int) -> Int[Tensor, "text size"]:
        """How often each text has each index."""
        text = torch.arange(texts, device=head.device)[:, None]
        return torch.bincount((text * size + index).flatten(), minlength=texts * size).view(texts, size)

    by_head = counts(head, heads)
    in_row = by_head.flatten()
    by_row = neuron.gather(1, head.argsort(dim=1, stable=True)).flatten()  # texts follow each other as they are
    return Pairs(by_row.int(), (in_row.cumsum(0) - in_row).int(), k, by_head.float(), counts(neuron, neurons).float())


class Tokens:
    """The tokens of some views, and what methods make of them: each quantity is computed once, whoever asks for it first."""

    def __init__(self, z: Float[Tensor, "view spatial neuron"], query: Query) -> None:
        self.z = z
        self.query = query
        self._activation: tuple[Pairs, Tensor] | None = None

    @functools.cached_property
    def x(self) -> Float[Tensor, "view token neuron"]:
        """Tokens with their positional embedding."""
        return attnpool.tokens(self.z, self.query.pool)

    @functools.cached_property
    def attention(self) -> Float[Tensor, "view head token"]:
        """a[h, t]."""
        return attnpool.attention(self.x, self.query.pool)

    @functools.cached_property
    def values(self) -> Float[Tensor, "view head token width"]:
        """W_V^h x_t + b_V^h."""
        return attnpool.token_values(self.x, self.query.pool)

    @functools.cached_property
    def similarity(self) -> Float[Tensor, "view text head spatial"]:
        """cos(m[h, t], q)."""
        return self._similarity(centred=False)

    @functools.cached_property
    def centred_similarity(self) -> Float[Tensor, "view text head spatial"]:
        """cos(m[h, t] - its mean over the discovery images, q)."""
        return self._similarity(centred=True)

    def _similarity(self, centred: bool) -> Float[Tensor, "view text head spatial"]:
        """With m[h, t] = a[h, t] W_O^h (W_V^h x_t + b_V^h) + b_O / (H T), the sink replaced.

        Inner products go through W_O^h^T q and norms through the Gram matrix of W_O^h, in the head's value space: the
        (token, head, embed) tensor is never built.
        """
        query, pool = self.query, self.query.pool
        value = self.attention[..., None] * self.values
        value, constant = value[:, :, 1:], pool.c_bias / (pool.heads * pool.tokens)
        if centred:
            value, constant = value - query.value_mean[:, 1:], torch.zeros_like(constant)
        along = torch.einsum("hed,e->hd", pool.output(), constant)
        squared = ((value @ query.gram + 2 * along[:, None]) * value).sum(3) + constant.square().sum()
        norm = squared.clamp(min=0).sqrt()
        scaled = value / torch.where(norm > 0, norm, 1)[..., None]
        inner = torch.einsum("vhtd,hdp->vpht", scaled, query.pulled)
        beside = (query.text @ constant)[:, None, None] / torch.where(norm > 0, norm, 1)[:, None]
        return mend(inner + beside, query)

    def activation(self, pairs: Pairs) -> Float[Tensor, "view text head spatial"]:
        """(M_p z_t)[h]: the summed activation of the neurons that each text selects in each head, the sink replaced."""
        if self._activation is None or self._activation[0] is not pairs:
            views, _, neurons = self.z.shape
            by_neuron = self.z.reshape(-1, neurons).T.contiguous()
            product = F.embedding_bag(pairs.neuron, by_neuron, pairs.start, mode="sum")  # M z: twice as fast as torch's CSR
            maps = product.unflatten(1, (views, -1)).unflatten(0, (len(self.query.text), -1)).permute(2, 0, 1, 3)
            self._activation = pairs, mend(maps, self.query)
        return self._activation[1]


def nad(tokens: Tokens, pairs: Pairs) -> Float[Tensor, "view text spatial"]:
    """1/k · sum_h cos(m[h, t], q_p) · (M_p z_t)[h], as published."""
    return (tokens.similarity * tokens.activation(pairs)).sum(2) / pairs.k


def nad_centred(tokens: Tokens, pairs: Pairs) -> Float[Tensor, "view text spatial"]:
    """`nad` with each head's mean over the discovery images taken off m[h, t] before the cosine."""
    return (tokens.centred_similarity * tokens.activation(pairs)).sum(2) / pairs.k


def nad_shifted(tokens: Tokens, pairs: Pairs) -> Float[Tensor, "view text spatial"]:
    """`nad` with (1 + cos) / 2 in place of the cosine: a pair's activation counts for its text whatever its head sees in the
    token, and up to twice as much where the head agrees. docs/segmentation.md has how it does against the others."""
    return ((1 + tokens.similarity) / 2 * tokens.activation(pairs)).sum(2) / pairs.k


def heads(tokens: Tokens, pairs: Pairs) -> Float[Tensor, "view text spatial"]:
    """`nad` without neurons: 1/k · sum over selected pairs of cos(m[h, t], q_p), so each head counts by its selected pairs."""
    return torch.einsum("vpht,ph->vpt", tokens.similarity, pairs.by_head) / pairs.k


def neurons(tokens: Tokens, pairs: Pairs) -> Float[Tensor, "view text spatial"]:
    """`nad` without heads: 1/k · sum over selected pairs of z_t[n], so each neuron counts by its selected pairs."""
    return mend((tokens.z @ pairs.by_neuron.T).transpose(1, 2), tokens.query) / pairs.k


def maskclip(tokens: Tokens, pairs: Pairs | None) -> Float[Tensor, "view text spatial"]:
    """Cosine of every token's own value, projected alone, to the text: no attention, no positional embedding."""
    pool = tokens.query.pool
    value = tokens.values[:, :, 1:].transpose(1, 2).flatten(2) - tokens.query.placed  # W_V is linear: no second projection
    return _cosine(value @ pool.c_weight.T + pool.c_bias, tokens.query)


def sclip(tokens: Tokens, pairs: Pairs | None) -> Float[Tensor, "view text spatial"]:
    """Values mixed over spatial tokens by softmax(QQ^T) + softmax(KK^T), projected, cosine to the text."""
    pool = tokens.query.pool
    asked, keyed = attnpool.token_queries_and_keys(tokens.x[:, 1:], pool)
    value = (_self_attention(asked).add_(_self_attention(keyed)) @ tokens.values[:, :, 1:]).transpose(1, 2).flatten(2)
    return _cosine(value @ pool.c_weight.T + pool.c_bias, tokens.query)


def _self_attention(part: Float[Tensor, "view head token width"]) -> Float[Tensor, "view head token token2"]:
    """softmax(P P^T / sqrt(d)): how much each token attends to each by its own query, or by its own key."""
    part = part.contiguous()  # heads side by side: three times as fast as views across the projection
    return torch.softmax((part * part.shape[-1] ** -0.5) @ part.transpose(2, 3), dim=3)


def attention(tokens: Tokens, pairs: Pairs | None) -> Float[Tensor, "view text spatial"]:
    """sum_h ⟨m[h, t], q⟩ · T / ‖y‖: each token's share of the pooled embedding, as its own attention weighs it.

    Texts are pulled into the heads' value space, so that one vector a view is projected, not one a token.
    """
    query, pool = tokens.query, tokens.query.pool
    weighed = tokens.attention[..., None] * tokens.values
    pooled = weighed.sum(2).flatten(1) @ pool.c_weight.T + pool.c_bias
    inner = torch.einsum("vhtd,hdp->vpt", weighed[:, :, 1:], query.pulled)
    inner = inner + (query.text @ pool.c_bias / pool.tokens)[:, None]
    return mend(inner * (pool.tokens / pooled.norm(dim=1))[:, None, None], query)


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to logits, and whether it uses the selected pairs, so that it gives a result for every k."""

    logits: Callable[[Tokens, Pairs | None], Float[Tensor, "view text spatial"]]
    selects: bool


METHODS: dict[str, Method] = {
    "nad": Method(nad, selects=True),
    "nad_centred": Method(nad_centred, selects=True),
    "nad_shifted": Method(nad_shifted, selects=True),
    "heads": Method(heads, selects=True),
    "neurons": Method(neurons, selects=True),
    "maskclip": Method(maskclip, selects=False),
    "sclip": Method(sclip, selects=False),
    "attention": Method(attention, selects=False),
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A method with its number of pairs; k is None for methods that select none."""

    method: str
    k: int | None

    @property
    def name(self) -> str:
        """What folders and legends call it."""
        return self.method if self.k is None else f"{self.method}-k{self.k}"


def variants(methods: Sequence[str], k: Sequence[int]) -> list[Variant]:
    """Every method, once for each k where it selects pairs. Raises NadpipeError for a method that does not exist."""
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise NadpipeError(f"--methods: no method {unknown[0]}; there are {', '.join(METHODS)}")
    return [Variant(name, size) for name in methods for size in (k if METHODS[name].selects else (None,))]


def _cosine(embedding: Float[Tensor, "view spatial embed"], query: Query) -> Float[Tensor, "view text spatial"]:
    return mend((unit(embedding) @ query.text.T).transpose(1, 2), query)


# ------------------------------------------------------------------------------------------------------ attention sink


def mend(spatial: Float[Tensor, "*map spatial"], query: Query) -> Float[Tensor, "*map spatial"]:
    """Maps over spatial tokens with the query's sink replaced."""
    return replace_sink(spatial.unflatten(-1, (query.pool.grid, query.pool.grid)), query.sink).flatten(-2)


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


def move_token(token: int | None, grid: int, new_grid: int) -> int | None:
    """The spatial token at the same place in a view whose grid has another side; corners stay corners."""
    if token is None or grid == new_grid:
        return token
    row, column = (round(at * (new_grid - 1) / max(1, grid - 1)) for at in divmod(token, grid))
    return row * new_grid + column


# --------------------------------------------------------------------------------------------------- tokens to pixels


@dataclasses.dataclass(frozen=True)
class Axis:
    """How the cells of an image become its pixels along one axis."""

    weights: Float[Tensor, "pixel cell"]
    lines: list[int]  # pixels, the first and the last among them, between which the weights are linear
    at_lines: Float[Tensor, "line cell"]  # the weights of these


@dataclasses.dataclass(frozen=True)
class Canvas:
    """How an image's crops become its pixels: a linear map along each axis.

    Bilinear from a crop's tokens to its pixels, the mean where crops overlap, and bilinear from the resized image to the
    mask are all separable, and so is their composition: logits of pixels are rows @ cells @ columns^T.
    """

    rows: Axis
    columns: Axis

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return len(self.rows.weights), len(self.columns.weights)

    def pixels(self, cells: Float[Tensor, "text cell_row cell_column"], part: slice) -> Float[Tensor, "text row width"]:
        """Logits of some rows of pixels."""
        return _spread(cells, self.rows.weights[part], self.columns.weights)

    def corners(self, cells: Float[Tensor, "text cell_row cell_column"], lines: slice) -> Float[Tensor, "text line line2"]:
        """Logits where some of the lines along the rows cross those along the columns."""
        return _spread(cells, self.rows.at_lines[lines], self.columns.at_lines)


def _spread(
    cells: Float[Tensor, "text cell_row cell_column"],
    rows: Float[Tensor, "row cell_row"],
    columns: Float[Tensor, "column cell_column"],
) -> Float[Tensor, "text row column"]:
    used = rows.any(0).nonzero()[:, 0]
    near = slice(int(used[0]), int(used[-1]) + 1)  # the crops that these rows lie in
    return rows[:, near] @ cells[:, near] @ columns.T


_STEP = 16  # pixels between lines, at most: the smaller, the fewer texts are left, and the longer it takes to find them


def make_canvas(
    top: list[int], left: list[int], crop: int, grid: int, resized: tuple[int, int], size: tuple[int, int]
) -> Canvas:
    """The maps of crops at the given tops and lefts (of all rows and columns of crops, each once) in the resized image of
    (height, width), to pixels of an image of `size`."""
    starts = zip((sorted(set(top)), sorted(set(left))), resized, size, strict=True)
    return Canvas(*(make_axis(_axis_map(positions, crop, grid, length, pixels)) for positions, length, pixels in starts))


def _axis_map(starts: list[int], crop: int, grid: int, resized: int, pixels: int) -> Float64[Tensor, "pixel cell"]:
    one = _bilinear(torch.eye(grid, dtype=torch.float64), crop)
    spread, count = torch.zeros(resized, len(starts), grid, dtype=torch.float64), torch.zeros(resized)
    for at, start in enumerate(starts):
        spread[start : start + crop, at] = one
        count[start : start + crop] += 1
    return _bilinear(spread.flatten(1) / count[:, None], pixels)


def _bilinear(values: Float64[Tensor, "length column"], length: int) -> Float64[Tensor, "new_length column"]:
    """Linear interpolation along the first axis, as torch's bilinear one does along each of its two."""
    return F.interpolate(values.T[None], size=length, mode="linear", align_corners=False)[0].T.contiguous()


def make_axis(weights: Float64[Tensor, "pixel cell"]) -> Axis:
    """An axis with its lines: wherever the weights bend, and others between these."""
    bent = (weights.diff(dim=0).diff(dim=0).abs() > 1e-9).any(1).nonzero()[:, 0] + 1
    last = len(weights) - 1
    lines = [0]
    for bend in [*bent.tolist(), last]:
        start, parts = lines[-1], max(1, math.ceil((bend - lines[-1]) / _STEP))
        lines += [start + (bend - start) * part // parts for part in range(1, parts + 1)]
    return Axis(weights.float(), lines, weights[lines].float())


def arrange(
    logits: Float[Tensor, "view text spatial"], top: list[int], left: list[int], grid: int
) -> Float[Tensor, "text cell_row cell_column"]:
    """Logits of all crops of an image side by side, as a canvas takes them. The crops come row by row."""
    crops = len(set(top)), len(set(left))
    cells = logits.unflatten(2, (grid, grid)).unflatten(0, crops)
    return cells.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2).contiguous()


@dataclasses.dataclass(frozen=True)
class Labelling:
    """How logits of texts become classes.

    owner: class of each text; a class takes its best text. background: the class that is never too small and that pixels
    get whose best class is less probable than `threshold`; None where the data set has no such class. area: classes that
    cover a smaller share of the image are left out, and their pixels go to the next best class.
    """

    owner: Int[Tensor, " text"]
    classes: int
    temperature: float
    background: int | None = None
    threshold: float = 0.0
    area: float = 0.0


_BLOCK = 2**20  # logits at once: a block stays in the processor's cache, whatever the size of the image


def label(cells: Float[Tensor, "text cell_row cell_column"], canvas: Canvas, how: Labelling) -> Int[Tensor, "height width"]:
    """Class of each pixel: the one with the best text; background where that text's share of the softmax over all texts is
    below the threshold.

    Pixels are made a few rows at a time, so that memory does not grow with the image beyond the result, and only of texts
    that may be the best there. Without a threshold the softmax has no say and is not computed.
    """
    present = torch.zeros(how.classes, dtype=torch.bool)
    present[how.owner] = True
    classes, sure = _label(cells, canvas, how, present)
    if how.area > 0:
        share = torch.bincount(classes.flatten(), minlength=how.classes) / classes.numel()
        kept = share >= min(how.area, float(share.max()))  # the largest stays whatever its size
        if how.background is not None:
            kept[how.background] = True
        if (share[~kept] > 0).any():
            classes, sure = _label(cells, canvas, how, present & kept)
    if how.background is not None and sure is not None:
        classes[~sure] = how.background
    return classes


def _label(cells: Tensor, canvas: Canvas, how: Labelling, allowed: Bool[Tensor, " class"]) -> tuple[Tensor, Tensor | None]:
    """One pass over the pixels: the best of the classes that are allowed, and where there is a threshold, who reaches it."""
    classes = torch.empty(canvas.size, dtype=torch.long)
    sure = torch.empty(canvas.size, dtype=torch.bool) if how.threshold > 0 else None
    text = allowed[how.owner].nonzero()[:, 0]
    cells = cells * how.temperature
    for rows, found in _bands(cells[text], canvas):
        some = text[found]
        for part in _parts(rows, canvas.size[1] * len(some if sure is None else cells)):
            best, at = canvas.pixels(cells[some], part).max(0)
            classes[part] = how.owner[some][at]
            if sure is not None:
                sure[part] = (best - canvas.pixels(cells, part).logsumexp(0)).exp() >= how.threshold
    return classes, sure


_BAND = 20  # rows of pixels that are labelled together, at least
_FIRST, _SECOND = slice(None, -1), slice(1, None)  # of neighbouring lines


def _bands(cells: Float[Tensor, "text cell_row cell_column"], canvas: Canvas) -> Iterator[tuple[range, Int[Tensor, " found"]]]:
    """All rows of pixels a band at a time, with the texts that may be the best somewhere in it."""
    lines = canvas.rows.lines
    last = len(lines) - 1
    step = max(1, _BLOCK // (len(cells) * len(canvas.columns.lines)))
    for first in range(0, last, step):
        between = contenders(canvas.corners(cells, slice(first, first + step + 1)))
        start, stop = first, first + len(between)
        for end in range(first + 1, stop + 1):
            if end == stop or lines[end] - lines[start] >= _BAND:
                rows = range(lines[start], lines[end] + (end == last))  # the last line is of no other band
                yield rows, between[start - first : end - first].any(0).nonzero()[:, 0]
                start = end


def contenders(logits: Float[Tensor, "text line line2"]) -> Bool[Tensor, "between text"]:
    """Texts that may be the best at some pixel between two neighbouring lines, by the logits where these cross the others.

    Between lines logits are linear along both axes. A text that the best one in the middle of a block does not lead at all
    four corners may be ahead of it somewhere in the block; any other is behind it everywhere.
    """
    corners = [logits[:, rows, columns] for rows in (_FIRST, _SECOND) for columns in (_FIRST, _SECOND)]
    best = sum(corners).max(0, keepdim=True).indices  # argmax is many times slower
    close = 1e-5 * logits.abs().max()  # what rounding may change
    lead = torch.stack([(corner - corner.gather(0, best)).amax(2) for corner in corners]).amax(0)
    return (lead >= -close).T


def _parts(rows: range, numbers: int) -> Iterator[slice]:
    """Rows a few at a time, given how many numbers one takes."""
    step = max(1, _BLOCK // numbers)
    return (slice(start, min(start + step, rows.stop)) for start in range(rows.start, rows.stop, step))
