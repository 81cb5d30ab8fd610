"""Draw the images that each method segments best and worst."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from nadpipe import metrics
from nadpipe.artifacts import read_images, read_parquet, whole
from nadpipe.class_tables import read_classes
from nadpipe.classes import Classes, read_mask
from nadpipe.inputs import read_label_map
from nadpipe.pictures import contact_sheet, overlay
from nadpipe.progress import track
from nadpipe.segmentation import Variant
from nadpipe.views import read_image


def draw_contact_sheets(
    images: Path,
    classes: Path,
    confusion: tuple[Path, ...],
    labels: tuple[Path, ...],
    output: Path,
    count: int = 6,
    copy: tuple[str, str] | None = None,
) -> None:
    """Write one sheet a method: the images with the largest and the smallest mean IoU over their own classes, each with its
    mask and label map.

    Args:
        images: Manifest with masks.
        classes: Classes of the data set.
        confusion: Confusions of all shards of the data set.
        labels: Folders of label maps, all shards.
        output: Folder of the sheets, <method>.png.
        count: Best, and worst, images on a sheet.
        copy: The folder that the manifest says its images lie in, and where a copy of it is, if they are read from a copy.
    """
    manifest = {row.image_id: row for row in read_images(images, copy).itertuples()}
    _, known = read_classes(classes)
    cells = pd.concat([read_parquet(path, "confusion") for path in confusion], ignore_index=True)
    with whole(output) as folder:
        folder.mkdir()
        for (method, k), part in track(
            list(cells.groupby(["method", "k"], sort=False, dropna=False)), "drawing sheets", "method"
        ):
            name = Variant(method, None if pd.isna(k) else int(k)).name
            found = np.unique(part["image_id"])
            miou = pd.Series(metrics.mean_iou(metrics.class_totals(part, found, len(known.titles))), found).dropna()
            ranked = miou.sort_values(ascending=False, kind="stable")
            shown = {"best": ranked.head(count), "worst": ranked.tail(count)[::-1]}
            sections = {
                title: [_entry(manifest[image_id], known, labels, name, value) for image_id, value in some.items()]
                for title, some in shown.items()
            }
            legend = dict(zip(known.titles, known.colours, strict=True))
            contact_sheet(f"{name}: mean IoU of an image over its classes", sections, legend).save(folder / f"{name}.png")


def _entry(row: Any, known: Classes, labels: tuple[Path, ...], name: str, value: float) -> tuple[str, list[Image.Image]]:
    """One image's caption and pictures."""
    image = read_image(row.path)
    truth = read_mask(row.mask_path, row.path, (row.height, row.width), known)
    label = read_label_map(labels, name, row.image_id)
    return f"{row.image_id}: {value:.2f}", [image, *(overlay(image, one, known.colours) for one in (truth, label))]
