"""Where an image is looked at: the resized size and the square crops in it, and the pixels of a crop."""

import contextlib
import dataclasses
import hashlib
import io
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from nadpipe.errors import NadpipeError

_ORIENTATION = 0x0112  # EXIF tag
_LONGEST = 64  # times the short side


@dataclasses.dataclass(frozen=True)
class Box:
    """One square crop of `crop_size` pixels in an image that was resized to (resized_height, resized_width)."""

    crop_top: int
    crop_left: int
    crop_size: int
    resized_height: int
    resized_width: int


def resized_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width after scaling the short side to `short_side`; the long side is rounded down, as torchvision does."""
    if height <= width:
        return short_side, int(short_side * width / height)
    return int(short_side * height / width), short_side


def centre_box(height: int, width: int, size: int) -> list[Box]:
    """The one crop of the model's own preprocessing: short side to `size`, then the centre."""
    rows, columns = resized_size(height, width, size)
    return [Box(round((rows - size) / 2), round((columns - size) / 2), size, rows, columns)]


def sliding_boxes(height: int, width: int, short_side: int, crop: int, stride: float) -> list[Box]:
    """Crops of `crop` pixels, `stride` of their side apart, row by row, in the image with its short side scaled to
    `short_side`; the last of each row and column is shifted back to the border. A crop is at most as long as the short side.
    """
    rows, columns = resized_size(height, width, short_side)
    step = max(1, round(crop * stride))

    def starts(length: int) -> list[int]:
        count = math.ceil((length - crop) / step) + 1
        return [min(at * step, length - crop) for at in range(count)]

    return [Box(top, left, crop, rows, columns) for top in starts(rows) for left in starts(columns)]


@dataclasses.dataclass(frozen=True)
class Examined:
    """What is known of an image file that was read to its end: size upright, and checksum."""

    height: int
    width: int
    sha256: str


def read_image(path: str) -> Image.Image:
    """The image as RGB, turned upright by its EXIF orientation. Raises NadpipeError for a file that is no readable image."""
    with _decoding(path), Image.open(path) as image:
        return _rgb(ImageOps.exif_transpose(image))


def examine_image(path: str) -> Examined:
    """Read an image to its end. Raises NadpipeError for what `read_image` cannot read, and for what it should not: several
    frames, and a side so long that the image would not fit the memory once its short side has the model's size."""
    with _decoding(path):
        content = Path(path).read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # an MPO is a photograph with previews behind it
                raise ValueError(f"it has {image.n_frames} frames, save the one that is meant")
            height, width = _upright_size(image)
            if max(height, width) > _LONGEST * min(height, width):
                raise ValueError(f"{width} × {height} is longer than {_LONGEST} times its short side, cut it")
            _rgb(image)
    return Examined(height, width, hashlib.sha256(content).hexdigest())


def image_size(path: str) -> tuple[int, int]:
    """Height and width of the upright image, from its header."""
    with _decoding(path), Image.open(path) as image:
        return _upright_size(image)


@contextlib.contextmanager
def _decoding(path: str) -> Iterator[None]:
    """Whatever goes wrong in reading an image, as one line."""
    try:
        yield
    except FileNotFoundError:
        raise NadpipeError(f"{shown(path)}: no such image; correct the path in the table that lists it") from None
    except Exception as error:  # decoders raise whatever they stumble over in a damaged file
        reason = str(error).replace("\n", " ").replace(path, "the file") or type(error).__name__
        told = f"{shown(path)}: not a readable image ({reason}); replace the file or take it out of the data set"
        raise NadpipeError(told) from None


def shown(path: str) -> str:
    """A path as one line of a message."""
    return path if path.isprintable() else repr(path)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)  # a quarter turn
    return (width, height) if turned else (height, width)


def _rgb(image: Image.Image) -> Image.Image:
    """As open_clip has it, and 16-bit greyscale over its whole range, which Pillow alone would clip."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its pixels have 32 bits, save it with 8 or 16")
        return Image.fromarray((values.astype(np.float32) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are not whole numbers, save it with 8 or 16 bits")
    return image.convert("RGB")


def turn_like(mask: Image.Image, photograph: str) -> Image.Image:
    """A mask of a photograph as it is stored, turned as the photograph's EXIF orientation turns that."""
    with Image.open(photograph) as image:
        orientation = image.getexif().get(_ORIENTATION, 1)
    mask.getexif()[_ORIENTATION] = orientation
    return ImageOps.exif_transpose(mask)


def crop_pixels(image: Image.Image, boxes: list[Box], interpolation: str) -> UInt8[np.ndarray, "view row column 3"]:
    """Pixels of each box, 0 to 255; the image is resized once, all boxes share its resized size."""
    method = Image.Resampling[interpolation.upper()]
    size = (boxes[0].resized_width, boxes[0].resized_height)
    resized = np.asarray(image.resize(size, method) if image.size != size else image)
    return np.stack(
        [resized[box.crop_top : box.crop_top + box.crop_size, box.crop_left : box.crop_left + box.crop_size] for box in boxes]
    )
