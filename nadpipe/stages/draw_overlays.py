"""Draw images with their masks and the label maps of every method, side by side."""

from pathlib import Path

import numpy as np

from nadpipe.artifacts import read_images, whole
from nadpipe.class_tables import read_classes
from nadpipe.classes import read_mask
from nadpipe.inputs import read_label_map
from nadpipe.pictures import overlay, panel
from nadpipe.progress import track
from nadpipe.views import read_image


def draw_overlays(
    images: Path,
    classes: Path,
    labels: tuple[Path, ...],
    output: Path,
    count: int = 12,
    copy: tuple[str, str] | None = None,
) -> None:
    """Write one picture an image: the image, its mask and each method's label map over it, with a legend.

    Args:
        images: Manifest with masks.
        classes: Classes of the data set.
        labels: Folders of label maps, all shards.
        output: Folder of the pictures.
        count: Images to draw, evenly spread over the data set.
        copy: The folder that the manifest says its images lie in, and where a copy of it is, if they are read from a copy.
    """
    manifest = read_images(images, copy)
    _, known = read_classes(classes)
    names = sorted({folder.name for shard in labels for folder in shard.iterdir() if not folder.name.startswith(".")})
    chosen = manifest.iloc[np.unique(np.linspace(0, len(manifest) - 1, min(count, len(manifest))).round().astype(int))]
    with whole(output) as folder:
        folder.mkdir()
        for row in track(list(chosen.itertuples()), "drawing overlays", "image"):
            image = read_image(row.path)
            maps = {"truth": read_mask(row.mask_path, row.path, (row.height, row.width), known)}
            maps |= {name: read_label_map(labels, name, row.image_id) for name in names}
            shown = {"image": image} | {name: overlay(image, label, known.colours) for name, label in maps.items()}
            seen = np.unique(np.concatenate([np.unique(label) for label in maps.values()]))
            legend = {known.titles[at]: known.colours[at] for at in seen if at >= 0}
            panel(shown, legend).save(folder / f"{row.image_id:06d}.png")
