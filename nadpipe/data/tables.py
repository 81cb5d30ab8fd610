"""Readers of tables and annotation files, which return the rows of a manifest without sizes.

Columns: path, mask_path, group, label, and all others of the source.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from nadpipe.errors import NadpipeError

_MANIFEST_COLUMNS = ("image_id", "width", "height", "sha256", "group", "label", "path", "mask_path", "mask_sha256", "problem")
_CARS_ANNOTATIONS = {  # the first file that exists
    "train": ("devkit/cars_train_annos.mat",),
    "test": ("cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat"),
}


def read_table(
    table: Path,
    path_column: str = "path",
    mask_column: str | None = None,
    group_column: str | None = None,
    label_column: str | None = None,
) -> pd.DataFrame:
    """Read the rows of a CSV or Parquet table that lists one image per row.

    Relative paths are relative to the table's folder. Other columns are kept, renamed to `source_…` if the manifest has a
    column of that name. Raises NadpipeError if the table is unreadable, is empty, or lacks a requested column.
    """
    try:
        source = pd.read_parquet(table) if table.suffix == ".parquet" else pd.read_csv(table)
    except (OSError, ValueError) as error:
        raise NadpipeError(
            f"{table}: not a readable CSV or Parquet table ({str(error).splitlines()[0]}); correct it or its path"
        ) from None
    requested = {"path": path_column, "mask_path": mask_column, "group": group_column, "label": label_column}
    for column in requested.values():
        if column is not None and column not in source:
            raise NadpipeError(f"{table}: no column {column}; choose one of {', '.join(map(str, source.columns))}")
    if source.empty:
        raise NadpipeError(f"{table}: no rows; a data set needs at least one image")
    if source[path_column].isna().any():
        row = int(source[path_column].isna().argmax()) + 1
        raise NadpipeError(f"{table}: column {path_column} is empty in row {row}; fill it or remove the row")
    rows = pd.DataFrame(
        {name: None if column is None else _as_text(source[column]) for name, column in requested.items()},
        index=source.index,
        dtype=object,
    )
    for name in ("path", "mask_path"):
        rows[name] = pd.Series([path and str(table.parent / path) for path in rows[name]], source.index, dtype=object)
    kept = source.drop(columns=[column for column in (path_column, mask_column) if column is not None])
    kept = kept.rename(columns={name: f"source_{name}" for name in _MANIFEST_COLUMNS if name in kept})
    return pd.concat([rows, kept], axis=1)


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
    """Add columns from a CSV whose first column holds file names (folder and suffix are optional), and return the rows.

    A column of 0 and 1 is kept; a column of words, such as colours, becomes one 0/1 column per word. Raises NadpipeError if the
    table is unreadable, contains other numbers, lists an image twice, or does not list an image.
    """
    try:
        source = pd.read_csv(label_table, converters={0: str})
    except (OSError, ValueError) as error:
        raise NadpipeError(
            f"{label_table}: not a readable CSV ({str(error).splitlines()[0]}); correct it or its path"
        ) from None
    stems = pd.Series([Path(str(name)).stem for name in source.iloc[:, 0]])
    if stems.duplicated().any():
        raise NadpipeError(f"{label_table}: lists {stems[stems.duplicated()].iloc[0]} twice; list each image once")
    columns = {}
    for name in source.columns[1:]:
        column = source[name]
        if column.isin([0, 1]).all():
            columns[name] = column.to_numpy()
        elif column.dtype == object or isinstance(column.dtype, pd.StringDtype):
            columns |= {word: (column == word).astype(int).to_numpy() for word in sorted(column.dropna().unique())}
        else:
            raise NadpipeError(f"{label_table}: column {name} holds numbers other than 0 and 1; use 0/1 columns or words")
    labels = pd.DataFrame(columns, index=stems)
    image_stems = [Path(path).stem for path in rows["path"]]
    missing = [stem for stem in image_stems if stem not in labels.index]
    if missing:
        raise NadpipeError(f"{label_table}: {len(missing)} images are missing, first {missing[0]}; add them")
    return pd.concat([rows, labels.loc[image_stems].set_index(rows.index)], axis=1)


def _read_mat(path: Path, name: str, expected: str) -> np.ndarray:
    """Read one variable of a MATLAB file. Raises NadpipeError if that fails."""
    if not path.is_file():
        raise NadpipeError(f"{path}: missing; {expected}")
    try:
        return np.atleast_1d(loadmat(path, squeeze_me=True)[name])
    except (MatReadError, ValueError, KeyError, NotImplementedError, OSError, TypeError) as error:
        raise NadpipeError(f"{path}: not a readable MATLAB file with {name} ({error}); {expected}") from None


def _as_text(column: pd.Series) -> list[str | None]:
    """Return the values as text. Whole numbers, such as years, stay whole numbers even if some are missing."""
    return [None if pd.isna(value) else str(value) for value in column.convert_dtypes()]
