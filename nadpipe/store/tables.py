"""Parquet and CSV tables: written once, never changed, and checked on reading."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from nadpipe.errors import NadpipeError
from nadpipe.store.atomic import atomic_path
from nadpipe.store.checksums import UNSEALED, checksum_line, checksum_path, damaged, is_intact, is_marked, seal
from nadpipe.store.schema import Column, CsvKind, TableKind
from nadpipe.store.stamp import Stamp, check_stamp

_ROW_GROUP = 2**16  # rows
_CHECKSUM = "nadpipe_checksum"  # key of the file's metadata
TYPES: dict[str, pa.DataType] = {
    "text": pa.dictionary(pa.int32(), pa.string()),
    "string": pa.string(),
    "bool": pa.bool_(),
    **{name: getattr(pa, name)() for name in ("int8", "int16", "int32", "int64", "float32", "float64")},
    "list<string>": pa.list_(pa.string()),
    "list<int16>": pa.list_(pa.int16()),
    "list<int64>": pa.list_(pa.int64()),
    "list<float32>": pa.list_(pa.float32()),
}


@contextlib.contextmanager
def create_parquet(
    path: Path,
    kind: TableKind,
    stamp: Stamp,
    extra: Mapping[str, Column] | None = None,
    sources: pd.DataFrame | None = None,
) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Yield a function that adds rows to a new table. The table need not fit in memory. It appears only if the block succeeds.

    extra: columns in addition to the schema's. sources: a table whose other columns are kept as well, with the types of
    the whole table.
    """
    metadata = {b"nadpipe": json.dumps(stamp.attributes(kind)).encode()}
    schema = _schema({**kind.columns, **(extra or {})}, sources).with_metadata(metadata)
    with atomic_path(path) as partial:
        with contextlib.ExitStack() as stack:
            writer: pq.ParquetWriter | None = None
            waiting: list[pa.Table] = []

            def flush() -> None:
                """Write small batches together: a file of many small row groups is slow to read."""
                assert writer is not None
                rows = pa.concat_tables(waiting).unify_dictionaries()
                writer.write_table(rows, row_group_size=_ROW_GROUP)
                waiting.clear()

            def add(rows: pd.DataFrame) -> None:
                nonlocal writer
                if writer is None:
                    writer = stack.enter_context(_writer(partial, schema))
                arrow = pa.Table.from_pandas(rows[schema.names], schema=schema, preserve_index=False)
                waiting.append(arrow.replace_schema_metadata(metadata))
                if sum(map(len, waiting)) >= _ROW_GROUP:
                    flush()

            yield add
            if waiting:
                flush()
        seal(partial)


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a new file for `seal`. Its pages have checksums, too, which other readers can check."""
    writer = pq.ParquetWriter(path, schema, compression="zstd", write_page_index=True, write_page_checksum=True)
    writer.add_key_value_metadata({_CHECKSUM: UNSEALED})
    return writer


def write_parquet(
    path: Path,
    kind: TableKind,
    table: pd.DataFrame,
    stamp: Stamp,
    extra: Mapping[str, Column] | None = None,
    sources: bool = False,
) -> None:
    """Write a complete table of a kind (see `create_parquet`). sources: also keep columns that the kind does not have."""
    with create_parquet(path, kind, stamp, extra, table if sources else None) as add:
        add(table)


def read_parquet(
    path: Path,
    kind: TableKind,
    model: Stamp | None = None,
    columns: Sequence[str] | None = None,
    filters: Sequence[tuple[str, str, Any]] | None = None,
) -> pd.DataFrame:
    """Read a table and check its stamp and columns. Text columns hold plain strings, and None for missing values.

    columns: read only these. filters: read only rows that satisfy all of them (column, operator, value). Raises NadpipeError
    for a damaged table and for one of another kind, format or model.
    """
    source = _read_source(path, kind)
    schema = pq.read_schema(source)
    check_stamp(path, _attributes(schema), kind, model)
    missing = [name for name in kind.columns if name not in schema.names]
    if missing:
        raise NadpipeError(f"{path}: columns {', '.join(missing)} are missing; delete the table and make it again")
    options = {"columns": columns and list(columns), "filters": filters and list(filters)}
    table = pq.read_table(source, page_checksum_verification=True, **options)
    frame = table.to_pandas()
    for name, column in kind.columns.items():
        if name in frame and column.type in ("text", "string"):
            values = frame[name].astype(object)
            frame[name] = values.where(values.notna(), None)
    return frame


def read_stamp(path: Path, kind: TableKind) -> Stamp:
    """Read the stamp of a table. Raises NadpipeError for a damaged table and for one of another kind or format."""
    attributes = _attributes(pq.read_schema(_read_source(path, kind)))
    check_stamp(path, attributes, kind, None)
    return Stamp(**{field.name: str(attributes[field.name]) for field in dataclasses.fields(Stamp)})


def write_csv(path: Path, kind: CsvKind, table: pd.DataFrame) -> None:
    """Write a CSV table with the columns of its kind, in order, and its checksum as <path>.sha256."""
    with atomic_path(checksum_path(path)) as checksum, atomic_path(path) as partial:
        table[list(kind.columns)].to_csv(partial, index=False, lineterminator="\n", float_format="%.8g")
        checksum.write_bytes(checksum_line(partial.read_bytes(), path.name))


def _read_source(path: Path, kind: TableKind) -> pa.BufferReader:
    """Read a whole table into memory and compare its checksum.

    Raises NadpipeError for a missing or damaged file, and for one that is not of this kind and format.
    """
    try:
        content = Path(path).read_bytes()
        source = pa.BufferReader(content)
        if not is_marked(content):
            check_stamp(path, _attributes(pq.read_schema(source)), kind, None)
    except (OSError, pa.ArrowInvalid, ValueError) as error:
        raise NadpipeError(f"{path}: not a readable Parquet table ({_one_line(error)}); make it with Snakemake") from None
    if not is_intact(content):
        raise damaged(path)
    return source


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _attributes(schema: pa.Schema) -> dict[str, Any]:
    """Return the attributes of a table's stamp; empty for a table without a stamp."""
    stored = (schema.metadata or {}).get(b"nadpipe")
    return json.loads(stored) if stored else {}


def _schema(columns: Mapping[str, Column], sources: pd.DataFrame | None) -> pa.Schema:
    fields = [pa.field(name, TYPES[column.type], metadata={"comment": column.comment}) for name, column in columns.items()]
    if sources is not None:
        others = [name for name in sources.columns if name not in columns]
        inferred = pa.Schema.from_pandas(sources[others], preserve_index=False)
        fields += [field.with_metadata({"comment": "column of the source table"}) for field in inferred]
    return pa.schema(fields)
