"""Readers that turn a data set on disk into the manifest: one row an image."""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from nadpipe.errors import NadpipeError
from nadpipe.progress import track
from nadpipe.views import Examined, examine_image, image_size, shown

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
_OWN = ("image_id", "width", "height", "sha256", "group", "label", "path", "mask_path", "problem")


def read_table(
    table: Path, path_column: str, mask_column: str | None, group_column: str | None, label_column: str | None
) -> pd.DataFrame:
    """Manifest rows, without sizes, from a CSV or Parquet table with one row an image.

    Relative paths are relative to the table's folder. All columns but these paths
    are kept as they are, under `source_…` where the manifest has a column of that name. Raises
    NadpipeError for a table that cannot be read, is empty, or lacks a column that is asked for.
    """
    try:
        source = pd.read_parquet(table) if table.suffix == ".parquet" else pd.read_csv(table)
    except (OSError, ValueError) as error:
        raise NadpipeError(f"{table}: not a readable CSV or Parquet table ({str(error).splitlines()[0]})") from None
    asked = {"path": path_column, "mask_path": mask_column, "group": group_column, "label": label_column}
    for column in asked.values():
        if column is not None and column not in source:
            raise NadpipeError(f"{table}: no column {column}; it has {', '.join(map(str, source.columns))}")
    if source.empty:
        raise NadpipeError(f"{table}: no rows; a data set needs at least one image")
    if source[path_column].isna().any():
        raise NadpipeError(f"{table}: column {path_column} is empty in row {int(source[path_column].isna().argmax()) + 1}")
    rows = pd.DataFrame(
        {name: None if column is None else _texts(source[column]) for name, column in asked.items()},
        index=source.index,
        dtype=object,
    )
    for name in ("path", "mask_path"):
        rows[name] = pd.Series([path and str(table.parent / path) for path in rows[name]], source.index, dtype=object)
    own = source.drop(columns=[column for column in (path_column, mask_column) if column is not None])
    own = own.rename(columns={name: f"source_{name}" for name in _OWN if name in own})
    return pd.concat([rows, own], axis=1)


