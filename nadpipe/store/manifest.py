"""Manifests: the images of a data set."""

from pathlib import Path

import pandas as pd

from nadpipe.errors import NadpipeError
from nadpipe.store.kinds.images import IMAGES
from nadpipe.store.tables import read_parquet


def read_images(path: Path, copy: tuple[str, str] | None = None) -> pd.DataFrame:
    """Read the images of a manifest that are used, in order of image_id (0, 1, …).

    copy: the folder that the paths name, and the folder of a copy. Paths are then those of the copy.
    """
    images = read_parquet(path, IMAGES, filters=[("image_id", ">=", 0)])
    return images if copy is None else move_paths(images, *copy)


def move_paths(images: pd.DataFrame, here: str, there: str) -> pd.DataFrame:
    """Replace the folder of images and masks. Raises NadpipeError for paths outside the folder."""

    def moved(path: str | None) -> str | None:
        if path is not None and not path.startswith(f"{here}/"):
            raise NadpipeError(f"{path}: is not in {here}; keep all images and masks of a copied data set in one folder")
        return path and there + path.removeprefix(here)

    columns = {name: [moved(path) for path in images[name]] for name in ("path", "mask_path")}
    columns["problem"] = [problem and problem.replace(here, there) for problem in images["problem"]]
    return images.assign(**{name: pd.Series(values, images.index, dtype=object) for name, values in columns.items()})
