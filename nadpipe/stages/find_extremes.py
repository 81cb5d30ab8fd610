"""Find the images at both ends of every pair's coefficients, for the explorer."""

from pathlib import Path

import numpy as np
import torch

from nadpipe.circuit import activity
from nadpipe.progress import track
from nadpipe.store.arrays import create_zarr, open_zarr
from nadpipe.store.kinds.explorer import EXTREMES
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.kinds.units import DIRECTIONS
from nadpipe.store.shards import head_coefficients, join, open_shards

_BINS = 24


def find_extremes(contributions: tuple[Path, ...], directions: Path, output: Path, shown: int = 4) -> None:
    """Write the views with the largest and the smallest coefficients of every pair along its direction, and histograms.

    Args:
        contributions: Contributions of all shards.
        directions: Directions of the pairs, for their signs.
        output: Zarr store.
        shown: Views at each end of a pair.
    """
    stores = open_shards(contributions, CONTRIBUTIONS)
    model = stores[0].stamp
    sign = open_zarr(directions, DIRECTIONS["pair"], model).tensor("sign")
    image_id = join(stores, "image_id")
    counts = [store["image_id"].shape[0] for store in stores]
    heads, neurons = sign.shape
    sizes = {"view": len(image_id), "head": heads, "neuron": neurons, "shown": 2 * min(shown, len(image_id))}
    sizes |= {"bin": _BINS, "end": 2}
    attributes = {"first_views": [0, *np.cumsum(counts[:-1]).tolist()], "images": stores[0].attributes["images"]}
    with create_zarr(output, EXTREMES, model.made_by(__name__), sizes, attributes=attributes) as store:
        store.write("image_id", image_id)
        for head in track(range(heads), "ranking images", "head"):
            value = head_coefficients(stores, head) * sign[head]
            row = activity.end_images(value, shown)
            low, high = value.amin(0), value.amax(0)
            histogram = activity.histogram(value, low, high, _BINS)
            ends = torch.stack([low, high], dim=1)
            store.append(row=row[None], value=value.T.gather(1, row)[None], count=histogram[None], range=ends[None])
