"""Tokens to pixels: logits of overlapping crops become label maps of any size in bounded memory."""

import dataclasses
import functools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

_STEP = 16  # largest distance between lines in pixels; smaller steps leave fewer candidate texts, but finding them takes longer
_BLOCK = 2**20  # logits per block, so that a block stays in the CPU cache for any image size
_BAND = 20  # smallest number of pixel rows that are labelled together
_FIRST, _SECOND = slice(None, -1), slice(1, None)  # the first and the second line of all neighbours


@dataclasses.dataclass(frozen=True)
class Axis:
    """Linear map from the cells of an image to its pixels along one axis."""

    weights: Float[Tensor, "pixel cell"]
    lines: list[int]  # pixels, including the first and last, between which the weights are linear
    at_lines: Float[Tensor, "line cell"]  # weights at the lines


@dataclasses.dataclass(frozen=True)
class Canvas:
    """Linear map from the crops of an image to its pixels, along each axis.

    Bilinear interpolation from tokens to pixels of a crop, the mean over overlapping crops, and bilinear interpolation from the
    resized image to the mask are separable, and so is their composition: logits of pixels are rows @ cells @ columns^T.
    """

    rows: Axis
    columns: Axis

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return len(self.rows.weights), len(self.columns.weights)

    def pixels(self, cells: Float[Tensor, "text cell_row cell_column"], pixel_rows: slice) -> Float[Tensor, "text row width"]:
        """Compute the logits of some rows of pixels."""
        return _spread(cells, self.rows.weights[pixel_rows], self.columns.weights)

    def corners(self, cells: Float[Tensor, "text cell_row cell_column"], lines: slice) -> Float[Tensor, "text line line2"]:
        """Compute the logits at the crossings of some row lines with all column lines."""
        return _spread(cells, self.rows.at_lines[lines], self.columns.at_lines)


def _spread(
    cells: Float[Tensor, "text cell_row cell_column"],
    rows: Float[Tensor, "row cell_row"],
    columns: Float[Tensor, "column cell_column"],
) -> Float[Tensor, "text row column"]:
    nonzero = rows.any(0).nonzero()[:, 0]
    covering = slice(int(nonzero[0]), int(nonzero[-1]) + 1)  # cells that contribute to these rows
    return rows[:, covering] @ cells[:, covering] @ columns.T


def make_canvas(
    top: list[int], left: list[int], crop: int, grid: int, resized: tuple[int, int], size: tuple[int, int]
) -> Canvas:
    """Create the canvas of crops at the given tops and lefts in a resized image (height, width), for an image of `size`."""
    axes = zip((sorted(set(top)), sorted(set(left))), resized, size, strict=True)
    return Canvas(*(make_axis(_axis_map(starts, crop, grid, length, pixels)) for starts, length, pixels in axes))


def _axis_map(starts: list[int], crop: int, grid: int, resized: int, pixels: int) -> Float64[Tensor, "pixel cell"]:
    """Compute the weights of all cells for all pixels along one axis. `starts`: first pixel of each crop, resized image."""
    crop_weights = _bilinear(torch.eye(grid, dtype=torch.float64), crop)
    summed, count = torch.zeros(resized, len(starts), grid, dtype=torch.float64), torch.zeros(resized)
    for index, start in enumerate(starts):
        summed[start : start + crop, index] = crop_weights
        count[start : start + crop] += 1
    return _bilinear(summed.flatten(1) / count[:, None], pixels)


def _bilinear(values: Float64[Tensor, "length column"], length: int) -> Float64[Tensor, "new_length column"]:
    """Interpolate linearly along the first axis, as torch's bilinear interpolation does along each axis."""
    return F.interpolate(values.T[None], size=length, mode="linear", align_corners=False)[0].T.contiguous()


def make_axis(weights: Float64[Tensor, "pixel cell"]) -> Axis:
    """Create an axis. Its lines are the pixels where the weights bend, and more in between."""
    bent = (weights.diff(dim=0).diff(dim=0).abs() > 1e-9).any(1).nonzero()[:, 0] + 1
    last = len(weights) - 1
    lines = [0]
    for bend in [*bent.tolist(), last]:
        start, steps = lines[-1], max(1, math.ceil((bend - lines[-1]) / _STEP))
        lines += [start + (bend - start) * step // steps for step in range(1, steps + 1)]
    return Axis(weights.float(), lines, weights[lines].float())


def arrange(
    logits: Float[Tensor, "view text spatial"], top: list[int], left: list[int], grid: int
) -> Float[Tensor, "text cell_row cell_column"]:
    """Arrange the logits of an image's crops, given row by row, side by side for a canvas."""
    crops = len(set(top)), len(set(left))
    cells = logits.unflatten(2, (grid, grid)).unflatten(0, crops)
    return cells.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2).contiguous()


