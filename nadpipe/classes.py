"""What the values of masks mean: classes with their names, mask values and colours; and masks as arrays of classes."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int
from PIL import Image

from nadpipe.errors import NadpipeError
from nadpipe.pictures import class_colours
from nadpipe.views import turn_like

IGNORED = -1  # class of a pixel that does not count
MOST = 256  # classes that a label map as indexed PNG can hold
_PUBLISHED = Path(__file__).parent / "published"
_DIRECT = 2**16
_SHOWN = 5  # strange values that an error names

Colour = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a data set, in order. Raises NadpipeError where two of them cannot be told apart."""

    titles: tuple[str, ...]  # what tables and legends call each class
    names: tuple[tuple[str, ...], ...]  # the texts of each class; it takes the best of them
    values: tuple[tuple[int, ...], ...]  # the mask values that mean each class
    colours: tuple[Colour, ...]  # in pictures, and in RGB-coded masks
    ignored_values: tuple[int, ...] = ()  # mask values that do not count
    ignored_colours: tuple[Colour, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= len(self.titles) <= MOST:
            raise NadpipeError(f"2 to {MOST} classes, not {len(self.titles)}")
        for what, given in (
            ("class is called", self.titles),
            ("class has the name", itertools.chain(*self.names)),
            ("class has the mask value", itertools.chain(*self.values, self.ignored_values)),
        ):
            twice = _first_repeated(list(given))
            if twice is not None:
                raise NadpipeError(f"more than one {what} {twice}")


def _first_repeated(values: list) -> object | None:
    return next((value for at, value in enumerate(values) if value in values[:at]), None)


def parse_names(text: str) -> tuple[str, tuple[str, ...]]:
    """Title and names of a class written `name, synonym, …`, or `title: name, …` where the title is none of its names.

    Raises NadpipeError for a text without a name.
    """
    title, colon, rest = text.partition(":")
    names = tuple(dict.fromkeys(name.strip() for name in (rest if colon else text).split(",") if name.strip()))
    if not names or (colon and not title.strip()):
        raise NadpipeError(f"{text!r}: write the names of a class as `name, synonym` or `title: name, synonym`")
    return title.strip() if colon else names[0], names


def make_classes(given: Sequence[str], ignored: int = 255) -> Classes:
    """Classes as `parse_names` reads them whose mask values are their positions."""
    titles, names = zip(*map(parse_names, given), strict=True)
    values = tuple((at,) for at in range(len(given)))
    return Classes(titles, names, values, _generated(len(given)), (ignored,) if ignored >= len(given) else ())


def rename(classes: Classes, given: Classes, key: str) -> Classes:
    """The same titles, values and colours with other texts. Raises NadpipeError, naming `key`, for another number of them."""
    if len(given.names) != len(classes.names):
        raise NadpipeError(f"{key}: {len(given.names)} classes are given, the data set has {len(classes.names)}")
    return dataclasses.replace(classes, names=given.names)


def reduce_zero_label(classes: Classes) -> Classes:
    """Mask value 0 does not count, and value i + 1 is what i was."""
    values = tuple(tuple(value + 1 for value in of_class) for of_class in classes.values)
    taken = {value for of_class in values for value in of_class}
    return dataclasses.replace(
        classes, values=values, ignored_values=(0, *(value for value in classes.ignored_values if value not in taken))
    )


def without_first(classes: Classes) -> Classes:
    """The classes without the first, which does not count then: VOC and Context without their background."""
    return Classes(
        titles=classes.titles[1:],
        names=classes.names[1:],
        values=classes.values[1:],
        colours=classes.colours[1:],
        ignored_values=(*classes.values[0], *classes.ignored_values),
        ignored_colours=(classes.colours[0], *classes.ignored_colours),
    )


def find_background(classes: Classes) -> int | None:
    """The class that is called background, if there is one."""
    return next((at for at, title in enumerate(classes.titles) if title == "background"), None)


def class_texts(classes: Classes, background_names: bool) -> tuple[list[int], list[str]]:
    """The texts that stand for a data set's classes, with the class of each; without those of the background unless its names
    are to compete with the others."""
    left_out = None if background_names else find_background(classes)
    pairs = [(at, name) for at, names in enumerate(classes.names) for name in names if at != left_out]
    return [at for at, _ in pairs], [name for _, name in pairs]


def published_file(name: str) -> Path:
    """The package's own class file of that name."""
    return _PUBLISHED / f"{name}.csv"


def read_class_file(path: Path, values: str = "values") -> Classes:
    """The classes of a file.

    .csv: one row a class with `names` (separated by commas), and optionally `title` (else the first name), `values` (mask
    values separated by spaces; else the position) and `red`, `green`, `blue`; rows without names say what does not count.
    .txt: one class a line as `parse_names` reads it, mask value = position, 255 is ignored. values: column with the values.
    Raises NadpipeError that names the file, and the row where one is at fault.
    """
    try:
        if path.suffix == ".csv":
            return _from_table(pd.read_csv(path, dtype=str, keep_default_na=False), values)
        return make_classes([line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()])
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise NadpipeError(f"{path}: not a readable class file ({str(error).splitlines()[0]})") from None
    except NadpipeError as error:
        raise NadpipeError(f"{path}: {error}") from None


def _from_table(table: pd.DataFrame, values: str) -> Classes:
    if "names" not in table:
        raise NadpipeError(f"no column names; it has {', '.join(table.columns)}")
    own, ignored = table[table["names"] != ""], table[table["names"] == ""]
    parsed = [parse_names(text) for text in own["names"]]
    titles = own["title"].tolist() if "title" in own else [title for title, _ in parsed]
    found = [_numbers(own, at, [values]) for at in range(len(own))] if values in table else [(at,) for at in range(len(own))]
    colours = [_numbers(own, at, ["red", "green", "blue"]) for at in range(len(own))] if "red" in table else ()
    left_out = [_numbers(ignored, at, [values]) if values in table else () for at in range(len(ignored))]
    left_colours = [_numbers(ignored, at, ["red", "green", "blue"]) for at in range(len(ignored)) if "red" in table]
    if any(len(colour) != 3 for colour in colours):
        raise NadpipeError("columns red, green and blue: give all classes a colour, or none")
    return Classes(
        titles=tuple(titles),
        names=tuple(names for _, names in parsed),
        values=tuple(found),
        colours=tuple(colours) or _generated(len(own)),
        ignored_values=tuple(itertools.chain(*left_out)),
        ignored_colours=tuple(colour for colour in left_colours if len(colour) == 3),
    )


def _numbers(table: pd.DataFrame, row: int, columns: list[str]) -> tuple[int, ...]:
    """The whole numbers in some columns of a row."""
    try:
        return tuple(int(part) for column in columns for part in table.iloc[row][column].split())
    except (ValueError, KeyError) as error:
        raise NadpipeError(f"row {table.index[row] + 2}: {', '.join(columns)} must hold whole numbers ({error})") from None


def _generated(count: int) -> tuple[Colour, ...]:
    return tuple(tuple(colour) for colour in class_colours(count).tolist())


# ---------------------------------------------------------------------------------------------------------------- masks


def read_mask(path: str, photograph: str, size: tuple[int, int], classes: Classes) -> Int[np.ndarray, "height width"]:
    """The class of each pixel of the mask of an upright image of (height, width), IGNORED where it does not count.

    Masks with one channel (indexed, grey, 8 to 32 bits) are read by value, RGB-coded ones by colour. A mask that was made for
    the photograph as it is stored, a quarter turn from upright, is turned like it. Raises NadpipeError for a file that is no
    such picture, for another size, and for values or colours that no class has.
    """
    try:
        with Image.open(path) as image:
            mode, mask = image.mode, np.asarray(image if image.size == size[::-1] else turn_like(image, photograph))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise NadpipeError(f"{path}: not a readable mask ({error})") from None
    if mask.shape[:2] != size:
        raise NadpipeError(f"{path}: mask is {mask.shape[1]} × {mask.shape[0]}, its image {size[1]} × {size[0]} pixels")
    if mode in ("RGB", "RGBA"):
        return _by_colour(path, mask[..., :3].astype(np.int64) @ (1 << 16, 1 << 8, 1), classes)
    if mode in ("L", "P", "1", "I", "I;16"):
        return _by_value(path, mask.astype(np.int64), classes)
    raise NadpipeError(f"{path}: mask has mode {mode}; save label maps with one channel of whole numbers, or as RGB")


def _by_value(path: str, mask: Int[np.ndarray, "height width"], classes: Classes) -> Int[np.ndarray, "height width"]:
    of_value = {value: at for at, values in enumerate(classes.values) for value in values}
    of_value |= dict.fromkeys(classes.ignored_values, IGNORED)
    found = _look_up(mask, of_value)
    if found is None:
        strange = [str(value) for value in np.unique(mask).tolist() if value not in of_value]
        raise NadpipeError(f"{path}: mask holds {', '.join(strange[:_SHOWN])}; allowed are {_ranges(sorted(of_value))}")
    return found


def _by_colour(path: str, mask: Int[np.ndarray, "height width"], classes: Classes) -> Int[np.ndarray, "height width"]:
    twice = _first_repeated([*classes.colours, *classes.ignored_colours])
    if twice is not None:
        raise NadpipeError(
            f"{path}: mask is RGB-coded, but the colour {twice} stands for more than one class; give each its own"
        )
    coded = dict.fromkeys(map(_packed, classes.ignored_colours), IGNORED)
    coded |= {_packed(colour): at for at, colour in enumerate(classes.colours)}
    found = _look_up(mask, coded)
    if found is None:
        strange = [value for value in np.unique(mask).tolist() if value not in coded]
        shown = ", ".join(str((value >> 16, value >> 8 & 255, value & 255)) for value in strange[:_SHOWN])
        raise NadpipeError(f"{path}: RGB-coded mask holds the colours {shown}, which no class has")
    return found


def _packed(colour: Colour) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _look_up(mask: Int[np.ndarray, "height width"], table: dict[int, int]) -> Int[np.ndarray, "height width"] | None:
    """The table's entry of every value, or None when one has none."""
    keys = np.array(sorted(table))
    entries = np.array([table[key] for key in keys.tolist()])
    if keys[-1] < _DIRECT:  # values of 8 or 16 bits: several times faster than a search
        missing = IGNORED - 1
        direct = np.full(keys[-1] + 2, missing)
        direct[keys] = entries
        found = direct[mask.clip(-1, keys[-1] + 1)]
        return None if (found == missing).any() else found
    at = np.searchsorted(keys, mask).clip(max=len(keys) - 1)
    return entries[at] if (keys[at] == mask).all() else None


def _ranges(values: list[int]) -> str:
    """Whole numbers in short: 0 to 18, 255."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
