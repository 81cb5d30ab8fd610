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
    """Write the activations of one shard's views of the sampled images. A shard may have none.

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
    _, token, neuron = source["activation"].shape
    attributes = {name: source.attributes[name] for name in ("shard", "shards", "images")}
    dtype = {"activation": str(source["activation"].dtype)}
    sizes = {"view": len(rows), "token": token, "neuron": neuron}
    with create_zarr(output, SAMPLED_VIEWS, source.stamp.made_by(__name__), sizes, dtype, attributes=attributes) as store:
        store.write("image_id", image_id[rows])
        for row in track(rows, "copying", "view", len(rows)):
            store.append(activation=source.read("activation", slice(row, row + 1)))
