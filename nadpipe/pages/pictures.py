"""Overlays, panels and contact sheets of images."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int8, Integer
from PIL import Image, ImageDraw, ImageFont

from nadpipe.circuit.label_values import IGNORED
from nadpipe.store.label_maps import Colour

_TEXT = 13  # size of the font in pixels
_LINE = 20  # height of a line in pixels
_GAP = 4  # pixels
_COLUMNS = 5  # largest number of pictures per row of a panel
_POSITIVE, _NEGATIVE = (230, 110, 0), (0, 90, 220)  # orange, blue
_OPACITY = 0.85  # of the largest value of a heat map
_ZERO = 128  # index of step 0 in the palette of heat maps
_BAR = (150, 12)  # size of a colour bar in pixels
ERROR_COLOURS: dict[str, Colour] = {"correct": (225, 225, 225), "wrong": (200, 0, 40), "ignored": (40, 40, 40)}


def overlay(
    image: Image.Image, classes: Integer[np.ndarray, "height width"], colours: Sequence[Colour], strength: float = 0.6
) -> Image.Image:
    """Return the image in grey, tinted in the colours of the classes. Pixels without a class (below 0) do not change."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    tint = np.asarray(colours, dtype=np.float32)[np.maximum(classes, 0)]
    return Image.fromarray(
        np.where((classes >= 0)[..., None], grey * (1 - strength) + tint * strength, pixels).astype(np.uint8)
    )


def error_map(
    image: Image.Image, truth: Integer[np.ndarray, "height width"], predicted: Integer[np.ndarray, "height width"]
) -> Image.Image:
    """Return the image in pale grey where the prediction is correct, with wrong and ignored pixels in `ERROR_COLOURS`."""
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    pale = 180 + grey * (60 / 255)
    wrong, ignored = ((truth != predicted) & (truth != IGNORED))[..., None], (truth == IGNORED)[..., None]
    pixels = np.where(wrong, ERROR_COLOURS["wrong"], np.where(ignored, ERROR_COLOURS["ignored"], pale.repeat(3, axis=2)))
    return Image.fromarray(pixels.astype(np.uint8))


def shrink(image: Image.Image, longest: int) -> Image.Image:
    """Return the image, scaled down if its longer side exceeds `longest` pixels."""
    scale = longest / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BOX)


def heat_overlay(image: Image.Image, values: Float[np.ndarray, "row column"]) -> Image.Image:
    """Return the image under a map of values from -1 to 1: orange if positive, blue if negative, more opaque if larger."""
    smooth = Image.fromarray(values.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR)
    heat = np.asarray(smooth)[..., None]
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    tint, strength = np.where(heat > 0, _POSITIVE, _NEGATIVE), np.abs(heat).clip(0, 1) * _OPACITY
    return Image.fromarray((pixels * (1 - strength) + tint * strength).astype(np.uint8))


def heat_image(steps: Int8[np.ndarray, "height width"]) -> Image.Image:
    """Return a heat map of steps of 1/127 as a transparent indexed image in the colours of `heat_overlay`."""
    value = np.arange(256)[:, None] - _ZERO
    palette = np.concatenate([np.where(value > 0, _POSITIVE, _NEGATIVE), np.abs(value) / 127 * _OPACITY * 255], axis=1)
    image = Image.fromarray((steps.astype(np.int16) + _ZERO).astype(np.uint8)).convert("P")
    image.putpalette(palette.round().astype(np.uint8).tobytes(), "RGBA")
    return image


def heat_steps(image: Image.Image) -> Int8[np.ndarray, "height width"]:
    """Return the steps of a `heat_image`."""
    return (np.asarray(image).astype(np.int16) - _ZERO).astype(np.int8)


