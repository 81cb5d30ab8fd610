"""Write the manifest of a data set: one row per image."""

import sys
from collections import Counter
from pathlib import Path
from typing import Literal

from nadpipe.data.layouts import Source, find_layout
from nadpipe.data.manifest import examine_in_blocks
from nadpipe.data.tables import add_labels
from nadpipe.fingerprint import code_fingerprint
from nadpipe.store.kinds.images import IMAGES
from nadpipe.store.manifest import move_paths
from nadpipe.store.stamp import Stamp
from nadpipe.store.tables import create_parquet


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
    """List the images of a data set with their sizes and checksums. Every image is decoded once.

    Args:
        layout: Layout of the data set, such as table (CSV or Parquet, one row per image) or tree (a folder with images at any
            depth). docs/configuration.md lists all layouts.
        path: The table or the folder.
        output: Manifest, Parquet.
        split: Split of the data set. By default the layout's own, such as the validation split.
        path_column: Column of the table with the image's path.
        mask_column: Column with the path of the image's mask.
        group_column: Column with the image's group.
        label_column: Column with the image's class label.
        labels: CSV with more columns, joined by file name: columns of 0 and 1, or of words, each of which becomes a 0/1 column.
        bad_images: fail: report all invalid images and stop. skip: list them with the reason and do not use them.
        copy: Folder of the images as the manifest should name it, and the folder of the copy, which contains path.
        threads: Images read at the same time.
    """
    source = Source(path, split, path_column, mask_column, group_column, label_column)
    rows = find_layout(layout).list_images(source)
    ignored = find_layout(layout).ignored_images(source)
    if labels is not None:
        rows = add_labels(rows, labels)
    if ignored:
        counts = Counter(image.suffix.lower() for image in ignored)
        listed = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())
        print(
            f"{path}: {len(ignored)} images in formats that are not read ({listed}); convert them to use them", file=sys.stderr
        )
    skipped = 0
    with create_parquet(output, IMAGES, Stamp(code=code_fingerprint(__name__)), sources=rows) as add:
        for block in examine_in_blocks(rows, bad_images, threads, ignored):
            manifest = block if copy is None else move_paths(block, old=copy[1], new=copy[0])
            skipped += int((manifest["image_id"] < 0).sum())
            add(manifest)
    if skipped:
        images = len(rows) + len(ignored)
        print(f"{skipped} of {images} images are skipped; column `problem` of {output} has the reasons", file=sys.stderr)
