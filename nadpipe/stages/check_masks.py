"""Read all masks of a data set and count the pixels of each class."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from nadpipe.circuit.label_values import IGNORED
from nadpipe.data.class_tables import read_classes
from nadpipe.data.classes import Classes
from nadpipe.data.masks import read_mask
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint
from nadpipe.progress import track
from nadpipe.store.kinds.images import MASKS
from nadpipe.store.manifest import read_images
from nadpipe.store.stamp import Stamp
from nadpipe.store.tables import write_parquet

_REPORTED = 10  # largest number of masks in a message


def check_masks(images: Path, classes: Path, output: Path, copy: tuple[str, str] | None = None, threads: int = 1) -> None:
    """Write how many pixels and images have each class. A mask with a value without class is an error.

    The workflow does this before it encodes an image. If no image has a mask, all counts are 0.

    Args:
        images: Manifest with masks.
        classes: Classes of the data set.
        output: Parquet table: one row per class, and one for ignored pixels.
        copy: Folder of the images as the manifest names it, and the folder of the copy to read instead.
        threads: Masks read at the same time.
    """
    rows = list(read_images(images, copy).itertuples())
    dataset, class_list = read_classes(classes)
    masked = [row for row in rows if row.mask_path is not None]
    problems = [
        f"image {row.image_id} ({row.path}) has no mask; add it or remove the image" for row in rows if not row.mask_path
    ]
    problems = [f"{images}: {problem}" for problem in problems] if masked else []
    with ThreadPoolExecutor(threads) as pool:
        results = pool.map(lambda row: _count(row, class_list), masked)
        read = list(track(results, "reading masks", "mask", len(masked)))
    problems += [str(result) for result in read if isinstance(result, NadpipeError)]
    if problems:
        summary = f"{len(problems)} of {len(rows)} masks cannot be used; correct them, or the classes of {dataset}"
        raise NadpipeError("\n".join([summary, *problems[:_REPORTED]] if len(problems) > 1 else problems))
    number = len(class_list.titles)
    counts = [result for result in read if not isinstance(result, NadpipeError)]
    pixels = np.stack(counts) if counts else np.zeros((1, number + 1), int)
    table = pd.DataFrame(
        {
            "dataset": dataset,
            "class": [*range(number), IGNORED],
            "title": pd.Series([*class_list.titles, None], dtype=object),
            "pixels": pixels.sum(0),
            "images": (pixels > 0).sum(0),
        }
    )
    write_parquet(output, MASKS, table, Stamp(code=code_fingerprint(__name__)))


def _count(row: Any, classes: Classes) -> Int[np.ndarray, " class"] | NadpipeError:
    """Return the number of pixels of each class and of ignored pixels (last), or the error that makes a mask invalid."""
    try:
        mask = read_mask(row.mask_path, row.path, (row.height, row.width), classes, (row.mask_sha256, row.sha256))
    except NadpipeError as error:
        return error
    number = len(classes.titles)
    return np.bincount(np.where(mask == IGNORED, number, mask).ravel(), minlength=number + 1)
