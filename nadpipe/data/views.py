"""Readers of image files, and the crops (views) of an image that a model sees."""

import contextlib
import dataclasses
import hashlib
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from nadpipe.errors import NadpipeError, printable

_ORIENTATION = 0x0112  # EXIF tag
_QUARTER_TURNS = (5, 6, 7, 8)  # values of the tag that swap height and width
_LARGEST_ASPECT = 64  # long side over short side
OPENCV = "opencv"  # filter of `crop_pixels`: bilinear without antialiasing, as cv2 resizes


@dataclasses.dataclass(frozen=True)
class Box:
    """A square crop of `crop_size` pixels from an image resized to (resized_height, resized_width)."""

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


def centre_box(height: int, width: int, size: int) -> list[Box]:
    """Return the single crop of the model's own preprocessing: scale the short side to `size`, crop the centre."""
    rows, columns = resized_size(height, width, size)
    return [Box(round((rows - size) / 2), round((columns - size) / 2), size, rows, columns)]


def sliding_boxes(height: int, width: int, short_side: int, crop: int, stride: float, nearest: bool = False) -> list[Box]:
    """Return overlapping crops that cover an image whose short side is scaled to `short_side`, row by row.

    crop: side of a crop in pixels, at most `short_side`. stride: distance between crops as a share of their side. The last
    crop of each row and column is shifted back to the border. nearest: rounding of the resized size, as in `resized_size`.
    """
    rows, columns = resized_size(height, width, short_side, nearest)
    step = max(1, round(crop * stride))

    def starts(length: int) -> list[int]:
        count = math.ceil((length - crop) / step) + 1
        return [min(index * step, length - crop) for index in range(count)]

    return [Box(top, left, crop, rows, columns) for top in starts(rows) for left in starts(columns)]


def crop_pixels(image: Image.Image, boxes: list[Box], resize_filter: str) -> UInt8[np.ndarray, "view row column 3"]:
    """Return the pixels of each box, 0 to 255. The image is resized once, so all boxes must have the same resized size.

    resize_filter: a filter of Pillow, such as bicubic, or `OPENCV`.
    """
    size = (boxes[0].resized_width, boxes[0].resized_height)
    if image.size == size:
        resized = np.asarray(image)
    elif resize_filter == OPENCV:
        resized = _resize_bilinear(np.asarray(image), (size[1], size[0]))
    else:
        resized = np.asarray(image.resize(size, Image.Resampling[resize_filter.upper()]))
    return np.stack(
        [resized[box.crop_top : box.crop_top + box.crop_size, box.crop_left : box.crop_left + box.crop_size] for box in boxes]
    )


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
    with _one_line_errors(path), Image.open(io.BytesIO(read_listed(path, sha256))) as image:
        return _to_rgb(ImageOps.exif_transpose(image))


def examine_image(path: str) -> ImageInfo:
    """Decode an image completely and return its size and checksum.

    Raises NadpipeError if `read_image` cannot read the file, if it has several frames, or if it is over 64 times longer than
    wide: scaled to the model's size, such an image would not fit into memory.
    """
    with _one_line_errors(path):
        content = Path(path).read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # an MPO is one photograph with previews
            if frames > 1:
                raise ValueError(f"it has {frames} frames, save the one to use")
            height, width = _upright_size(image)
            if max(height, width) > _LARGEST_ASPECT * min(height, width):
                raise ValueError(f"{width} × {height} is longer than {_LARGEST_ASPECT} times its short side, crop it")
            _to_rgb(image)
    return ImageInfo(height, width, hashlib.sha256(content).hexdigest())


def examine_mask(path: str) -> ImageInfo:
    """Return the checksum of a mask and its size, from the header. Raises NadpipeError if the file is not a readable image."""
    with _one_line_errors(path):
        content = Path(path).read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            height, width = _upright_size(image)
    return ImageInfo(height, width, hashlib.sha256(content).hexdigest())


def read_listed(path: str, sha256: str | None) -> bytes:
    """Read a file of a data set. Raises NadpipeError if its checksum is not the one in the manifest, if that is given."""
    content = Path(path).read_bytes()
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise NadpipeError(
            f"{printable(path)}: has changed since the data set was listed; restore the file, or list the data set again with "
            "snakemake --forcerun index_images"
        )
    return content


def orient_like(mask: Image.Image, photograph: str, sha256: str | None = None) -> Image.Image:
    """Return a mask drawn on the stored photograph, turned by the photograph's EXIF orientation. sha256: as in `read_image`."""
    with Image.open(io.BytesIO(read_listed(photograph, sha256))) as image:
        orientation = image.getexif().get(_ORIENTATION, 1)
    mask.getexif()[_ORIENTATION] = orientation
    return ImageOps.exif_transpose(mask)


@contextlib.contextmanager
def _one_line_errors(path: str) -> Iterator[None]:
    """Turn every error in reading an image into a NadpipeError of one line."""
    try:
        yield
    except NadpipeError:
        raise
    except FileNotFoundError:
        raise NadpipeError(f"{printable(path)}: no such image; correct its path") from None
    except Exception as error:  # on damaged files, decoders raise errors of many types
        reason = " ".join(str(error).split()).replace(path, "the file") or type(error).__name__
        reason = re.sub(r"<[\w.]+ object at 0x[0-9a-f]+>", "its content", reason)  # an address differs between runs
        raise NadpipeError(
            f"{printable(path)}: not a readable image ({reason}); replace the file or remove it from the data set"
        ) from None


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    quarter_turn = image.getexif().get(_ORIENTATION, 1) in _QUARTER_TURNS
    return (width, height) if quarter_turn else (height, width)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB as open_clip does, but scale 16-bit greyscale to its whole range, which Pillow would clip."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its pixels have 32 bits, save it with 8 or 16")
        return Image.fromarray((values.astype(np.float32) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are not whole numbers, save it with 8 or 16 bits")
    return image.convert("RGB")
