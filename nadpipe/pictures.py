"""Label maps and overlays as pictures; masks as arrays."""

import colorsys

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageDraw, ImageFont

from nadpipe.errors import NadpipeError


def class_colours(count: int) -> UInt8[np.ndarray, "classes 3"]:
    """Colours of classes 0, 1, …: hues a golden angle apart, so that neighbours differ, in four shades by turns."""
    shades = ((0.85, 1.0), (0.55, 0.85), (1.0, 0.65), (0.35, 1.0))
    hsv = [(at * 0.618034 % 1, *shades[at // 5 % len(shades)]) for at in range(count)]
    rgb = np.array([colorsys.hsv_to_rgb(*colour) for colour in hsv])
    return (rgb * 255).round().astype(np.uint8)


def indexed_image(classes: Integer[np.ndarray, "height width"]) -> Image.Image:
    """A label map as an indexed picture whose pixel values are the classes (at most 256 of them)."""
    image = Image.fromarray(classes.astype(np.uint8)).convert("P")
    image.putdata(classes.astype(np.uint8).ravel())
    image.putpalette(class_colours(256).ravel().tolist())
    return image


def read_mask(path: str, size: tuple[int, int], classes: int, ignore: int) -> Integer[np.ndarray, "height width"]:
    """A label map of the given (height, width): positions of classes, or `ignore`.

    Raises NadpipeError for a file that is no single-channel picture of that size, or holds another value.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P", "1", "I", "I;16"):
                raise NadpipeError(f"{path}: mask has mode {image.mode}; save label maps with one channel of class positions")
            mask = np.asarray(image).astype(np.int64)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise NadpipeError(f"{path}: not a readable mask ({error})") from None
    if mask.shape != size:
        raise NadpipeError(f"{path}: mask is {mask.shape[1]} × {mask.shape[0]}, its image {size[1]} × {size[0]} pixels")
    strange = np.setdiff1d(mask, [*range(classes), ignore])
    if len(strange):
        raise NadpipeError(
            f"{path}: mask holds {', '.join(map(str, strange[:5]))}; allowed are 0 to {classes - 1} and {ignore} (ignored)"
        )
    return mask


def overlay(
    image: Image.Image, classes: Integer[np.ndarray, "height width"], count: int, strength: float = 0.55
) -> Image.Image:
    """The image with each pixel tinted in the colour of its class; values beyond the classes stay as they are."""
    colours = class_colours(256).astype(np.float32)
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    tinted = pixels * (1 - strength) + colours[np.clip(classes, 0, 255)] * strength
    return Image.fromarray(np.where((classes < count)[..., None], tinted, pixels).astype(np.uint8))


def panel(pictures: dict[str, Image.Image], legend: dict[str, tuple[int, int, int]]) -> Image.Image:
    """Titled pictures of one size side by side, over a legend of colours and names."""
    font = ImageFont.load_default(size=13)
    width, height = next(iter(pictures.values())).size
    columns = len(pictures)
    row_length = max(1, columns * width // 90)
    rows = -(-len(legend) // row_length)
    sheet = Image.new("RGB", (columns * (width + 4), height + 22 + 20 * rows + 4), "white")
    pen = ImageDraw.Draw(sheet)
    for at, (title, picture) in enumerate(pictures.items()):
        pen.text((at * (width + 4) + 2, 3), title, fill="black", font=font)
        sheet.paste(picture, (at * (width + 4), 22))
    for at, (name, colour) in enumerate(legend.items()):
        x, y = at % row_length * 90 + 2, height + 26 + at // row_length * 20
        pen.rectangle((x, y, x + 14, y + 14), fill=colour)
        pen.text((x + 19, y), name, fill="black", font=font)
    return sheet
