"""Final tables and settings of a run, read for plots, pages and looks."""

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd

from nadpipe.errors import NadpipeError
from nadpipe.store.checksums import read_sealed, read_with_checksum
from nadpipe.store.schema import CsvKind, TableKind
from nadpipe.store.tables import read_parquet


def read_result(path: Path, kind: CsvKind | TableKind) -> pd.DataFrame:
    """Read a final table, CSV or Parquet depending on its kind. Raises NadpipeError as `read_csv` and `read_parquet` do."""
    return read_csv(path, kind) if isinstance(kind, CsvKind) else read_parquet(path, kind)


def read_settings(results: Path) -> dict[str, Any]:
    """Return the settings that the results of a run depend on. Files of its model are found from any working directory.

    Raises NadpipeError if the results do not contain the settings, or if they are damaged.
    """
    path = results / "provenance.json"
    try:
        settings = json.loads(read_sealed(path))["config"]
        model = settings["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NadpipeError(
            f"{path}: names no model ({type(error).__name__}); make it with snakemake results/provenance.json"
        ) from None
    files = {key: results.parent / name for key, name in model.items() if isinstance(name, str)}
    return settings | {"model": model | {key: str(file) for key, file in files.items() if file.is_file()}}


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
