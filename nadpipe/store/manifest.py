"""Manifests: the images of a data set."""

from pathlib import Path

import pandas as pd

from nadpipe.errors import NadpipeError
from nadpipe.store.kinds.images import IMAGES
from nadpipe.store.tables import read_parquet


def read_images(path: Path, copy: tuple[str, str] | None = None) -> pd.DataFrame:
    """Read the rows of a manifest in order of image_id (0, 1, …), without skipped images.

    copy: the folder of the images as the manifest names it, and the folder of a copy. The returned paths are in the copy.
    """
    images = read_parquet(path, IMAGES, filters=[("image_id", ">=", 0)])
    return images if copy is None else move_paths(images, *copy)


def move_paths(images: pd.DataFrame, old: str, new: str) -> pd.DataFrame:
    """Replace the folder `old` by `new` in the paths of images and masks. Raises NadpipeError for a path outside `old`."""

    def moved(path: str | None) -> str | None:
        if path is not None and not path.startswith(f"{old}/"):
            raise NadpipeError(f"{path}: is not in {old}; keep all images and masks of a copied data set in one folder")
        return path and new + path.removeprefix(old)

    columns = {name: [moved(path) for path in images[name]] for name in ("path", "mask_path")}
    columns["problem"] = [problem and problem.replace(old, new) for problem in images["problem"]]
    return images.assign(**{name: pd.Series(values, images.index, dtype=object) for name, values in columns.items()})
