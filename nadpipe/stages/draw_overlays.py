"""Draw images with their masks and the label maps of every method, side by side."""

from pathlib import Path

import numpy as np
from PIL import Image

from nadpipe.artifacts import read_parquet, whole
from nadpipe.errors import NadpipeError
from nadpipe.pictures import class_colours, overlay, panel, read_mask
from nadpipe.progress import track
from nadpipe.views import read_image


def draw_overlays(
    images: Path,
    labels: tuple[Path, ...],
    classes: tuple[str, ...],
    output: Path,
    methods: tuple[str, ...] = ("nad",),
    count: int = 12,
    ignore: int = 255,
) -> None:
    """Write one picture an image: the image, its mask and each method's label map over it, with a legend.

    Args:
        images: Manifest with masks.
        labels: Folders of label maps, all shards.
        classes: Class names in the order of the mask values.
        output: Folder of the pictures.
        methods: Methods to show.
        count: Images to draw, evenly spread over the data set.
        ignore: Mask value that does not count.
    """
    manifest = read_parquet(images, "images")
    maps = {path.relative_to(folder): path for folder in labels for path in folder.glob("*/*.png")}
    colours = class_colours(len(classes))
    chosen = manifest.iloc[np.unique(np.linspace(0, len(manifest) - 1, min(count, len(manifest))).round().astype(int))]
    with whole(output) as folder:
        folder.mkdir()
        for row in track(list(chosen.itertuples()), "drawing overlays", "image"):
            image = read_image(row.path)
            truth = read_mask(row.mask_path, (row.height, row.width), len(classes), ignore)
            shown, seen = {"image": image, "truth": overlay(image, truth, len(classes))}, set(np.unique(truth))
            for method in methods:
                name = Path(method) / f"{row.image_id:06d}.png"
                if name not in maps:
                    raise NadpipeError(f"{name}: label map is in none of the given folders; run segment-images for its shard")
                label = np.asarray(Image.open(maps[name]))
                shown[method] = overlay(image, label, len(classes))
                seen |= set(np.unique(label))
            legend = {classes[at]: tuple(map(int, colours[at])) for at in sorted(seen) if at < len(classes)}
            panel(shown, legend).save(folder / f"{row.image_id:06d}.png")
