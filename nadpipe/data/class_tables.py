"""The table of a data set's classes, as an artifact."""

import itertools
from pathlib import Path

import pandas as pd

from nadpipe.circuit.label_values import IGNORED
from nadpipe.data.classes import Classes
from nadpipe.store.kinds.images import CLASSES
from nadpipe.store.stamp import Stamp
from nadpipe.store.tables import read_parquet, write_parquet


def write_classes(path: Path, classes: Classes, dataset: str, stamp: Stamp) -> None:
    """Write one row per class, one row for ignored values, and one row for each further ignored colour."""
    rows: list[tuple] = [
        *zip(range(len(classes.titles)), classes.titles, classes.names, classes.values, classes.colours, strict=True)
    ]
    ignored = itertools.zip_longest((classes.ignored_values,), classes.ignored_colours, fillvalue=())
    rows += [(IGNORED, None, (), values, colour) for values, colour in ignored]
    table = pd.DataFrame(rows, columns=["class", "title", "names", "values", "colour"])
    write_parquet(path, CLASSES, table.assign(dataset=dataset), stamp)


def read_classes(path: Path) -> tuple[str, Classes]:
    """Read a data set's name and its classes, as written by `nadpipe index-classes`."""
    table = read_parquet(path, CLASSES)
    for name in ("names", "values", "colour"):
        table[name] = [tuple(row.tolist()) for row in table[name]]
    rows, ignored = table[table["class"] != IGNORED], table[table["class"] == IGNORED]
    classes = Classes(
        titles=tuple(rows["title"]),
        names=tuple(rows["names"]),
        values=tuple(rows["values"]),
        colours=tuple(rows["colour"]),
        ignored_values=tuple(itertools.chain(*ignored["values"])),
        ignored_colours=tuple(colour for colour in ignored["colour"] if colour),
    )
    return table["dataset"].iloc[0], classes
