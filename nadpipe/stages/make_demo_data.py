"""Draw one data set of the demo: images, masks and a table."""

from pathlib import Path

import pandas as pd
from PIL import Image

from nadpipe.demo.data import SETS, YEARS, draw_set
from nadpipe.errors import NadpipeError
from nadpipe.progress import track
from nadpipe.store.atomic import atomic_path
from nadpipe.store.label_maps import indexed_image


def make_demo_data(name: str, images: int, seed: int, output_folder: Path, output_table: Path) -> None:
    """Draw scenes. Write images/*.jpg and masks/*.png to a folder, and a table next to it.

    Args:
        name: Name of the set: discovery, segmentation, monitoring or methods.
        images: Number of images; for monitoring, of each year.
        seed: Random seed.
        output_folder: Folder for the images and masks.
        output_table: CSV table with one row per image; paths are relative to the table.
    """
    if name not in SETS:
        raise NadpipeError(f"--name: no set {name}; use one of {', '.join(SETS)}")
    total = images * (len(YEARS) if name == "monitoring" else 1)
    rows = []
    with atomic_path(output_folder) as folder:
        for subfolder in ("images", "masks"):
            (folder / subfolder).mkdir(parents=True)
        for number, (scene, row) in enumerate(track(draw_set(name, images, seed), f"drawing {name}", "image", total)):
            image, mask = f"images/{number:06d}.jpg", f"masks/{number:06d}.png"
            Image.fromarray(scene.image).save(folder / image, quality=94, subsampling=0)
            indexed_image(scene.mask).save(folder / mask)
            relative = output_folder.relative_to(output_table.parent)
            rows.append({"path": relative / image, "mask_path": relative / mask, **row})
    with atomic_path(output_table) as table:
        pd.DataFrame(rows).to_csv(table, index=False, lineterminator="\n")
