"""Readers of image files, and the crops (views) of an image that a model sees."""

import contextlib
import dataclasses
import hashlib
import io
import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from nadpipe.errors import NadpipeError, printable
from nadpipe.store.files import read_regular

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow's others can start programs, such as Ghostscript
LARGEST_FILE = 2**29  # bytes
LARGEST_IMAGE = 2**27  # pixels; decoding takes up to 8 bytes for each
_ORIENTATION = 0x0112  # EXIF tag
_QUARTER_TURNS = (5, 6, 7, 8)  # values of the tag that swap height and width
_LARGEST_ASPECT = 64  # long side over short side
OPENCV = "opencv"  # filter of `crop_pixels`: bilinear without antialiasing, as cv2 resizes


@dataclasses.dataclass(frozen=True)
class Box:
    """A square crop of `crop_size` pixels from an image resized to (resized_height, resized_width).

    A crop that is larger than the resized image starts at a negative top or left, and is padded.
    """

    crop_top: int
    crop_left: int
    crop_size: int
    resized_height: int
    resized_width: int


@dataclasses.dataclass(frozen=True)
class ImageInfo:
    """Upright size in pixels and checksum of an image file."""

    height: int
    width: int
    sha256: str


def resized_size(height: int, width: int, short_side: int, nearest: bool = False) -> tuple[int, int]:
    """Return height and width scaled to a short side of `short_side`.

    nearest: round the long side to the nearest pixel as in mmcv, not down as in torchvision.
    """
    half = 0.5 if nearest else 0
    if height <= width:
        return short_side, int(short_side * width / height + half)
    return int(short_side * height / width + half), short_side


