"""Turn a data set on disk into the manifest: one row an image."""

from pathlib import Path

from nadpipe.artifacts import Stamp, write_parquet
from nadpipe.datasets import add_sizes, read_folder, read_table
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint


def index_images(
    output: Path,
    table: Path | None = None,
    folder: Path | None = None,
    path_column: str = "path",
    mask_column: str | None = None,
    group_column: str | None = None,
    label_column: str | None = None,
) -> None:
    """List the images of a table or a folder with their sizes; every image must exist and have a readable header.

    Args:
        output: Manifest, Parquet.
        table: CSV or Parquet table, one row an image; paths are relative to its folder.
        folder: Folder with images, at any depth; give either this or a table.
        path_column: Column of the table with the image's path.
        mask_column: Column with the path of the image's label map.
        group_column: Column with the image's group.
        label_column: Column with the image's class label.
    """
    if (table is None) == (folder is None):
        raise NadpipeError("give either --table or --folder")
    if table is not None:
        rows = read_table(table, path_column, mask_column, group_column, label_column)
    else:
        rows = read_folder(folder)
    write_parquet(output, "images", add_sizes(rows), Stamp(code=code_fingerprint(__name__)), sources=True)
