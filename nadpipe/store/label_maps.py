"""Label maps on disk: one indexed PNG per image and method, whose pixel values are the classes."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Integer, UInt8
from PIL import Image

from nadpipe.errors import NadpipeError
from nadpipe.store.png import read_png

Colour = tuple[int, int, int]

_COMPRESSION = 3  # level of PNG compression that takes a third of the time of Pillow's default


def class_colours(count: int) -> UInt8[np.ndarray, "class 3"]:
    """Return colours for classes 0 to count - 1.

    Hues are a golden angle apart, so that neighbouring classes differ. The shade changes every five classes.
    """
    shades = ((0.85, 1.0), (0.55, 0.85), (1.0, 0.65), (0.35, 1.0))
    hsv = [(index * 0.618034 % 1, *shades[index // 5 % len(shades)]) for index in range(count)]
    rgb = np.array([colorsys.hsv_to_rgb(*colour) for colour in hsv])
    return (rgb * 255).round().astype(np.uint8)


def indexed_image(classes: Integer[np.ndarray, "height width"], colours: Sequence[Colour] | None = None) -> Image.Image:
    """Return a label map as an indexed image in the given or the default colours. Classes must be 0 to 255."""
    pixels = np.ascontiguousarray(classes, dtype=np.uint8)
    image = Image.frombytes("P", (pixels.shape[1], pixels.shape[0]), pixels.tobytes())
    palette = class_colours(256).tolist() if colours is None else colours
    image.putpalette([channel for colour in palette for channel in colour])
    return image


def write_label_map(
    folder: Path, method: str, image_id: int, classes: Integer[np.ndarray, "height width"], colours: Sequence[Colour]
) -> None:
    """Write the label map of one image as <folder>/<method>/<image_id>.png. The method's folder must exist."""
    indexed_image(classes, colours).save(folder / _relative_path(method, image_id), compress_level=_COMPRESSION)


def read_label_map(folders: Sequence[Path], method: str, image_id: int) -> Int64[np.ndarray, "height width"]:
    """Return the label map of one image from the shard folder that contains it. Raises NadpipeError if no folder does or
    if the map is damaged.
    """
    relative = _relative_path(method, image_id)
    path = next((folder / relative for folder in folders if (folder / relative).is_file()), None)
    if path is None:
        raise NadpipeError(f"{relative}: label map is in none of the given folders; run segment-images for its shard")
    return np.asarray(read_png(path)).astype(np.int64)


def _relative_path(method: str, image_id: int) -> Path:
    return Path(method) / f"{image_id:06d}.png"