def read_tree(folder: Path) -> pd.DataFrame:
    """Manifest rows, without sizes, from a tree of images, sorted by path; the first level of folders is the group and
    the folder an image lies in is its label."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise NadpipeError(f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)}) in this folder or below it")
    inner = [path.relative_to(folder).parts for path in paths]
    return pd.DataFrame(
        {
            "path": [str(path) for path in paths],
            "mask_path": None,
            "group": [parts[0] if len(parts) > 1 else None for parts in inner],
            "label": [parts[-2] if len(parts) > 1 else None for parts in inner],
        },
        dtype=object,
    )


_CARS = (
    "Stanford Cars lies as devkit/cars_meta.mat, devkit/cars_train_annos.mat, cars_test_annos_withlabels.mat, "
    "cars_train/, cars_test/"
)


def read_cars(root: Path, split: str | None = None) -> pd.DataFrame:
    """Manifest rows, without sizes, of Stanford Cars as published: label = class, group = the year that the class name ends in.

    split: train unless given, or test. Raises NadpipeError that says which path is missing and how it should look.
    """
    split = split or "train"
    if split not in ("train", "test"):
        raise NadpipeError(f"stanford_cars: no split {split}; there are train, test")
    choices = {
        "train": ("devkit/cars_train_annos.mat",),
        "test": ("cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat"),
    }
    annotations = next((root / name for name in choices[split] if (root / name).is_file()), root / choices[split][0])
    names = _read_mat(root / "devkit/cars_meta.mat", "class_names")
    listed = _read_mat(annotations, "annotations")
    if "class" not in (listed.dtype.names or ()):
        raise NadpipeError(f"{annotations}: no classes in it; {_CARS}")
    label = [str(names[int(number) - 1]) for number in listed["class"]]
    year = [re.search(r"\d{4}$", name) for name in label]
    folder = root / f"cars_{split}"
    return pd.DataFrame(
        {
            "path": [str(folder / str(name)) for name in listed["fname"]],
            "mask_path": None,
            "group": [found and found[0] for found in year],
            "label": label,
        },
        dtype=object,
    )


def _read_mat(path: Path, name: str) -> np.ndarray:
    """One variable of a MATLAB file."""
    if not path.is_file():
        raise NadpipeError(f"{path}: missing; {_CARS}")
    try:
        return np.atleast_1d(loadmat(path, squeeze_me=True)[name])
    except (MatReadError, ValueError, KeyError, NotImplementedError, OSError, TypeError) as error:
        raise NadpipeError(f"{path}: not a readable MATLAB file with {name} ({error}); {_CARS}") from None


def add_labels(rows: pd.DataFrame, table: Path) -> pd.DataFrame:
    """The rows with more columns, from a CSV whose first column holds file names (with or without folders and endings).

    A column of 0 and 1 stays; one of words (a colour) becomes a 0/1 column for each word. Raises NadpipeError for a table that
    cannot be read, and for images that it does not list.
    """
    try:
        own = pd.read_csv(table, converters={0: str})
    except (OSError, ValueError) as error:
        raise NadpipeError(f"{table}: not a readable CSV ({str(error).splitlines()[0]})") from None
    names = pd.Series([Path(str(name)).stem for name in own.iloc[:, 0]])
    if names.duplicated().any():
        raise NadpipeError(f"{table}: lists {names[names.duplicated()].iloc[0]} twice; list each image once")
    columns = {}
    for name in own.columns[1:]:
        if own[name].isin([0, 1]).all():
            columns[name] = own[name].to_numpy()
        elif own[name].dtype == object or isinstance(own[name].dtype, pd.StringDtype):
            columns |= {word: (own[name] == word).astype(int).to_numpy() for word in sorted(own[name].dropna().unique())}
        else:
            raise NadpipeError(f"{table}: column {name} holds numbers other than 0 and 1; labels are 0/1 columns or words")
    labels = pd.DataFrame(columns, index=names)
    stems = [Path(path).stem for path in rows["path"]]
    missing = [stem for stem in stems if stem not in labels.index]
    if missing:
        raise NadpipeError(f"{table}: does not list {missing[0]}, and {len(missing) - 1} more images of the data set")
    return pd.concat([rows, labels.loc[stems].set_index(rows.index)], axis=1)


def examine(rows: pd.DataFrame, bad: Literal["fail", "skip"] = "fail", threads: int = 1) -> pd.DataFrame:
    """The manifest: image_id, path, width, height, sha256, label, group, mask_path, problem, then the source's own columns.

    Every image is read to its end, once. Those that cannot be used, have a mask that cannot, or are listed before, come last,
    with image_id -1 and the problem, where bad is skip. Raises NadpipeError that tells all of them, one a line, where bad is
    fail, and when no image is left.
    """
    paths, masks = rows["path"].tolist(), rows["mask_path"].tolist()
    again = rows["path"].duplicated().tolist()
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(_examine, paths, masks, again)
        seen = list(track(found, "reading images", "image", len(rows)))
    problems = [str(one) if isinstance(one, NadpipeError) else None for one in seen]
    told = [problem for problem in problems if problem is not None]
    if told and (bad == "fail" or len(told) == len(rows)):
        rest = "or set bad_images: skip" if bad == "fail" else "none is left"
        summary = [f"{len(told)} of {len(rows)} images cannot be used; mend them, {rest}"] if len(told) > 1 else []
        raise NadpipeError("\n".join(summary + told))
    good = [one if isinstance(one, Examined) else Examined(0, 0, "") for one in seen]
    first = pd.DataFrame(
        {
            "path": paths,
            "width": [one.width for one in good],
            "height": [one.height for one in good],
            "sha256": [one.sha256 or None for one in good],
            **{name: pd.Series(rows[name].to_list(), dtype=object) for name in ("label", "group", "mask_path")},
            "problem": pd.Series(problems, dtype=object),
        }
    )
    own = rows.drop(columns=["path", "mask_path", "group", "label"]).reset_index(drop=True)
    manifest = pd.concat([first, own], axis=1)
    manifest = manifest.loc[manifest["problem"].notna().sort_values(kind="stable").index].reset_index(drop=True)
    manifest.insert(0, "image_id", manifest.index.where(manifest["problem"].isna(), -1))
    return manifest


def _examine(path: str, mask: str | None, again: bool) -> Examined | NadpipeError:
    """Size and checksum of an image, whose mask may be as the image is stored; or what is wrong with it."""
    try:
        if again:
            raise NadpipeError(f"{shown(path)}: listed more than once; list each image once")
        image = examine_image(path)
        size = image.height, image.width
        if mask is not None and image_size(mask) not in (size, size[::-1]):
            height, width = image_size(mask)
            raise NadpipeError(f"{shown(mask)}: mask is {width} × {height}, its image {size[1]} × {size[0]} pixels")
    except NadpipeError as error:
        return error
    return image


def content_fingerprint(manifest: pd.DataFrame) -> str:
    """Tells data sets apart: a hash of the images' paths and contents in order."""
    return hashlib.sha256("\n".join(manifest["path"] + " " + manifest["sha256"]).encode()).hexdigest()[:16]


def shard_rows(images: int, shard: int, shards: int) -> range:
    """Rows of one of `shards` contiguous, nearly equal parts. Raises NadpipeError when a part would be empty."""
    if shards > images:
        raise NadpipeError(f"datasets: shards is {shards} for {images} images; use at most one shard an image")
    return range(images * shard // shards, images * (shard + 1) // shards)


def _texts(column: pd.Series) -> list[str | None]:
    return [None if pd.isna(value) else str(value) for value in column.convert_dtypes()]  # years with gaps stay whole numbers
