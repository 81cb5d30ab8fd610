"""Final tables of a run, read for plots and pages."""

import io
from pathlib import Path

import pandas as pd

from nadpipe.errors import NadpipeError
from nadpipe.store.checksums import read_with_checksum
from nadpipe.store.schema import CsvKind, TableKind
from nadpipe.store.tables import read_parquet


def read_result(path: Path, kind: CsvKind | TableKind) -> pd.DataFrame:
    """Read a final table, CSV or Parquet depending on its kind. Raises NadpipeError as `read_csv` and `read_parquet` do."""
    return read_csv(path, kind) if isinstance(kind, CsvKind) else read_parquet(path, kind)


def read_csv(path: Path, kind: CsvKind) -> pd.DataFrame:
    """Read a CSV table. Only empty cells are missing values.

    Raises NadpipeError if the file is not readable, differs from its checksum or lacks a column.
    """
    try:
        content = read_with_checksum(path)
        table = pd.read_csv(io.BytesIO(content), dtype=dict.fromkeys(kind.text, str), keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise NadpipeError(f"{path}: not a readable CSV table ({type(error).__name__}); make it with Snakemake") from None
    missing = [name for name in kind.columns if name not in table]
    if missing:
        raise NadpipeError(f"{path}: columns {', '.join(missing)} are missing; delete the table and make it again")
    return table
