"""Draw one set of the demo world: images, masks and a table."""

from pathlib import Path

import pandas as pd
from PIL import Image

from nadpipe.artifacts import whole
from nadpipe.demo.data import SETS, YEARS, draw_set
from nadpipe.errors import NadpipeError
from nadpipe.pictures import indexed_image
from nadpipe.progress import track


def make_demo_data(name: str, images: int, seed: int, output_folder: Path, output_table: Path) -> None:
    """Draw a set of scenes and write images/*.jpg and masks/*.png into a folder, and the table beside it.

    Args:
        name: discovery, segmentation or monitoring.
        images: Number of images; of each year for monitoring.
        seed: Seed of everything random.
        output_folder: Folder of the images and masks.
        output_table: CSV table, one row an image, paths relative to its own folder.
    """
    if name not in SETS:
        raise NadpipeError(f"--name: no set {name}; there are {', '.join(SETS)}")
    total = images * (len(YEARS) if name == "monitoring" else 1)
    rows = []
    with whole(output_folder) as folder:
        for part in ("images", "masks"):
            (folder / part).mkdir(parents=True)
        for number, (scene, row) in enumerate(track(draw_set(name, images, seed), f"drawing {name}", "image", total)):
            image, mask = f"images/{number:06d}.jpg", f"masks/{number:06d}.png"
            Image.fromarray(scene.image).save(folder / image, quality=94, subsampling=0)
            indexed_image(scene.mask).save(folder / mask)
            inside = output_folder.relative_to(output_table.parent)
            rows.append({"path": inside / image, "mask_path": inside / mask, **row})
    with whole(output_table) as table:
        pd.DataFrame(rows).to_csv(table, index=False, lineterminator="\n")
