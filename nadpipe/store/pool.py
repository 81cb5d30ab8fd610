"""The exported attention pool: the readout, and the weights that attention is computed from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nadpipe.circuit.attention import AttentionPool
from nadpipe.errors import NadpipeError
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.model import READOUT
from nadpipe.store.readout import load_readout, write_readout
from nadpipe.store.stamp import Stamp

_ATTENTION = ("query", "query_bias", "key", "key_bias", "positional_embedding")


def write_pool(path: Path, pool: AttentionPool, stamp: Stamp, attributes: Mapping[str, Any]) -> None:
    """Write an attention pool and its readout."""
    write_readout(path, pool.readout, stamp, attributes, {name: getattr(pool, name) for name in _ATTENTION})


def read_pool(path: Path) -> tuple[AttentionPool, Stamp]:
    """Read an attention pool and the stamp of its model. Raises NadpipeError for a readout without attention weights."""
    store = open_zarr(path, READOUT)
    missing = [name for name in _ATTENTION if name not in store]
    if missing:
        raise NadpipeError(f"{path}: has no attention weights ({missing[0]} is missing); use a model with an attention pool")
    return AttentionPool(readout=load_readout(store), **{name: store.tensor(name) for name in _ATTENTION}), store.stamp
