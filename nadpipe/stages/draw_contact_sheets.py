"""Draw the images that each method segments best and worst."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from nadpipe.circuit import metrics
from nadpipe.circuit.segmentation import Variant
from nadpipe.data.class_tables import read_classes
from nadpipe.data.classes import Classes
from nadpipe.data.masks import read_mask
from nadpipe.data.views import read_image
from nadpipe.pages.pictures import contact_sheet, overlay
from nadpipe.progress import track
from nadpipe.store.atomic import atomic_path
from nadpipe.store.kinds.segmentation import CONFUSION
from nadpipe.store.label_maps import read_label_map
from nadpipe.store.manifest import read_images
from nadpipe.store.tables import read_parquet


def draw_contact_sheets(
    images: Path,
    classes: Path,
    confusion: tuple[Path, ...],
    label_maps: tuple[Path, ...],
    output: Path,
    count: int = 6,
    copy: tuple[str, str] | None = None,
) -> None:
    """Write one sheet per method: the images with the largest and the smallest mean IoU over their own classes.

    Each image is shown with overlays of its mask and of the method's label map.

    Args:
        images: Manifest with masks.
        classes: Classes of the data set.
        confusion: Confusions of all shards of the data set.
        label_maps: Folders of label maps, all shards.
        output: Folder of the sheets, <method>.png.
        count: Number of best images, and of worst images, per sheet.
        copy: Folder of the images as the manifest names it, and the folder of the copy to read instead.
    """
    manifest = {row.image_id: row for row in read_images(images, copy).itertuples()}
    _, dataset_classes = read_classes(classes)
    cells = pd.concat([read_parquet(path, CONFUSION) for path in confusion], ignore_index=True)
    by_method = list(cells.groupby(["method", "k"], sort=False, dropna=False))
    legend = dict(zip(dataset_classes.titles, dataset_classes.colours, strict=True))
    with atomic_path(output) as folder:
        folder.mkdir()
        for (method, k), rows in track(by_method, "drawing sheets", "method"):
            name = Variant(method, None if pd.isna(k) else int(k)).name
            scored = np.unique(rows["image_id"])
            totals = metrics.class_totals(rows, scored, len(dataset_classes.titles))
            ranked = pd.Series(metrics.mean_iou(totals), scored).dropna().sort_values(ascending=False, kind="stable")
            ends = {"best": ranked.head(count), "worst": ranked.tail(count)[::-1]}
            sections = {
                title: [_entry(manifest[image], dataset_classes, label_maps, name, miou) for image, miou in end.items()]
                for title, end in ends.items()
            }
            contact_sheet(f"{name}: mean IoU of an image over its classes", sections, legend).save(folder / f"{name}.png")


def _entry(row: Any, classes: Classes, label_maps: tuple[Path, ...], name: str, miou: float) -> tuple[str, list[Image.Image]]:
    """Return the caption and the pictures of one image."""
    image = read_image(row.path)
    truth = read_mask(row.mask_path, row.path, (row.height, row.width), classes)
    label_map = read_label_map(label_maps, name, row.image_id)
    return f"{row.image_id}: {miou:.2f}", [image, *(overlay(image, labels, classes.colours) for labels in (truth, label_map))]
