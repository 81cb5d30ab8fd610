"""A quick look at data sets on disk before the first job: what has changed, and which images, groups and columns there are.

The Snakefile imports this module at every start, so it imports nothing heavy.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from nadpipe.data.folders import walk_files
from nadpipe.data.text_files import read_rows
from nadpipe.errors import NadpipeError

_KIND = "CSV table in UTF-8"  # for messages
_BINARY = {"0", "1", "0.0", "1.0", "false", "true"}


@dataclasses.dataclass(frozen=True)
class TreeListing:
    """The images at any depth of a folder.

    images: their number. groups: the first folder below the path of each, labels: the last one, without repetition. outside:
    an image that is in no folder, or None.
    """

    images: int
    groups: frozenset[str]
    labels: frozenset[str]
    outside: str | None


def list_tree(folder: Path, suffixes: tuple[str, ...]) -> TreeListing:
    """Return the images with one of the suffixes, in any case, below a folder. No file is opened.

    Raises NadpipeError as `walk_files` does.
    """
    images = [name.split("/") for name, _ in walk_files(folder) if name.lower().endswith(suffixes)]
    return TreeListing(
        images=len(images),
        groups=frozenset(folders[0] for *folders, _ in images if folders),
        labels=frozenset(folders[-1] for *folders, _ in images if folders),
        outside=min((name for *folders, name in images if not folders), default=None),
    )


def folder_fingerprint(folder: Path) -> str:
    """Return a hash of the relative paths, sizes and times of all files at any depth of a folder.

    It changes if a file is added, changed, renamed or removed. No file is opened. Raises NadpipeError as `walk_files`
    does.
    """
    return _digest(_state(name, entry.stat) for name, entry in walk_files(folder))


def table_fingerprint(table: Path, columns: Sequence[str]) -> str:
    """Return a hash of the sizes and times of the files that some columns of a table name, relative to its folder.

    It changes if a file is changed, removed or appears. No file but the table is opened. Raises NadpipeError as `read_columns`.
    """
    names = {name for column in read_columns(table, columns) for name in column if name}
    paths = {name: name if name.startswith("/") else f"{table.parent}/{name}" for name in names}  # much faster than Path
    return _digest(_state(name, functools.partial(os.stat, path)) for name, path in paths.items())


def column_names(table: Path) -> list[str]:
    """Return the column names of a CSV or Parquet table. Raises NadpipeError if the table is unreadable."""
    if table.suffix == ".parquet":
        from nadpipe.store.columns import parquet_names  # imports pyarrow, which other tables do not need

        return parquet_names(table)
    with contextlib.closing(read_rows(table, _KIND)) as rows:
        return next(rows)


def read_columns(table: Path, names: Sequence[str]) -> list[list[str]]:
    """Return the values of some columns of a CSV or Parquet table as text, with empty text for missing values.

    Empty lines are no rows. Raises NadpipeError if the table is unreadable or lacks a column.
    """
    existing = column_names(table)
    missing = [name for name in names if name not in existing]
    if missing:
        raise NadpipeError(f"{table}: no column {missing[0]}; choose one of {', '.join(existing)}")
    if table.suffix == ".parquet":
        from nadpipe.store.columns import parquet_columns

        return parquet_columns(table, names)
    positions = [existing.index(name) for name in names]
    values: list[list[str]] = [[] for _ in names]
    for row in itertools.islice(read_rows(table, _KIND), 1, None):
        for column, position in zip(values, positions, strict=True):
            column.append(row[position])
    return values


def count_rows(table: Path) -> int:
    """Return the number of rows of a CSV or Parquet table. Raises NadpipeError if the table is unreadable."""
    if table.suffix == ".parquet":
        from nadpipe.store.columns import count_parquet_rows

        return count_parquet_rows(table)
    return sum(1 for _ in read_rows(table, _KIND)) - 1


def binary_columns(table: Path) -> list[str]:
    """Return the columns of a CSV or Parquet table that hold 0 or 1 (or true or false) in every row, if it has rows.

    Raises NadpipeError if the table is unreadable.
    """
    if table.suffix == ".parquet":
        from nadpipe.store.columns import parquet_binary_names

        return parquet_binary_names(table)
    rows = read_rows(table, _KIND)
    names = next(rows)
    remaining, row = dict(enumerate(names)), None
    for row in rows:
        wrong = [position for position in remaining if row[position].strip().lower() not in _BINARY]
        for position in wrong:
            del remaining[position]
        if not remaining:
            break
    return [] if row is None else list(remaining.values())


def _state(name: str, look: Callable[[], os.stat_result]) -> str:
    """Return a file's name with its size and time, or without them if there is no such file."""
    try:
        status = look()
    except (OSError, ValueError):  # ValueError: the name contains a NUL byte
        return name
    return f"{name}\0{status.st_size}\0{status.st_mtime_ns}"


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()[:16]
