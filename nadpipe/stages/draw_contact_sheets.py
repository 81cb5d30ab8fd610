"""Draw the images that each method segments best and worst."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Integer
from PIL import Image

from nadpipe.circuit import metrics
from nadpipe.circuit.segmentation import Variant
from nadpipe.data.class_tables import read_classes
from nadpipe.data.classes import Classes
from nadpipe.data.masks import read_mask
from nadpipe.data.views import read_image
from nadpipe.pages.pictures import ERROR_COLOURS, contact_sheet, error_map, overlay
from nadpipe.progress import track
from nadpipe.store.atomic import atomic_path
from nadpipe.store.kinds.segmentation import CONFUSION
from nadpipe.store.label_maps import read_label_map
from nadpipe.store.manifest import read_images
from nadpipe.store.tables import read_parquet

LabelMap = Integer[np.ndarray, "height width"]


def draw_contact_sheets(
    images: Path,
    classes: Path,
    confusion: tuple[Path, ...],
    label_maps: tuple[Path, ...],
    output: Path,
    count: int = 6,
    copy: tuple[str, str] | None = None,
) -> None:
    """Write one sheet per method: the images with the largest and the smallest mean IoU over the classes in their truth.

    Each image is shown with overlays of its mask and of the method's label map, and with a map of the wrong pixels.

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
    with atomic_path(output) as folder:
        folder.mkdir()
        for (method, k), rows in track(by_method, "drawing sheets", "method"):
            name = Variant(method, None if pd.isna(k) else int(k)).name
            scored = np.unique(rows["image_id"])
            totals = metrics.class_totals(rows, scored, len(dataset_classes.titles))
            scores = pd.DataFrame({"iou": metrics.mean_true_iou(totals), "accuracy": metrics.pixel_accuracy(totals)}, scored)
            ranked = scores.dropna().sort_values("iou", ascending=False, kind="stable")
            ends = {"best": ranked.head(count), "worst": ranked.tail(count)[::-1]}
            maps = {
                image: _label_maps(manifest[image], dataset_classes, label_maps, name)
                for image in pd.concat(ends.values()).index.unique()
            }
            sections = {
                end: [
                    (_caption(score), _pictures(manifest[score.Index], *maps[score.Index], dataset_classes))
                    for score in images_at_end.itertuples()
                ]
                for end, images_at_end in ends.items()
            }
            present = np.unique([index for pair in maps.values() for label_map in pair for index in np.unique(label_map)])
            legend = {dataset_classes.titles[index]: dataset_classes.colours[index] for index in present if index >= 0}
            title = f"{name}: images by mean IoU over the classes in the truth"
            contact_sheet(title, sections, legend | ERROR_COLOURS).save(folder / f"{name}.png")


def _label_maps(row: Any, classes: Classes, label_maps: tuple[Path, ...], name: str) -> tuple[LabelMap, LabelMap]:
    """Return the truth and the prediction of one image."""
    truth = read_mask(row.mask_path, row.path, (row.height, row.width), classes, (row.mask_sha256, row.sha256))
    return truth, read_label_map(label_maps, name, row.image_id)


def _caption(score: Any) -> str:
    return f"image {score.Index}: mean IoU {score.iou:.2f}, pixel accuracy {score.accuracy:.1%}"


def _pictures(row: Any, truth: LabelMap, predicted: LabelMap, classes: Classes) -> list[tuple[str, Image.Image]]:
    """Return the titled pictures of one image."""
    image = read_image(row.path, row.sha256)
    return [
        ("image", image),
        ("truth", overlay(image, truth, classes.colours)),
        ("prediction", overlay(image, predicted, classes.colours)),
        ("error", error_map(image, truth, predicted)),
    ]
