"""Draw images next to their masks, if there are any, and the label maps of every method."""

from pathlib import Path

import numpy as np

from nadpipe.data.class_tables import read_classes
from nadpipe.data.masks import read_mask
from nadpipe.data.views import read_image
from nadpipe.pages.pictures import overlay, panel
from nadpipe.progress import track
from nadpipe.store.atomic import atomic_path
from nadpipe.store.label_maps import read_label_map
from nadpipe.store.manifest import read_images


def draw_overlays(
    images: Path,
    classes: Path,
    label_maps: tuple[Path, ...],
    output: Path,
    count: int = 12,
    copy: tuple[str, str] | None = None,
) -> None:
    """Write one picture per image: the image, then overlays of its mask, if any, and of each label map, and a legend.

    Args:
        images: Manifest.
        classes: Classes of the data set.
        label_maps: Folders of label maps, all shards.
        output: Folder of the pictures.
        count: Number of images to draw, evenly spread over the data set.
        copy: Folder of the images as the manifest names it, and the folder of the copy to read instead.
    """
    manifest = read_images(images, copy)
    _, dataset_classes = read_classes(classes)
    methods = sorted({folder.name for shard in label_maps for folder in shard.iterdir() if not folder.name.startswith(".")})
    positions = np.unique(np.linspace(0, len(manifest) - 1, min(count, len(manifest))).round().astype(int))
    with atomic_path(output) as folder:
        folder.mkdir()
        for row in track(list(manifest.iloc[positions].itertuples()), "drawing overlays", "image"):
            image, maps = read_image(row.path, row.sha256), {}
            if row.mask_path is not None:
                size, checksums = (row.height, row.width), (row.mask_sha256, row.sha256)
                maps["truth"] = read_mask(row.mask_path, row.path, size, dataset_classes, checksums)
            maps |= {method: read_label_map(label_maps, method, row.image_id) for method in methods}
            pictures = {"image": image}
            pictures |= {name: overlay(image, label_map, dataset_classes.colours) for name, label_map in maps.items()}
            present = np.unique(np.concatenate([np.unique(label_map) for label_map in maps.values()]))
            legend = {dataset_classes.titles[index]: dataset_classes.colours[index] for index in present if index >= 0}
            panel(pictures, legend).save(folder / f"{row.image_id:06d}.png")
