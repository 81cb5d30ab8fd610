"""The classes of a data set: their names, mask values and colours.

The config check uses `parse_names`, so this module must import quickly.
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from nadpipe.data.text_files import read_lines, read_rows, text_problem
from nadpipe.errors import NadpipeError

Colour = tuple[int, int, int]
MAX_CLASSES = 256  # limit of an indexed PNG
_PUBLISHED = Path(__file__).parent / "published"
_CHANNELS = ("red", "green", "blue")
_KIND = "class file"  # for messages
_LARGEST = {"values": 2**31 - 1} | dict.fromkeys(_CHANNELS, 255)  # of a number in a class file, by column


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a data set, in order.

    Raises NadpipeError for fewer than 2 or more than 256 classes, or if two classes share a title, a name or a mask value.
    """

    titles: tuple[str, ...]  # names in tables and legends
    names: tuple[tuple[str, ...], ...]  # texts of each class; the best one counts
    values: tuple[tuple[int, ...], ...]  # mask values of each class
    colours: tuple[Colour, ...]  # in pictures, and in RGB-coded masks
    ignored_values: tuple[int, ...] = ()  # mask values that are not evaluated
    ignored_colours: tuple[Colour, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= len(self.titles) <= MAX_CLASSES:
            raise NadpipeError(f"2 to {MAX_CLASSES} classes, not {len(self.titles)}; correct the list of classes")
        for description, values in (
            ("class is called", self.titles),
            ("class has the name", itertools.chain(*self.names)),
            ("class has the mask value", itertools.chain(*self.values, self.ignored_values)),
        ):
            repeated = first_repeated(list(values))
            if repeated is not None:
                raise NadpipeError(f"more than one {description} {repeated}; make them distinct")


def first_repeated(values: list) -> object | None:
    """Return the first value that occurs earlier in the list, or None."""
    return next((value for index, value in enumerate(values) if value in values[:index]), None)


def parse_names(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the title and the names of a class written as `name, synonym, …`, or as `title: name, …` if the title is no name.

    Raises NadpipeError if the text has no name.
    """
    title, colon, rest = text.partition(":")
    names = tuple(dict.fromkeys(name.strip() for name in (rest if colon else text).split(",") if name.strip()))
    if not names or (colon and not title.strip()):
        raise NadpipeError(f"{text!r}: no name of a class; write `name, synonym` or `title: name, synonym`")
    return title.strip() if colon else names[0], names


def make_classes(texts: Sequence[str], ignored: int = 255) -> Classes:
    """Return classes from texts for `parse_names`. The mask value of a class is its position; `ignored` is not evaluated."""
    parsed = [parse_names(text) for text in texts]
    return Classes(
        titles=tuple(title for title, _ in parsed),
        names=tuple(names for _, names in parsed),
        values=tuple((index,) for index in range(len(texts))),
        colours=_default_colours(len(texts)),
        ignored_values=(ignored,) if ignored >= len(texts) else (),
    )


def rename(classes: Classes, renamed: Classes, key: str) -> Classes:
    """Return `classes` with the names of `renamed`. Raises NadpipeError if their numbers differ. key: start of the message."""
    if len(renamed.names) != len(classes.names):
        raise NadpipeError(
            f"{key}: {len(renamed.names)} classes are given, the data set has {len(classes.names)}; name all of them"
        )
    return dataclasses.replace(classes, names=renamed.names)


def reduce_zero_label(classes: Classes) -> Classes:
    """Return the classes with each mask value one higher, and mask value 0 ignored."""
    values = tuple(tuple(value + 1 for value in class_values) for class_values in classes.values)
    used = set(itertools.chain(*values))
    return dataclasses.replace(
        classes, values=values, ignored_values=(0, *(value for value in classes.ignored_values if value not in used))
    )


def without_first(classes: Classes) -> Classes:
    """Return the classes without the first one, whose pixels become ignored: VOC and Context without their background."""
    return Classes(
        titles=classes.titles[1:],
        names=classes.names[1:],
        values=classes.values[1:],
        colours=classes.colours[1:],
        ignored_values=(*classes.values[0], *classes.ignored_values),
        ignored_colours=(classes.colours[0], *classes.ignored_colours),
    )


def find_background(classes: Classes) -> int | None:
    """Return the index of the class titled background, or None."""
    return next((index for index, title in enumerate(classes.titles) if title == "background"), None)


def class_texts(classes: Classes, background_names: bool) -> tuple[list[int], list[str]]:
    """Return the texts of all classes, with the class index of each.

    background_names: include the names of the background, which then compete with those of the other classes.
    """
    excluded = None if background_names else find_background(classes)
    pairs = [(index, name) for index, names in enumerate(classes.names) for name in names if index != excluded]
    return [index for index, _ in pairs], [name for _, name in pairs]


def published_file(name: str) -> Path:
    """Return the path of a class file in the package."""
    return _PUBLISHED / f"{name}.csv"


def read_class_file(path: Path, values: str = "values") -> Classes:
    """Read the classes of a file.

    .csv: one row per class with `names` (separated by commas), and optionally `title` (default: the first name), `values`
    (mask values separated by spaces; default: the position) and `red`, `green`, `blue`. Rows without names list what is
    ignored. .txt: one class per line as in `parse_names`; the mask value is the position, 255 is ignored.
    values: column with the mask values. Raises NadpipeError if the file is invalid; the message names the file and the row.
    """
    if path.suffix == ".csv":
        columns, *rows = read_rows(path, _KIND)
    else:
        lines = read_lines(path, _KIND)
    try:
        if path.suffix == ".csv":
            return _from_rows(columns, [dict(zip(columns, row, strict=True)) for row in rows], values)
        return make_classes(lines)
    except NadpipeError as error:
        raise NadpipeError(f"{path}: {error}") from None


def _from_rows(columns: list, rows: list[dict], values: str) -> Classes:
    if "names" not in columns:
        raise NadpipeError(f"no column `names` (columns: {', '.join(columns)}); add it")
    numbered = list(enumerate(rows, start=2))  # as a text editor counts lines
    listed = [(line, row) for line, row in numbered if row["names"]]
    ignored = [(line, row) for line, row in numbered if not row["names"]]
    for line, row in listed:
        problem = text_problem(row["names"]) or text_problem(row.get("title", ""))
        if problem is not None:
            raise NadpipeError(f"row {line}: {problem}")
    parsed = [parse_names(row["names"]) for _, row in listed]
    titles = [row.get("title") or title for (_, row), (title, _) in zip(listed, parsed, strict=True)]
    mask_values = [_numbers(line, row, [values]) if values in columns else (index,) for index, (line, row) in enumerate(listed)]
    colours = [_numbers(line, row, _CHANNELS) for line, row in listed] if "red" in columns else []
    ignored_values = [_numbers(line, row, [values]) for line, row in ignored if values in columns]
    ignored_colours = [_numbers(line, row, _CHANNELS) for line, row in ignored if "red" in columns]
    if any(len(colour) != len(_CHANNELS) for colour in colours):
        raise NadpipeError("some classes have no colour in the columns red, green and blue; give all classes a colour, or none")
    return Classes(
        titles=tuple(titles),
        names=tuple(names for _, names in parsed),
        values=tuple(mask_values),
        colours=tuple((red, green, blue) for red, green, blue in colours) or _default_colours(len(listed)),
        ignored_values=tuple(itertools.chain(*ignored_values)),
        ignored_colours=tuple((colour[0], colour[1], colour[2]) for colour in ignored_colours if len(colour) == 3),
    )


def _numbers(line: int, row: dict, columns: Sequence[str]) -> tuple[int, ...]:
    """Return the whole numbers in the given columns of a row. Raises NadpipeError for any other text."""
    numbers = []
    for column in columns:
        largest = _LARGEST.get(column, _LARGEST["values"])
        for word in row.get(column, "no column").split():
            if not re.fullmatch("[0-9]{1,10}", word) or int(word) > largest:
                raise NadpipeError(
                    f"row {line}: {', '.join(columns)} must hold whole numbers up to {largest} ({word[:20]!r}); correct them"
                )
            numbers.append(int(word))
    return tuple(numbers)


def _default_colours(count: int) -> tuple[Colour, ...]:
    from nadpipe.store.label_maps import class_colours  # needs numpy, which the config check must not import

    return tuple((red, green, blue) for red, green, blue in class_colours(count).tolist())