def centre_box(
    height: int, width: int, size: int, resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
) -> list[Box]:
    """Return the single view of the model's own preprocessing, `size` × `size` pixels.

    resize_mode: shortest scales the short side to `size` and crops the centre. longest scales the long side to `size`, and the
    crop reaches beyond the image on both sides. squash scales both sides to `size`. Sizes and offsets are those of open_clip.
    """
    if resize_mode == "squash":
        return [Box(0, 0, size, size, size)]
    if resize_mode == "longest":
        ratio = max(height, width) / size
        rows, columns = (max(1, round(side / ratio)) for side in (height, width))
        return [Box(-((size - rows) // 2), -((size - columns) // 2), size, rows, columns)]
    rows, columns = resized_size(height, width, size)
    return [Box(round((rows - size) / 2), round((columns - size) / 2), size, rows, columns)]


def sliding_boxes(height: int, width: int, short_side: int, crop: int, stride: float, nearest: bool = False) -> list[Box]:
    """Return overlapping crops that cover an image whose short side is scaled to `short_side`, row by row.

    crop: side of a crop in pixels, at most `short_side`. stride: distance between crops as a share of their side. The last
    crop of each row and column is shifted back to the border. nearest: rounding of the resized size, as in `resized_size`.
    """
    rows, columns = resized_size(height, width, short_side, nearest)
    step = _step(crop, stride)

    def starts(length: int) -> list[int]:
        return [min(index * step, length - crop) for index in range(_count(length, crop, step))]

    return [Box(top, left, crop, rows, columns) for top in starts(rows) for left in starts(columns)]


def count_boxes(height: int, width: int, short_side: int, crop: int, stride: float, nearest: bool = False) -> int:
    """Return the number of crops that `sliding_boxes` returns for the same arguments."""
    step = _step(crop, stride)
    return math.prod(_count(length, crop, step) for length in resized_size(height, width, short_side, nearest))


def _step(crop: int, stride: float) -> int:
    return max(1, round(crop * stride))


def _count(length: int, crop: int, step: int) -> int:
    return math.ceil((length - crop) / step) + 1


def crop_pixels(
    image: Image.Image, boxes: list[Box], resize_filter: str, fill: int = 0
) -> UInt8[np.ndarray, "view row column 3"]:
    """Return the pixels of each box, 0 to 255. The image is resized once, so all boxes must have the same resized size.

    resize_filter: a filter of Pillow, such as bicubic, or `OPENCV`. fill: grey level outside the image.
    """
    size = (boxes[0].resized_width, boxes[0].resized_height)
    if image.size == size:
        resized = np.asarray(image)
    elif resize_filter == OPENCV:
        resized = _resize_bilinear(np.asarray(image), (size[1], size[0]))
    else:
        resized = np.asarray(image.resize(size, Image.Resampling[resize_filter.upper()]))
    return np.stack([_crop(resized, box, fill) for box in boxes])


def _crop(pixels: UInt8[np.ndarray, "row column channel"], box: Box, fill: int) -> UInt8[np.ndarray, "side side2 channel"]:
    """Return the pixels of a box, with a grey level outside the image."""
    top, left = max(0, box.crop_top), max(0, box.crop_left)
    inside = pixels[top : box.crop_top + box.crop_size, left : box.crop_left + box.crop_size]
    if inside.shape[:2] == (box.crop_size, box.crop_size):
        return inside
    cropped = np.full((box.crop_size, box.crop_size, pixels.shape[2]), fill, np.uint8)
    row, column = top - box.crop_top, left - box.crop_left
    cropped[row : row + inside.shape[0], column : column + inside.shape[1]] = inside
    return cropped


def _resize_bilinear(
    pixels: UInt8[np.ndarray, "row column channel"], size: tuple[int, int]
) -> UInt8[np.ndarray, "new_row new_column channel"]:
    """Resize to (height, width) as cv2's INTER_LINEAR: bilinear between pixel centres, without antialiasing, rounded.

    cv2 rounds its weights to 11 bits, so pixels can differ from its own by one grey level.
    """
    values = pixels.astype(np.float32)
    for axis, length in enumerate(size):
        last = values.shape[axis] - 1
        position = ((np.arange(length) + 0.5) * (last + 1) / length - 0.5).clip(0, last)
        before = position.astype(int)
        weight = np.expand_dims(position - before, [other for other in range(3) if other != axis]).astype(np.float32)
        first, second = (values.take(index, axis) for index in (before, (before + 1).clip(max=last)))
        values = first + weight * (second - first)
    return values.round().astype(np.uint8)


def read_image(path: str, sha256: str | None = None) -> Image.Image:
    """Read an image as RGB, upright by its EXIF orientation.

    sha256: checksum in the manifest, for an image that a manifest lists. Raises NadpipeError if the file is not a readable
    image or has another checksum.
    """
    with opened_image(path, sha256=sha256) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)


def examine_image(path: str) -> ImageInfo:
    """Decode an image completely and return its size and checksum.

    Raises NadpipeError if `read_image` cannot read the file, if it has several frames, or if it is over 64 times longer than
    wide: scaled to the model's size, such an image would not fit into memory.
    """
    content = read_regular(path, LARGEST_FILE, "image")
    with _one_line_errors(path), _decoded(content) as image:
        # Counting all frames of a large file takes minutes. An MPO is one photograph with previews.
        if image.format != "MPO" and getattr(image, "is_animated", False):
            raise ValueError("it has several frames, save the one to use")
        height, width = _upright_size(image)
        if max(height, width) > _LARGEST_ASPECT * min(height, width):
            raise ValueError(f"{width} × {height} is longer than {_LARGEST_ASPECT} times its short side, crop it")
        image.load()
        if image.mode != "RGB":
            to_rgb(image)
    return ImageInfo(height, width, hashlib.sha256(content).hexdigest())


def examine_mask(path: str) -> ImageInfo:
    """Return the checksum of a mask and its size, from the header. Raises NadpipeError if the file is not a readable image."""
    content = read_regular(path, LARGEST_FILE, "mask")
    with _one_line_errors(path, "mask"), _decoded(content) as image:
        height, width = _upright_size(image)
    return ImageInfo(height, width, hashlib.sha256(content).hexdigest())


def orient_like(mask: Image.Image, photograph: str, sha256: str | None = None) -> Image.Image:
    """Return a mask drawn on the stored photograph, turned by the photograph's EXIF orientation. sha256: as in `read_image`."""
    with opened_image(photograph, sha256=sha256) as image:
        orientation = image.getexif().get(_ORIENTATION, 1)
    mask.getexif()[_ORIENTATION] = orientation
    return ImageOps.exif_transpose(mask)


@contextlib.contextmanager
def opened_image(path: str, what: str = "image", sha256: str | None = None) -> Iterator[Image.Image]:
    """Yield an image file, open and not decoded. Every error in reading it becomes a NadpipeError of one line.

    what: kind of image, for messages. sha256: checksum in the manifest, for a file that a manifest lists. Raises NadpipeError
    if the path is not a regular file of at most `LARGEST_FILE` bytes, in one of `FORMATS`, with at most `LARGEST_IMAGE` pixels,
    or if the file has another checksum.
    """
    content = read_regular(path, LARGEST_FILE, what)
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise NadpipeError(
            f"{printable(path)}: has changed since the data set was listed; restore the file, or list the data set again with "
            "snakemake --forcerun index_images"
        )
    with _one_line_errors(path, what), _decoded(content) as image:
        yield image


@contextlib.contextmanager
def _decoded(content: bytes) -> Iterator[Image.Image]:
    """Yield the image in a file's content. Raises ValueError if it has too many pixels or another format."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"cannot identify its content as {', '.join(FORMATS)}") from None
    with image:
        width, height = image.size
        if width * height > LARGEST_IMAGE:
            raise ValueError(f"{width} × {height} pixels are more than {LARGEST_IMAGE}, reduce it")
        yield image


@contextlib.contextmanager
def _one_line_errors(path: str, what: str = "image") -> Iterator[None]:
    """Turn every error in reading an image into a NadpipeError of one line."""
    try:
        yield
    except NadpipeError:
        raise
    except Exception as error:  # on damaged files, decoders raise errors of many types
        reason = " ".join(str(error).split()).replace(path, "the file") or type(error).__name__
        reason = reason if reason.isprintable() else repr(reason)
        raise NadpipeError(
            f"{printable(path)}: not a readable {what} ({reason[:300]}); replace the file or remove it from the data set"
        ) from None


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    quarter_turn = image.getexif().get(_ORIENTATION, 1) in _QUARTER_TURNS
    return (width, height) if quarter_turn else (height, width)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB as open_clip does, but scale 16-bit greyscale to its whole range, which Pillow would clip."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its pixels have 32 bits, save it with 8 or 16")
        # the nearest of 256 levels in 16 bits, to save memory: value / 257, rounded
        levels = values.astype(np.uint16, copy=False)
        return Image.fromarray((levels // 257 + (levels % 257 > 128)).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are not whole numbers, save it with 8 or 16 bits")
    return image.convert("RGB")
