"""Look at the columns of Parquet tables that are not artifacts, such as a user's table of images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from nadpipe.errors import NadpipeError

Result = TypeVar("Result")


def parquet_names(path: Path) -> list[str]:
    """Return the names of the columns. Raises NadpipeError if the table is unreadable."""
    return _read(path, lambda: list(pq.read_schema(path).names))


def count_parquet_rows(path: Path) -> int:
    """Return the number of rows. Raises NadpipeError if the table is unreadable."""
    return _read(path, lambda: int(pq.read_metadata(path).num_rows))


def parquet_columns(path: Path, names: Sequence[str]) -> list[list[str]]:
    """Return columns as text, with empty text for missing values. Raises NadpipeError if the table is unreadable."""
    table = _read(path, lambda: pq.read_table(path, columns=list(names)))
    return [["" if value is None else str(value) for value in table[name].to_pylist()] for name in names]


def parquet_binary_names(path: Path) -> list[str]:
    """Return the columns that hold 0 or 1 (or true or false) in every row, if there are rows.

    Raises NadpipeError if the table is unreadable.
    """
    schema = _read(path, lambda: pq.read_schema(path))
    numbers = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating)
    names = [field.name for field in schema if any(is_kind(field.type) for is_kind in numbers)]
    table = _read(path, lambda: pq.read_table(path, columns=names))
    return [name for name in names if {0, 1} >= set(table[name].unique().to_pylist()) and len(table)]


def _read(path: Path, read: Callable[[], Result]) -> Result:
    try:
        return read()
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise NadpipeError(f"{path}: not a readable Parquet table ({reason}); correct it or its path") from None
