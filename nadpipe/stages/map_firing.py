"""Map where pairs fire in the extreme images of one shard, for the explorer."""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from nadpipe.circuit import activity
from nadpipe.circuit.attention import view_trace
from nadpipe.circuit.readout import token_weights
from nadpipe.errors import NadpipeError
from nadpipe.progress import track
from nadpipe.store.arrays import create_zarr, open_zarr
from nadpipe.store.explorer import read_extremes
from nadpipe.store.kinds.explorer import FIRING
from nadpipe.store.kinds.features import CONTRIBUTIONS, VIEW_TABLE
from nadpipe.store.kinds.units import DIRECTIONS
from nadpipe.store.pool import open_features, read_features, read_weights


def map_firing(features: Path, contributions: Path, extremes: Path, directions: Path, readout: Path, output: Path) -> None:
    """Write maps of where every pair fires along its direction in its extreme views. Each view is read once.

    Args:
        features: Features of the shard.
        contributions: Contributions of the shard, for the attention.
        extremes: Extreme views of every pair, over all shards.
        directions: Directions of the pairs, for their signs.
        readout: Exported readout.
        output: Zarr store.
    """
    weights = read_weights(readout)
    model = weights.model
    source, attended = open_features(features, weights), open_zarr(contributions, CONTRIBUTIONS, model)
    found = read_extremes(extremes, model)
    sign = open_zarr(directions, DIRECTIONS["pair"], model).tensor("sign")
    attributes = {name: source.attributes[name] for name in ("shard", "shards", "images")}
    same_shard = attributes == {name: attended.attributes[name] for name in attributes}
    if not same_shard or (attributes["shards"], attributes["images"]) != (len(found.first_views), found.images):
        raise NadpipeError(
            f"{features}: has other images than {contributions} or {extremes}; give the same shard of one data set"
        )
    first = found.first_views[attributes["shard"]]
    position = np.argsort(found.views, axis=None, kind="stable")  # view by view
    view = found.views.ravel()[position] - first
    inside = (view >= 0) & (view < source["image_id"].shape[0])
    position, view = position[inside], view[inside]
    rows, starts = np.unique(view, return_index=True)
    sizes = {"map": len(position), "token": source["activation"].shape[1], "view": len(rows)}
    dtype = {"step": "int8"}
    with create_zarr(output, FIRING, model.made_by(__name__), sizes, dtype, attributes=attributes) as store:
        store.write("position", position)
        for name in VIEW_TABLE:
            store.write(name, source.read(name)[rows])
        slots = np.split(position, starts[1:]) if len(rows) else []
        for row, of_view in track(zip(rows, slots, strict=True), "mapping pairs", "image", len(rows)):
            head, neuron, _ = map(torch.from_numpy, np.unravel_index(of_view, found.views.shape))
            trace = view_trace(read_features(source, slice(row, row + 1)), weights.pool)
            trace = dataclasses.replace(trace, attention=attended.tensor("attention", slice(row, row + 1)).float())
            weight = token_weights(trace, weights.readout)[0]
            maps = activity.firing(weight, trace.activation[0], head, neuron, weights.prefix)
            step, scale = activity.as_bytes(maps * sign[head, neuron, None].float())
            store.append(step=step, scale=scale)
