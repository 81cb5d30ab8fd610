"""Read the explorer's data on each pair: its extreme views, and maps of where it fires in them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from nadpipe.errors import NadpipeError
from nadpipe.store.arrays import ZarrStore, open_zarr
from nadpipe.store.kinds.explorer import EXTREMES
from nadpipe.store.shards import join
from nadpipe.store.stamp import Stamp


@dataclasses.dataclass(frozen=True)
class Extremes:
    """The views with the most extreme coefficients of every pair, signed along the pair's direction.

    Attributes:
        views: Row numbers of the views: the largest coefficients, then the smallest, most extreme first.
        values: Coefficients of these views.
        counts: Histogram of the coefficients of all views.
        range: Smallest and largest coefficient.
        image_id: Image of every view of the data set.
        first_views: Row number of the first view of each shard.
        images: Fingerprint of the data set's images.
    """

    views: Int[np.ndarray, "head neuron shown"]
    values: Float[np.ndarray, "head neuron shown"]
    counts: Int[np.ndarray, "head neuron bin"]
    range: Float[np.ndarray, "head neuron 2"]
    image_id: Int[np.ndarray, " view"]
    first_views: tuple[int, ...]
    images: str


@dataclasses.dataclass(frozen=True)
class FiringMaps:
    """Maps of where pairs fire in their extreme views, in steps of 1/127 of each map's scale."""

    steps: Int8[Tensor, "head neuron shown spatial"]
    scale: Float[Tensor, "head neuron shown"]


def read_extremes(path: Path, model: Stamp) -> Extremes:
    """Read the extreme views of every pair. Raises NadpipeError if they belong to another model."""
    store = open_zarr(path, EXTREMES, model)
    row, value, count, limits, image_id = (store.read(name) for name in ("row", "value", "count", "range", "image_id"))
    first_views = tuple(store.attributes["first_views"])
    return Extremes(row, value, count, limits, image_id, first_views, store.attributes["images"])


def join_maps(stores: Sequence[ZarrStore], extremes: Extremes) -> FiringMaps:
    """Join the maps of all shards. Raises NadpipeError if they are not those of the extremes."""
    position, shape = join(stores, "position"), extremes.views.shape
    complete = np.array_equal(np.sort(position), np.arange(extremes.views.size))
    if not complete or stores[0].attributes["images"] != extremes.images:
        raise NadpipeError(f"{stores[0].path}: maps of other extremes; map the firing of all shards with the same extremes")
    order = np.argsort(position)
    steps, scale = (torch.from_numpy(join(stores, name)[order]) for name in ("step", "scale"))
    return FiringMaps(steps.reshape(*shape, -1), scale.reshape(shape))
