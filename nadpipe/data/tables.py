"""Readers of tables and annotation files, which return the rows of a manifest without sizes.

Columns: path, mask_path, group, label, and all others of the source.
"""

import datetime
import itertools
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from nadpipe.data.layouts import IMAGE_SUFFIXES
from nadpipe.data.text_files import read_rows, readable
from nadpipe.errors import NadpipeError, printable, visible

_MANIFEST_COLUMNS = ("image_id", "width", "height", "sha256", "group", "label", "path", "mask_path", "mask_sha256", "problem")
_CARS_ANNOTATIONS = {  # the first file that exists
    "train": ("devkit/cars_train_annos.mat",),
    "test": ("cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat"),
}

_BLOCK = 2**18  # cells that are read at a time
_LISTED = 50  # columns in a message
_INTEGER = r"0|-?[1-9]\d{0,17}"  # as Python writes it, and within 64 bits
_NUMBER = r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?"
_BITS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "False": 0, "True": 1}
_TEXTUAL = (str, int, float, np.number, np.bool_, datetime.date)


def read_table(
    table: Path,
    path_column: str = "path",
    mask_column: str | None = None,
    group_column: str | None = None,
    label_column: str | None = None,
) -> pd.DataFrame:
    """Read the rows of a CSV or Parquet table that lists one image per row.

    Paths, groups and labels are text as written; only the empty text is a missing value. Relative paths are relative to the
    table's folder. Other columns are kept, as numbers if all their cells are numbers (see `_infer`), and renamed to `source_…`
    if the manifest has a column of that name. Raises NadpipeError if the table is unreadable, is empty, or lacks a requested
    column.
    """
    source = _read_parquet(table) if table.suffix == ".parquet" else _read_csv(table, "CSV or Parquet table")
    requested = {"path": path_column, "mask_path": mask_column, "group": group_column, "label": label_column}
    for column in requested.values():
        if column is not None and column not in source:
            raise NadpipeError(f"{table}: no column {column}; choose one of {', '.join(map(str, source.columns[:_LISTED]))}")
    if source.empty:
        raise NadpipeError(f"{table}: no rows; a data set needs at least one image")
    rows = pd.DataFrame(index=source.index)
    for name, column in requested.items():
        rows[name] = pd.Series(index=source.index, dtype="str") if column is None else _as_text(source[column], table)
        if name in ("path", "mask_path"):
            rows[name] = [path if pd.isna(path) else str(table.parent / path) for path in rows[name]]
            rows[name] = rows[name].astype("str")
    if rows["path"].isna().any():
        row = int(rows["path"].isna().argmax()) + 1
        raise NadpipeError(f"{table}: column {path_column} is empty in row {row}; fill it or remove the row")
    kept = source.drop(columns=[column for column in {path_column, mask_column} if column is not None])
    if table.suffix != ".parquet":
        kept = pd.DataFrame({name: _infer(kept[name]) for name in kept}, index=kept.index)
    kept = kept.rename(columns={name: f"source_{name}" for name in _MANIFEST_COLUMNS if name in kept})
    return _joined(rows, kept, table)


def read_cars(root: Path, split: str, expected: str) -> pd.DataFrame:
    """Read the rows of Stanford Cars: the label is the class, the group is the year at the end of the class name.

    split: train or test. expected: description of the layout, for messages. Raises NadpipeError if a file is missing or
    invalid.
    """
    candidates = [root / name for name in _CARS_ANNOTATIONS[split]]
    annotations = next((path for path in candidates if path.is_file()), candidates[0])
    names = _read_mat(root / "devkit/cars_meta.mat", "class_names", expected)
    listed = _read_mat(annotations, "annotations", expected)
    if "class" not in (listed.dtype.names or ()):
        raise NadpipeError(f"{annotations}: no classes; {expected}")
    labels = [str(names[int(number) - 1]) for number in listed["class"]]
    years = [re.search(r"\d{4}$", label) for label in labels]
    folder = root / f"cars_{split}"
    return pd.DataFrame(
        {
            "path": [str(folder / str(name)) for name in listed["fname"]],
            "mask_path": None,
            "group": [year and year[0] for year in years],
            "label": labels,
        },
        dtype=object,
    )


def add_labels(rows: pd.DataFrame, label_table: Path) -> pd.DataFrame:
    """Add columns from a CSV whose first column names images, and return the rows.

    A name is the end of an image's path: the file name, with or without suffix, and as many folders as tell images apart. A
    column of 0 and 1 is kept; a column of words, such as colours, becomes one 0/1 column per word. Raises NadpipeError if the
    table is unreadable, contains other numbers, repeats a name or the name of another column, does not list an image, or if a
    name fits several images or an image several names.
    """
    source = _read_csv(label_table, "CSV file")
    names = [str(PurePosixPath(name)) if isinstance(name, str) else "" for name in source.iloc[:, 0]]
    places = _find_names(rows["path"].tolist(), names, label_table)
    columns: dict[str, np.ndarray] = {}
    for name in source.columns[1:]:
        for title, values in _label_columns(source[name], label_table).items():
            if title in columns:
                raise NadpipeError(f"{label_table}: {title} is in two columns; rename one of them")
            columns[title] = values[places]
    return _joined(rows, pd.DataFrame(columns, index=rows.index), label_table)


