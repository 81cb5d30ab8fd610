"""Measure the share of each image, and of each data set, that segmentation methods give to each class."""

from pathlib import Path

import numpy as np
import pandas as pd

from nadpipe.circuit import metrics
from nadpipe.data.class_tables import read_classes
from nadpipe.progress import track
from nadpipe.store.kinds.segmentation import CONFUSION, IMAGE_SHARES, SHARES
from nadpipe.store.tables import create_parquet, read_parquet, read_stamp, write_csv


def measure_shares(confusion: tuple[Path, ...], classes: tuple[Path, ...], output: Path, output_images: Path) -> None:
    """Write the mean share of each class per data set and method, and the shares in every image.

    Where there are masks, the summary also has the shares in the masks and the mean absolute error of the methods' shares.

    Args:
        confusion: Confusions of all shards of all data sets.
        classes: Classes of each data set.
        output: CSV table, one row per data set, method and class.
        output_images: Parquet table, one row per image, method and class with pixels.
    """
    model = read_stamp(confusion[0], CONFUSION)
    cells = pd.concat([read_parquet(path, CONFUSION, model) for path in confusion], ignore_index=True)
    summaries = []
    with create_parquet(output_images, IMAGE_SHARES, model.made_by(__name__)) as add:
        for dataset, dataset_classes in track([read_classes(path) for path in classes], "measuring shares", "data set"):
            titles = np.array(dataset_classes.titles, dtype=object)
            for (method, k), rows in cells[cells["dataset"] == dataset].groupby(["method", "k"], sort=False, dropna=False):
                key = {"dataset": dataset, "method": method, "k": k}
                images = np.unique(rows["image_id"])
                pixels = metrics.predicted_pixels(rows, images, len(titles))
                shares = metrics.shares(pixels)
                image, index = pixels.nonzero()
                found = {"image_id": images[image], "class": titles[index], "pixels": pixels[image, index]}
                add(pd.DataFrame({**found, "share": shares[image, index]}).assign(**key).astype({"k": "Int64"}))
                columns = {"class": titles, "share": shares.mean(0), "found": (pixels > 0).sum(0), "images": len(images)}
                mask_share, error = metrics.compare_shares(metrics.class_totals(rows, images, len(titles)))
                summaries.append(pd.DataFrame({**key, **columns, "mask_share": mask_share, "error": error}))
    write_csv(output, SHARES, pd.concat(summaries).astype({"k": "Int64"}))