@dataclasses.dataclass(frozen=True)
class Labelling:
    """Rules that turn logits of texts into classes.

    owner: class of each text; a class uses its best text. background: class of pixels whose best class is less probable than
    `threshold`; it is never removed by `area`; None if the data set has no such class. area: classes that cover a smaller share
    of the image are removed, and their pixels get the next best class.
    """

    owner: Int[Tensor, " text"]
    classes: int
    temperature: float
    background: int | None = None
    threshold: float = 0.0
    area: float = 0.0


def label(cells: Float[Tensor, "text cell_row cell_column"], canvas: Canvas, rules: Labelling) -> Int[Tensor, "height width"]:
    """Label each pixel with the class of its best text, or with background if that text is too improbable.

    The probability is that of a softmax over all texts, computed only if there is a threshold. Pixels are computed a few rows
    at a time, so memory grows only with the result, and only for texts that may be the best in these rows.
    """
    present = torch.zeros(rules.classes, dtype=torch.bool)
    present[rules.owner] = True
    classes, confident = _label(cells, canvas, rules, present)
    if rules.area > 0:
        share = torch.bincount(classes.flatten(), minlength=rules.classes) / classes.numel()
        kept = share >= min(rules.area, float(share.max()))  # the largest class always stays
        if rules.background is not None:
            kept[rules.background] = True
        if (share[~kept] > 0).any():
            classes, confident = _label(cells, canvas, rules, present & kept)
    if rules.background is not None and confident is not None:
        classes[~confident] = rules.background
    return classes


def _label(cells: Tensor, canvas: Canvas, rules: Labelling, allowed: Bool[Tensor, " class"]) -> tuple[Tensor, Tensor | None]:
    """Return the best allowed class of each pixel, and a mask of the pixels whose probability reaches the threshold, if any."""
    classes = torch.empty(canvas.size, dtype=torch.long)
    confident = torch.empty(canvas.size, dtype=torch.bool) if rules.threshold > 0 else None
    text = allowed[rules.owner].nonzero()[:, 0]
    cells = cells * rules.temperature
    for rows, candidates in _bands(cells[text], canvas):
        band_text = text[candidates]
        for block in _blocks(rows, canvas.size[1] * len(band_text if confident is None else cells)):
            best, index = canvas.pixels(cells[band_text], block).max(0)
            classes[block] = rules.owner[band_text][index]
            if confident is not None:
                confident[block] = (best - canvas.pixels(cells, block).logsumexp(0)).exp() >= rules.threshold
    return classes, confident


def _bands(
    cells: Float[Tensor, "text cell_row cell_column"], canvas: Canvas
) -> Iterator[tuple[range, Int[Tensor, " candidate"]]]:
    """Yield bands of pixel rows, each with the texts that may be the best at one of its pixels."""
    lines = canvas.rows.lines
    last = len(lines) - 1
    step = max(1, _BLOCK // (len(cells) * len(canvas.columns.lines)))
    for first in range(0, last, step):
        between = contenders(canvas.corners(cells, slice(first, first + step + 1)))
        start, stop = first, first + len(between)
        for end in range(first + 1, stop + 1):
            if end == stop or lines[end] - lines[start] >= _BAND:
                rows = range(lines[start], lines[end] + (end == last))  # the last line belongs to no other band
                yield rows, between[start - first : end - first].any(0).nonzero()[:, 0]
                start = end


def contenders(logits: Float[Tensor, "text line line2"]) -> Bool[Tensor, "between text"]:
    """Return a mask of the texts that may be the best between two neighbouring row lines, from logits at the lines' crossings.

    Between lines, logits are linear along both axes. A text can be the best inside a block only if, at one of the four corners,
    it is at least as good as the text that is best in the middle.
    """
    corners = [logits[:, rows, columns] for rows in (_FIRST, _SECOND) for columns in (_FIRST, _SECOND)]
    best = functools.reduce(torch.add, corners).max(0, keepdim=True).indices  # argmax is many times slower
    close = 1e-5 * logits.abs().max()  # within rounding errors
    lead = torch.stack([(corner - corner.gather(0, best)).amax(2) for corner in corners]).amax(0)
    return (lead >= -close).T


def _blocks(rows: range, row_size: int) -> Iterator[slice]:
    """Split rows into blocks. `row_size`: numbers per row."""
    step = max(1, _BLOCK // row_size)
    return (slice(start, min(start + step, rows.stop)) for start in range(rows.start, rows.stop, step))
