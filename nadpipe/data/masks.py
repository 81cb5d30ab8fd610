"""Readers of masks, which return arrays of classes."""

import numpy as np
from jaxtyping import Int

from nadpipe.circuit.label_values import IGNORED
from nadpipe.data.classes import Classes, Colour, first_repeated
from nadpipe.data.views import opened_image, orient_like
from nadpipe.errors import NadpipeError

Checksums = tuple[str | None, str | None]

_DIRECT = 2**16  # values below this are looked up in an array
_BLOCK = 2**22  # pixels that are looked up at once
_LISTED = 5  # largest number of invalid values in a message


def read_mask(
    path: str, photograph: str, size: tuple[int, int], classes: Classes, checksums: Checksums = (None, None)
) -> Int[np.ndarray, "height width"]:
    """Read the class of each pixel from the mask of an upright image of size (height, width), IGNORED if not evaluated.

    Masks with one channel (indexed, grey, 8 to 32 bits) are read by value, RGB-coded masks by colour. A mask that was drawn on
    the stored photograph, a quarter turn from upright, is turned by the photograph's orientation. checksums: those of the mask
    and of the photograph in the manifest. Raises NadpipeError if the file is not such a mask, has another size or checksum, or
    contains values or colours without a class.
    """
    with opened_image(path, "mask", checksums[0]) as image:
        mode = image.mode
        mask = np.asarray(image if image.size == size[::-1] else orient_like(image, photograph, checksums[1]))
    if mask.shape[:2] != size:
        sizes = f"mask is {mask.shape[1]} × {mask.shape[0]}, its image {size[1]} × {size[0]} pixels"
        raise NadpipeError(f"{path}: {sizes}; use a mask of the image's size")
    result = np.empty(size, np.int64)
    for start in range(0, size[0], max(1, _BLOCK // size[1])):  # in blocks of rows, to save memory
        rows = slice(start, start + max(1, _BLOCK // size[1]))
        if mode in ("RGB", "RGBA"):
            result[rows] = _by_colour(path, mask[rows, :, :3].astype(np.int64) @ (1 << 16, 1 << 8, 1), classes)
        elif mode in ("L", "P", "1", "I", "I;16"):
            result[rows] = _by_value(path, mask[rows].astype(np.int64), classes)
        else:
            raise NadpipeError(f"{path}: mask has mode {mode}; save label maps with one channel of whole numbers, or as RGB")
    return result


def _by_value(path: str, mask: Int[np.ndarray, "height width"], classes: Classes) -> Int[np.ndarray, "height width"]:
    class_of_value = {value: index for index, values in enumerate(classes.values) for value in values}
    class_of_value |= dict.fromkeys(classes.ignored_values, IGNORED)
    looked_up = _look_up(mask, class_of_value)
    if looked_up is None:
        invalid = [str(value) for value in np.unique(mask).tolist() if value not in class_of_value]
        raise NadpipeError(f"{path}: mask holds {', '.join(invalid[:_LISTED])}; allowed are {_ranges(sorted(class_of_value))}")
    return looked_up


def _by_colour(path: str, mask: Int[np.ndarray, "height width"], classes: Classes) -> Int[np.ndarray, "height width"]:
    repeated = first_repeated([*classes.colours, *classes.ignored_colours])
    if repeated is not None:
        raise NadpipeError(
            f"{path}: mask is RGB-coded, but the colour {repeated} stands for more than one class; give each class its own"
        )
    class_of_colour = dict.fromkeys(map(_packed, classes.ignored_colours), IGNORED)
    class_of_colour |= {_packed(colour): index for index, colour in enumerate(classes.colours)}
    looked_up = _look_up(mask, class_of_colour)
    if looked_up is None:
        invalid = [value for value in np.unique(mask).tolist() if value not in class_of_colour]
        colours = ", ".join(str((value >> 16, value >> 8 & 255, value & 255)) for value in invalid[:_LISTED])
        raise NadpipeError(f"{path}: RGB-coded mask holds the colours {colours}, which no class has; add them to a class")
    return looked_up


def _packed(colour: Colour) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _look_up(mask: Int[np.ndarray, "height width"], table: dict[int, int]) -> Int[np.ndarray, "height width"] | None:
    """Return the table's entry for each value, or None if a value has no entry."""
    keys = np.array(sorted(table))
    entries = np.array([table[key] for key in keys.tolist()])
    if keys[-1] < _DIRECT:  # several times faster than a search
        missing = IGNORED - 1
        direct = np.full(keys[-1] + 2, missing)
        direct[keys] = entries
        result = direct[mask.clip(-1, keys[-1] + 1)]
        return None if (result == missing).any() else result
    position = np.searchsorted(keys, mask).clip(max=len(keys) - 1)
    return entries[position] if (keys[position] == mask).all() else None


def _ranges(values: list[int]) -> str:
    """Return sorted whole numbers in short form, such as `0 to 18, 255`."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
