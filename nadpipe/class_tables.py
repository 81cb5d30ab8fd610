"""Classes as an artifact: the table that every stage of a data set reads its classes from."""

import itertools
from pathlib import Path

import pandas as pd

from nadpipe.artifacts import Stamp, read_parquet, write_parquet
from nadpipe.classes import IGNORED, Classes


def write_classes(path: Path, classes: Classes, dataset: str, stamp: Stamp) -> None:
    """The table of a data set's classes, with one more row for what does not count, and one for each further colour of it."""
    rows = [*zip(range(len(classes.titles)), classes.titles, classes.names, classes.values, classes.colours, strict=True)]
    ignored = itertools.zip_longest((classes.ignored_values,), classes.ignored_colours, fillvalue=())
    rows += [(IGNORED, None, (), values, colour) for values, colour in ignored]
    table = pd.DataFrame(rows, columns=["class", "title", "names", "values", "colour"])
    write_parquet(path, "classes", table.assign(dataset=dataset), stamp)


def read_classes(path: Path) -> tuple[str, Classes]:
    """A data set's name and classes as `nadpipe index-classes` writes them."""
    table = read_parquet(path, "classes")
    for name in ("names", "values", "colour"):
        table[name] = [tuple(row.tolist()) for row in table[name]]
    own, ignored = table[table["class"] != IGNORED], table[table["class"] == IGNORED]
    classes = Classes(
        titles=tuple(own["title"]),
        names=tuple(own["names"]),
        values=tuple(own["values"]),
        colours=tuple(own["colour"]),
        ignored_values=tuple(itertools.chain(*ignored["values"])),
        ignored_colours=tuple(colour for colour in ignored["colour"] if colour),
    )
    return table["dataset"].iloc[0], classes
