"""Copy the features of evenly spaced images, so that registers are measured without reading all features."""

from pathlib import Path

import numpy as np

from nadpipe.data.manifest import content_fingerprint
from nadpipe.errors import NadpipeError
from nadpipe.progress import track
from nadpipe.store.arrays import create_zarr, open_zarr
from nadpipe.store.kinds.features import FEATURES, SAMPLED_VIEWS
from nadpipe.store.manifest import read_images


def sample_views(images: Path, features: Path, output: Path, number: int = 200) -> None:
    """Write activations, and recorded attention, of one shard's views of the sampled images. A shard may have none.

    Args:
        images: Manifest of the data set.
        features: Features of the shard.
        output: Zarr store.
        number: Number of images, evenly spaced over the data set.
    """
    manifest = read_images(images)
    source = open_zarr(features, FEATURES)
    if source.attributes["images"] != content_fingerprint(manifest):
        raise NadpipeError(f"{features}: has other images than {images}; give the features of that manifest")
    spaced = np.linspace(0, len(manifest) - 1, min(number, len(manifest))).round().astype(int)
    image_id = source.read("image_id")
    rows = np.flatnonzero(np.isin(image_id, manifest["image_id"].to_numpy()[spaced]))
    names = [name for name in ("activation", "attention") if name in source]
    attributes = {name: source.attributes[name] for name in ("shard", "shards", "images")}
    dtype = {"activation": str(source["activation"].dtype)}
    axes = {axis for name in names for axis in zip(FEATURES.arrays[name].axes, source[name].shape, strict=True)}
    sizes, stamp = dict(axes) | {"view": len(rows)}, source.stamp.made_by(__name__)
    omit = [name for name in SAMPLED_VIEWS.optional if name not in names]
    with create_zarr(output, SAMPLED_VIEWS, stamp, sizes, dtype, attributes=attributes, omit=omit) as store:
        store.write("image_id", image_id[rows])
        for row in track(rows, "copying", "view", len(rows)):
            store.append(**{name: source.read(name, slice(row, row + 1)) for name in names})
