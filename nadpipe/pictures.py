"""Label maps, overlays and sheets of pictures."""

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Integer, UInt8
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

_TEXT = 13  # pixels
_LINE = 20
_GAP = 4
_ALONG, _AGAINST = (230, 110, 0), (0, 90, 220)


def class_colours(count: int) -> UInt8[np.ndarray, "classes 3"]:
    """Colours of classes 0, 1, …: hues a golden angle apart, so that neighbours differ, in four shades by turns."""
    shades = ((0.85, 1.0), (0.55, 0.85), (1.0, 0.65), (0.35, 1.0))
    hsv = [(at * 0.618034 % 1, *shades[at // 5 % len(shades)]) for at in range(count)]
    rgb = np.array([colorsys.hsv_to_rgb(*colour) for colour in hsv])
    return (rgb * 255).round().astype(np.uint8)


def indexed_image(classes: Integer[np.ndarray, "height width"], colours: Sequence[Colour] | None = None) -> Image.Image:
    """A label map as an indexed picture whose pixel values are the classes (at most 256 of them), in their colours."""
    pixels = np.ascontiguousarray(classes, dtype=np.uint8)
    image = Image.frombytes("P", pixels.shape[::-1], pixels.tobytes())
    palette = class_colours(256).tolist() if colours is None else colours
    image.putpalette([part for colour in palette for part in colour])
    return image


def overlay(
    image: Image.Image, classes: Integer[np.ndarray, "height width"], colours: Sequence[Colour], strength: float = 0.6
) -> Image.Image:
    """The image in grey, each pixel tinted in the colour of its class; pixels of no class (below 0) stay as they are."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    tint = np.asarray(colours, dtype=np.float32)[np.maximum(classes, 0)]
    return Image.fromarray(
        np.where((classes >= 0)[..., None], grey * (1 - strength) + tint * strength, pixels).astype(np.uint8)
    )


def shrink(image: Image.Image, longest: int) -> Image.Image:
    """The image with its longer side at most `longest` pixels."""
    scale = longest / max(image.size)
    return (
        image if scale >= 1 else image.resize(tuple(max(1, round(side * scale)) for side in image.size), Image.Resampling.BOX)
    )


def heat_overlay(image: Image.Image, values: Float[np.ndarray, "row column"]) -> Image.Image:
    """The image with a map of -1 to 1 over it: orange where it is positive, blue where negative, stronger where larger."""
    smooth = Image.fromarray(values.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR)
    heat = np.asarray(smooth)[..., None]
    tint = np.where(heat > 0, _ALONG, _AGAINST)
    strength = np.abs(heat).clip(0, 1) * 0.85
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    return Image.fromarray((pixels * (1 - strength) + tint * strength).astype(np.uint8))


def crop_to_square(
    image: Image.Image, top: int, left: int, size: int, resized_height: int, resized_width: int, side: int
) -> Image.Image:
    """What a view shows of an image, `side` pixels wide: a square of `size` in the image at its resized size."""
    across, down = image.width / resized_width, image.height / resized_height
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)


def panel(pictures: Mapping[str, Image.Image], legend: Mapping[str, Colour], longest: int = 480) -> Image.Image:
    """Titled pictures in rows over a legend of colours and names; larger pictures are made smaller."""
    tiles = [_titled(title, shrink(picture, longest)) for title, picture in pictures.items()]
    grid = _in_rows(tiles, _columns(len(tiles)))
    return _below(grid, _legend(legend, grid.width))


def contact_sheet(
    title: str,
    sections: Mapping[str, Sequence[tuple[str, Sequence[Image.Image]]]],
    legend: Mapping[str, Colour],
    longest: int = 150,
) -> Image.Image:
    """A titled sheet of sections ("best", "worst"); each entry is a caption over pictures side by side, made smaller."""
    parts = [_line(title, bold=True)]
    for name, entries in sections.items():
        tiles = [_titled(caption, _side_by_side([shrink(one, longest) for one in some])) for caption, some in entries]
        if tiles:
            parts += [_line(name), _in_rows(tiles, 2)]
    width = max(part.width for part in parts)
    sheet = parts[0]
    for part in [*parts[1:], _legend(legend, width)]:
        sheet = _below(sheet, part)
    return sheet


def _columns(count: int) -> int:
    """Of a grid that is a little wider than high: up to five."""
    return min(5, count)


def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=_TEXT)


def _line(text: str, bold: bool = False) -> Image.Image:
    """One line of text."""
    font = ImageFont.load_default(size=_TEXT + 4) if bold else ImageFont.load_default(size=_TEXT + 1)
    line = Image.new("RGB", (round(font.getlength(text)) + 2 * _GAP, _LINE + 8), "white")
    ImageDraw.Draw(line).text((_GAP, 6), text, fill="black", font=font)
    return line


def _titled(title: str, picture: Image.Image) -> Image.Image:
    """A picture under its title, as wide as the wider of them."""
    width = max(picture.width, round(_font().getlength(title)) + _GAP)
    tile = Image.new("RGB", (width, picture.height + _LINE), "white")
    ImageDraw.Draw(tile).text((1, 2), title, fill="black", font=_font())
    tile.paste(picture, (0, _LINE))
    return tile


def _side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    return _in_rows(pictures, len(pictures))


def _in_rows(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    """Tiles row by row, each column as wide as its widest."""
    rows = [tiles[at : at + columns] for at in range(0, len(tiles), columns)]
    widths = [max(row[at].width for row in rows if at < len(row)) + _GAP for at in range(min(columns, len(tiles)))]
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
    """Colours with their names, each as wide as it needs to be, wrapped to the width."""
    places, x, y = [], _GAP, _GAP
    for name in legend:
        needed = 14 + 5 + round(_font().getlength(name)) + 12
        if x > _GAP and x + needed > width:
            x, y = _GAP, y + _LINE
        places.append((x, y))
        x += needed
    widest = max(
        [width, *(x + 19 + round(_font().getlength(name)) + _GAP for name, (x, _) in zip(legend, places, strict=True))]
    )
    drawn = Image.new("RGB", (widest, y + _LINE + _GAP), "white")
    pen = ImageDraw.Draw(drawn)
    for (name, colour), (x, y) in zip(legend.items(), places, strict=True):
        pen.rectangle((x, y, x + 14, y + 14), fill=tuple(colour), outline="grey")
        pen.text((x + 19, y), name, fill="black", font=_font())
    return drawn
