"""Where an image is looked at: the resized size and the square crops in it, and the pixels of a crop."""

import dataclasses
import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from nadpipe.errors import NadpipeError

_ORIENTATION = 0x0112  # EXIF tag


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


def read_image(path: str) -> Image.Image:
    """The image as RGB, turned upright by its EXIF orientation. Raises NadpipeError for a file that is no readable image."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise NadpipeError(f"{path}: no such image; correct the path in the table that lists it") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise NadpipeError(f"{path}: not a readable image ({error}); replace the file or take it out of the data set") from None


def image_size(path: str) -> tuple[int, int]:
    """Height and width of the upright image, from its header."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)  # a quarter turn
            return (width, height) if turned else (height, width)
    except FileNotFoundError:
        raise NadpipeError(f"{path}: no such image; correct the path in the table that lists it") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise NadpipeError(f"{path}: not a readable image ({error}); replace the file or take it out of the data set") from None


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
