"""Readers that turn a data set on disk into the manifest: one row an image."""

import hashlib
from pathlib import Path

import pandas as pd

from nadpipe.errors import NadpipeError
from nadpipe.progress import track
from nadpipe.views import image_size

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
_OWN = ("image_id", "width", "height", "group", "label", "path", "mask_path")


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


def add_sizes(rows: pd.DataFrame) -> pd.DataFrame:
    """The manifest: image_id, path, width, height, label, group, mask_path, then the source's own columns.

    Raises NadpipeError for an image without a readable header, and for a mask of another size than its image.
    """
    files = track(list(zip(rows["path"], rows["mask_path"], strict=True)), "reading image headers", "image", len(rows))
    sizes = [_size(path, mask) for path, mask in files]
    first = pd.DataFrame(
        {
            "image_id": range(len(rows)),
            "path": rows["path"].to_numpy(),
            "width": [width for _, width in sizes],
            "height": [height for height, _ in sizes],
            **{name: pd.Series(rows[name].to_list(), dtype=object) for name in ("label", "group", "mask_path")},
        }
    )
    own = rows.drop(columns=["path", "mask_path", "group", "label"])
    return pd.concat([first, own.reset_index(drop=True)], axis=1)


def _size(path: str, mask: str | None) -> tuple[int, int]:
    """Height and width of an upright image, whose mask may be as the image is stored."""
    size = image_size(path)
    if mask is not None and image_size(mask) not in (size, size[::-1]):
        height, width = image_size(mask)
        raise NadpipeError(f"{mask}: mask is {width} × {height}, its image {size[1]} × {size[0]} pixels")
    return size


def paths_fingerprint(paths: pd.Series) -> str:
    """Tells data sets apart: a hash of the images' paths in order."""
    return hashlib.sha256("\n".join(paths).encode()).hexdigest()[:16]


def shard_rows(images: int, shard: int, shards: int) -> range:
    """Rows of one of `shards` contiguous, nearly equal parts. Raises NadpipeError when a part would be empty."""
    if shards > images:
        raise NadpipeError(f"datasets: shards is {shards} for {images} images; use at most one shard an image")
    return range(images * shard // shards, images * (shard + 1) // shards)


def _texts(column: pd.Series) -> list[str | None]:
    return [None if pd.isna(value) else str(value) for value in column.convert_dtypes()]  # years with gaps stay whole numbers
