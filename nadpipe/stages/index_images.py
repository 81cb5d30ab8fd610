"""Turn a data set on disk into the manifest: one row an image."""

import sys
from pathlib import Path
from typing import Literal

from nadpipe import layouts
from nadpipe.artifacts import Stamp, move_paths, write_parquet
from nadpipe.datasets import add_labels, examine, read_cars, read_table, read_tree
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint


def index_images(
    layout: str,
    path: Path,
    output: Path,
    split: str | None = None,
    path_column: str = "path",
    mask_column: str | None = None,
    group_column: str | None = None,
    label_column: str | None = None,
    labels: Path | None = None,
    bad_images: Literal["fail", "skip"] = "fail",
    copy: tuple[str, str] | None = None,
    threads: int = 1,
) -> None:
    """List the images of a data set with their sizes and checksums; every image is read to its end.

    Args:
        layout: table: CSV or Parquet, one row an image, paths relative to its folder. tree: images at any depth of a folder.
            stanford_cars. Or a layout with masks: folder, or a published one.
        path: The table, or the folder that the layout describes.
        output: Manifest, Parquet.
        split: Split of a published layout; its validation split unless given.
        path_column: Column of the table with the image's path.
        mask_column: Column with the path of the image's label map.
        group_column: Column with the image's group.
        label_column: Column with the image's class label.
        labels: CSV with more columns, joined by file name: 0/1 columns, or words that become such.
        bad_images: fail: images that cannot be used are an error that tells all of them. skip: they are listed with the reason
            and not used.
        copy: The folder that the images lie in by the manifest, and the copy of it that path is or is in.
        threads: Images read at once.
    """
    if layout == "table":
        rows = read_table(path, path_column, mask_column, group_column, label_column)
    elif layout == "tree":
        rows = read_tree(path)
    elif layout == "stanford_cars":
        rows = read_cars(path, split)
    elif layout in layouts.LAYOUTS:
        rows = layouts.list_images(layout, path, split)
    else:
        raise NadpipeError(f"--layout: no layout {layout}; there are table, tree, stanford_cars, {', '.join(layouts.LAYOUTS)}")
    if labels is not None:
        rows = add_labels(rows, labels)
    manifest = examine(rows, bad_images, threads)
    if copy is not None:
        manifest = move_paths(manifest, *reversed(copy))
    skipped = int((manifest["image_id"] < 0).sum())
    if skipped:
        print(f"{skipped} of {len(manifest)} images are skipped; the reasons are in column problem", file=sys.stderr)
    write_parquet(output, "images", manifest, Stamp(code=code_fingerprint(__name__)), sources=True)
