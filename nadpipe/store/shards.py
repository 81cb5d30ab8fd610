"""Shards of a data set: opened together, read block by block."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nadpipe.errors import NadpipeError
from nadpipe.store.arrays import ZarrStore, open_zarr
from nadpipe.store.schema import StoreKind
from nadpipe.store.stamp import Stamp


def open_shards(paths: Sequence[Path], kind: StoreKind, model: Stamp | None = None) -> list[ZarrStore]:
    """Open all shards of a data set, in order.

    model: expected model; by default that of the first shard. Raises NadpipeError if a shard is missing, given twice, or of
    another model or data set.
    """
    model = model or open_zarr(paths[0], kind).stamp
    stores = sorted((open_zarr(path, kind, model) for path in paths), key=lambda store: store.attributes["shard"])
    numbers = [store.attributes["shard"] for store in stores]
    shards = stores[0].attributes["shards"]
    if numbers != list(range(shards)):
        raise NadpipeError(f"{stores[0].path}: got shards {numbers}, expected 0 to {shards - 1}; give each shard once")
    for store in stores[1:]:
        if store.attributes["images"] != stores[0].attributes["images"]:
            raise NadpipeError(f"{store.path}: has other images than {stores[0].path}; give shards of one data set")
    return stores


def blocks(stores: Sequence[ZarrStore], *names: str) -> Iterator[tuple[Tensor, ...]]:
    """Yield the named arrays of all views in order, in blocks of the stores' shard size."""
    for store in stores:
        step = _block_size(store, names[0])
        for start in range(0, store[names[0]].shape[0], step):
            yield tuple(store.tensor(name, slice(start, start + step)) for name in names)


def count_blocks(stores: Sequence[ZarrStore], name: str) -> int:
    """Return the number of blocks that `blocks` yields."""
    return sum(-(-store[name].shape[0] // _block_size(store, name)) for store in stores)


def _block_size(store: ZarrStore, name: str) -> int:
    shards = store[name].shards
    assert shards is not None
    return shards[0]


def join(stores: Sequence[ZarrStore], name: str) -> np.ndarray:
    """Read an array of all shards, joined along its first axis, the views."""
    return np.concatenate([store.read(name) for store in stores])


def head_coefficients(stores: Sequence[ZarrStore], head: int) -> Tensor:
    """Read the coefficients of one head in all views, as float32 (view, neuron)."""
    return torch.from_numpy(np.concatenate([store.read("coefficient", (slice(None), head)) for store in stores])).float()