def _find_names(paths: Sequence[str], names: Sequence[str], table: Path) -> np.ndarray:
    """Return the place of each image's name. Raises NadpipeError as `add_labels` does."""
    place_of = {name: place for place, name in enumerate(names)}
    if len(place_of) < len(names):
        repeated = next(name for place, name in enumerate(names) if place_of[name] != place)
        raise NadpipeError(f"{table}: lists {printable(repeated)} twice; list each image once")
    without_suffix: dict[str, list[str]] = {}  # names of images with another suffix, such as that of a mask
    for name in names:
        if name.lower().endswith(IMAGE_SUFFIXES):
            without_suffix.setdefault(name.rpartition(".")[0], []).append(name)
    depth = max((name.count("/") for name in names), default=0) + 1
    found: dict[str, str] = {}  # path by name
    places, missing = [], []
    for path in paths:
        ends = _ends(path, depth)
        fitting = [end for end in ends if end in place_of]
        if not fitting:
            fitting = [name for end in ends for name in without_suffix.get(end, ())]
        if len(fitting) > 1:
            raise NadpipeError(f"{table}: {' and '.join(map(printable, fitting[:2]))} both fit {printable(path)}; remove one")
        if not fitting:
            missing.append(path)
            continue
        [name] = fitting
        if name in found:
            both = f"{printable(found[name])} and {printable(path)}"
            raise NadpipeError(f"{table}: {printable(name)} fits {both}; write it with the folders that tell them apart")
        found[name] = path
        places.append(place_of[name])
    if missing:
        raise NadpipeError(f"{table}: {len(missing)} images are missing, first {printable(Path(missing[0]).stem)}; add them")
    return np.array(places)


def _ends(path: str, depth: int) -> list[str]:
    """Return the last 1 to `depth` parts of a path, each with and without the file's suffix."""
    parts = path.split("/")
    ends = ["/".join(parts[-length:]) for length in range(1, min(depth, len(parts)) + 1)]
    stem, dot, _ = parts[-1].rpartition(".")
    cut = len(parts[-1]) - len(stem)
    return ends + [end[:-cut] for end in ends] if dot and stem else ends


def _label_columns(column: pd.Series, table: Path) -> dict[str, np.ndarray]:
    """Return a column of 0 and 1 under its name, or one such column per word of a column of words."""
    if column.isin(list(_BITS)).all():
        return {str(column.name): column.map(_BITS).to_numpy(dtype=np.int64)}
    written = column.dropna()
    if written.str.fullmatch(_NUMBER).all():
        raise NadpipeError(f"{table}: column {column.name} holds numbers other than 0 and 1; use 0/1 columns or words")
    return {word: (column == word).to_numpy(dtype=np.int64) for word in sorted(written.unique())}


def _read_csv(path: Path, kind: str) -> pd.DataFrame:
    """Read all cells of a CSV file as text; only empty cells are missing values. kind: noun for messages."""
    rows = read_rows(path, kind)
    columns, blocks = next(rows), []
    while block := list(itertools.islice(rows, max(1, _BLOCK // len(columns)))):
        blocks.append(pd.DataFrame(block, columns=columns, dtype="str"))
    table = pd.concat(blocks, ignore_index=True) if blocks else pd.DataFrame(columns=columns, dtype="str")
    return table.where(table != "")


def _read_parquet(path: Path) -> pd.DataFrame:
    kind = "CSV or Parquet table"
    try:
        with readable(path, kind):
            table = pd.read_parquet(path)
    except NadpipeError:
        raise
    except Exception as error:  # on damaged files, the decoder raises errors of many types
        reason = visible(" ".join(str(error).split())) or type(error).__name__
        raise NadpipeError(f"{path}: not a readable CSV or Parquet table ({reason[:200]}); correct it or its path") from None
    repeated = table.columns[table.columns.duplicated()]
    if len(repeated):
        raise NadpipeError(f"{path}: has more than one column {repeated[0]!r}; rename one of them")
    return table.reset_index(drop=True)


def _as_text(column: pd.Series, table: Path) -> pd.Series:
    """Return the values as text. Whole numbers of a Parquet table, such as years, stay whole even if some are missing."""
    if isinstance(column.dtype, pd.StringDtype):
        return column.where(column != "")
    values = column.convert_dtypes().astype(object)
    values = values.where(column.notna(), "")
    if not all(isinstance(value, _TEXTUAL) for value in values):
        raise NadpipeError(f"{table}: column {column.name} holds neither text nor numbers; save it as text")
    text = values.map(str).astype("str")
    return text.where(text != "")


def _infer(column: pd.Series) -> pd.Series:
    """Return the numbers of a column of text, or the text itself if a cell is not written like a number.

    Numbers with leading zeros, and those of more digits than a float holds, such as long ids, are text.
    """
    written = column.dropna()
    if written.empty:
        return column
    if written.isin(["True", "False"]).all():
        return column.map({"True": True, "False": False}).astype("boolean")
    if written.str.fullmatch(_INTEGER).all():
        return pd.to_numeric(column).astype("Int64") if len(written) < len(column) else pd.to_numeric(column)
    if written.str.fullmatch(_NUMBER).all() and not written.str.fullmatch(r"-?\d{16,}").any():
        return pd.to_numeric(column)
    return column


def _joined(rows: pd.DataFrame, others: pd.DataFrame, table: Path) -> pd.DataFrame:
    """Return all columns side by side. Raises NadpipeError if two have the same name."""
    joined = pd.concat([rows, others], axis=1)
    repeated = joined.columns[joined.columns.duplicated()]
    if len(repeated):
        raise NadpipeError(f"{table}: a second column would be called {repeated[0]!r}; rename the one in this table")
    return joined


def _read_mat(path: Path, name: str, expected: str) -> np.ndarray:
    """Read one variable of a MATLAB file. Raises NadpipeError if that fails."""
    if not path.is_file():
        raise NadpipeError(f"{path}: missing; {expected}")
    try:
        return np.atleast_1d(loadmat(path, squeeze_me=True)[name])
    except (MatReadError, ValueError, KeyError, NotImplementedError, OSError, TypeError) as error:
        raise NadpipeError(f"{path}: not a readable MATLAB file with {name} ({error}); {expected}") from None
