"""Building blocks of schemas: arrays of Zarr stores, columns of tables. This module imports nothing heavy.

A kind's `signature` contains everything that a stage's numbers can depend on: names, axes, types and format. It excludes
descriptions and the records of results, so rewording one reruns nothing (see `nadpipe.fingerprint`).
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

FORMAT = 6  # of every kind that does not set its own; format 5 had no checksums, up to 4 the readout was attnpool.zarr


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a Zarr store. `longest`: largest length of a chunk by axis, if limited."""

    axes: tuple[str, ...]
    type: str  # float, int or text
    units: str
    source: str
    longest: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class StoreKind:
    """One kind of Zarr store."""

    name: str
    path: str  # for the documentation
    arrays: Mapping[str, Array]
    first: Mapping[str, int] = dataclasses.field(default_factory=dict)  # first index of an axis, if not 0
    optional: tuple[str, ...] = ()  # arrays that a store may lack
    format: int = FORMAT

    @property
    def signature(self) -> str:
        """Return a text that changes with everything but descriptions."""
        arrays = {name: [array.axes, array.type, dict(array.longest)] for name, array in self.arrays.items()}
        return _signature(self.name, self.format, [arrays, dict(self.first), self.optional])


@dataclasses.dataclass(frozen=True)
class Final:
    """Record of a table that is a result: a final target of the workflow.

    stage: stage, and rule, that writes the table. category: heading in Snakemake's report. caption: one line about the table,
    and about its plot; a table has a plot if nadpipe.pages.figures has a module with the name of its kind. needs: what the
    table requires of the config (`nadpipe.needs`).
    """

    stage: str
    category: str
    caption: str
    needs: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a Parquet table. `type`: key of `nadpipe.store.tables.TYPES`."""

    type: str
    comment: str


@dataclasses.dataclass(frozen=True)
class TableKind:
    """One kind of Parquet table."""

    name: str
    path: str
    columns: Mapping[str, Column]
    final: Final | None = None  # for tables that are results
    format: int = FORMAT

    @property
    def signature(self) -> str:
        """Return a text that changes with everything but comments."""
        return _signature(self.name, self.format, {name: column.type for name, column in self.columns.items()})


@dataclasses.dataclass(frozen=True)
class CsvKind:
    """One kind of CSV table: the meaning of its columns, in order.

    text: columns that are text even if they look like numbers.
    """

    name: str
    path: str
    columns: Mapping[str, str]
    final: Final | None = None  # for tables that are results
    text: tuple[str, ...] = ("dataset",)
    format: int = FORMAT

    @property
    def signature(self) -> str:
        """Return a text that changes with everything but comments."""
        return _signature(self.name, self.format, list(self.columns))


def _signature(name: str, version: int, content: Any) -> str:
    return json.dumps([name, version, content])