def colour_bar(reach: float) -> Image.Image:
    """Return the colours of heat maps from -reach to reach on white, with these numbers below."""
    width, height = _BAR
    gradient = np.broadcast_to(np.linspace(-1, 1, width, dtype=np.float32), (height, width))
    bar = Image.new("RGB", (width, height + _LINE), "white")
    bar.paste(heat_overlay(Image.new("RGB", _BAR, "white"), np.ascontiguousarray(gradient)), (0, 0))
    pen = ImageDraw.Draw(bar)
    for x, anchor, value in ((0, "la", -reach), (width // 2, "ma", 0), (width, "ra", reach)):
        pen.text((x, height + 2), f"{value:.3g}", fill="black", font=_font(), anchor=anchor)
    return bar


def crop_to_square(
    image: Image.Image, top: int, left: int, size: int, resized_height: int, resized_width: int, side: int
) -> Image.Image:
    """Return a view of an image at `side` pixels: a square crop of `size` pixels in the resized image.

    The crop may reach beyond the image, whose surroundings are black.
    """
    x_scale, y_scale = image.width / resized_width, image.height / resized_height
    x, y = (max(0, left), min(resized_width, left + size)), (max(0, top), min(resized_height, top + size))
    box = (x[0] * x_scale, y[0] * y_scale, x[1] * x_scale, y[1] * y_scale)
    x_place, y_place = ([round((end - start) * side / size) for end in ends] for ends, start in ((x, left), (y, top)))
    shape = (max(1, x_place[1] - x_place[0]), max(1, y_place[1] - y_place[0]))
    resized = image.resize(shape, Image.Resampling.BICUBIC, box=box)
    if shape == (side, side):
        return resized
    view = Image.new(image.mode, (side, side))
    view.paste(resized, (x_place[0], y_place[0]))
    return view


def panel(pictures: Mapping[str, Image.Image], legend: Mapping[str, Colour], longest: int = 480) -> Image.Image:
    """Return titled pictures in rows above a legend of names and colours. Pictures larger than `longest` are scaled down."""
    tiles = [_titled(title, shrink(picture, longest)) for title, picture in pictures.items()]
    grid = _in_rows(tiles, min(_COLUMNS, len(tiles)))
    return _below(grid, _legend(legend, grid.width))


def contact_sheet(
    title: str,
    sections: Mapping[str, Sequence[tuple[str, Sequence[tuple[str, Image.Image]]]]],
    legend: Mapping[str, Colour],
    longest: int = 150,
) -> Image.Image:
    """Return a titled sheet of sections, such as "best" and "worst".

    Each entry of a section is a caption above pictures side by side, each below its title. Pictures without a title use no room
    for one. Pictures larger than `longest` are scaled down.
    """
    blocks = [_line(title, bold=True)]
    for name, entries in sections.items():
        tiles = [
            _titled(caption, _side_by_side([_titled(heading, shrink(picture, longest)) for heading, picture in pictures]))
            for caption, pictures in entries
        ]
        if tiles:
            blocks += [_line(name), _in_rows(tiles, 2)]
    blocks.append(_legend(legend, max(block.width for block in blocks)))
    return functools.reduce(_below, blocks)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=_TEXT)


def _line(text: str, bold: bool = False) -> Image.Image:
    """Return an image of one line of text."""
    font = ImageFont.load_default(size=_TEXT + 4) if bold else ImageFont.load_default(size=_TEXT + 1)
    line = Image.new("RGB", (round(font.getlength(text)) + 2 * _GAP, _LINE + 8), "white")
    ImageDraw.Draw(line).text((_GAP, 6), text, fill="black", font=font)
    return line


def _titled(title: str, picture: Image.Image) -> Image.Image:
    """Return a picture below its title, or the picture itself for an empty title."""
    if not title:
        return picture
    width = max(picture.width, round(_font().getlength(title)) + _GAP)
    tile = Image.new("RGB", (width, picture.height + _LINE), "white")
    ImageDraw.Draw(tile).text((1, 2), title, fill="black", font=_font())
    tile.paste(picture, (0, _LINE))
    return tile


def _side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    return _in_rows(pictures, len(pictures))


def _in_rows(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    """Return tiles in rows. Each column is as wide as its widest tile."""
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    widths = [max(tile.width for tile in tiles[column::columns]) + _GAP for column in range(min(columns, len(tiles)))]
    heights = [max(tile.height for tile in row) + _GAP for row in rows]
    sheet = Image.new("RGB", (sum(widths), sum(heights)), "white")
    for row, tiles_of_row in enumerate(rows):
        for column, tile in enumerate(tiles_of_row):
            sheet.paste(tile, (sum(widths[:column]), sum(heights[:row])))
    return sheet


def _below(top: Image.Image, bottom: Image.Image) -> Image.Image:
    sheet = Image.new("RGB", (max(top.width, bottom.width), top.height + bottom.height), "white")
    sheet.paste(top, (0, 0))
    sheet.paste(bottom, (0, top.height))
    return sheet


def _legend(legend: Mapping[str, Colour], width: int) -> Image.Image:
    """Return names next to their colours, wrapped to the width."""
    corners, x, y = [], _GAP, _GAP
    for name in legend:
        needed = 14 + 5 + round(_font().getlength(name)) + 12
        if x > _GAP and x + needed > width:
            x, y = _GAP, y + _LINE
        corners.append((x, y))
        x += needed
    widest = max(
        [width, *(x + 19 + round(_font().getlength(name)) + _GAP for name, (x, _) in zip(legend, corners, strict=True))]
    )
    image = Image.new("RGB", (widest, y + _LINE + _GAP), "white")
    pen = ImageDraw.Draw(image)
    for (name, colour), (x, y) in zip(legend.items(), corners, strict=True):
        pen.rectangle((x, y, x + 14, y + 14), fill=tuple(colour), outline="grey")
        pen.text((x + 19, y), name, fill="black", font=_font())
    return image
