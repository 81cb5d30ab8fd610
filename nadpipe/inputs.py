"""Artifacts as the numerics take them: the attention pool, selected pairs, and the views of all shards in blocks."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from nadpipe.artifacts import ZARR, Stamp, ZarrStore, open_zarr
from nadpipe.attnpool import AttentionPool
from nadpipe.directions import Extremes, Mean
from nadpipe.errors import NadpipeError
from nadpipe.texts import Selection


def read_pool(path: Path) -> tuple[AttentionPool, Stamp]:
    """The attention pool of an exported store, and the model that everything else of a run must belong to."""
    store = open_zarr(path, "attention pool")
    weights = {name: torch.from_numpy(store[name][:]) for name in ZARR["attention pool"]}
    return AttentionPool(heads=store.attributes["heads"], **weights), store.stamp


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The pairs selected for each text of a set, and the centred texts themselves."""

    texts: list[str]
    query: Float[Tensor, "text embed"]
    pairs: Selection


def read_selection(path: Path, model: Stamp) -> Chosen:
    """A selection as `nadpipe select-pairs` writes it."""
    store = open_zarr(path, "selection", model)
    arrays = {name: torch.from_numpy(store[name][:]) for name in ("cosine", "head", "neuron")}
    return Chosen(store.texts(), torch.from_numpy(store["query"][:]), Selection(**arrays))


def read_label_map(folders: Sequence[Path], name: str, image_id: int) -> Int[np.ndarray, "height width"]:
    """A method's label map of an image, from whichever shard's folder has it. Raises NadpipeError if none has."""
    inside = Path(name) / f"{image_id:06d}.png"
    path = next((folder / inside for folder in folders if (folder / inside).is_file()), None)
    if path is None:
        raise NadpipeError(f"{inside}: label map is in none of the given folders; run segment-images for its shard")
    with Image.open(path) as image:
        return np.asarray(image).astype(np.int64)


def open_shards(paths: Sequence[Path], kind: str, model: Stamp) -> list[ZarrStore]:
    """All shards of a data set in order. Raises NadpipeError when one is missing, doubled or of another model."""
    stores = sorted((open_zarr(path, kind, model) for path in paths), key=lambda store: store.attributes["shard"])
    numbers = [store.attributes["shard"] for store in stores]
    if numbers != list(range(stores[0].attributes["shards"])):
        raise NadpipeError(
            f"{stores[0].path}: shards {numbers} were given, expected 0 to {stores[0].attributes['shards'] - 1}, each once"
        )
    for store in stores[1:]:
        if store.attributes["images"] != stores[0].attributes["images"]:
            raise NadpipeError(f"{store.path}: is a shard of other images than {stores[0].path}; give shards of one data set")
    return stores


def merged_moments(stores: Sequence[ZarrStore]) -> Extremes:
    """What `nadpipe accumulate-pairs` found in each shard, merged over all views. Raises NadpipeError for shards that kept
    other numbers of images."""
    merged = Extremes(stores[0].attributes["top_images"])
    for store in stores:
        if store.attributes["top_images"] != merged.keep:
            kept = f"top_images {store.attributes['top_images']}, {stores[0].path} {merged.keep}"
            raise NadpipeError(f"{store.path}: was made with {kept}; accumulate all shards with the same")
        part = Extremes(merged.keep)
        part.mean = Mean(store.attributes["views"], torch.from_numpy(store["sum"][:]))
        part.square = Mean(store.attributes["views"], torch.from_numpy(store["square_sum"][:]))
        part.extreme = torch.from_numpy(store["extreme"][:])
        merged.merge(part)
    return merged


def mean_over_shards(stores: Sequence[ZarrStore], name: str) -> Tensor:
    """Mean over all views of an array that holds the mean over its shard's views."""
    views = [store["image_id"].shape[0] for store in stores]
    mean = np.average([store[name][:] for store in stores], axis=0, weights=views)
    return torch.from_numpy(mean.astype(np.float32))


def blocks(stores: Sequence[ZarrStore], *names: str) -> Iterator[tuple[Tensor, ...]]:
    """The named arrays of all views in order, in blocks of the size that the stores are sharded by."""
    for store in stores:
        views = store[names[0]].shape[0]
        step = store[names[0]].shards[0]
        for start in range(0, views, step):
            yield tuple(torch.from_numpy(store[name][start : start + step]) for name in names)


def count_blocks(stores: Sequence[ZarrStore], name: str) -> int:
    """How many blocks `blocks` yields."""
    return sum(-(-store[name].shape[0] // store[name].shards[0]) for store in stores)
