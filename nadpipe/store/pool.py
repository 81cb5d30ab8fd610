"""The exported attention pool: the readout, and the weights that attention is computed from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nadpipe.circuit.attention import AttentionPool
from nadpipe.store.arrays import create_zarr, open_zarr
from nadpipe.store.kinds.model import READOUT
from nadpipe.store.readout import load_readout
from nadpipe.store.stamp import Stamp

_ATTENTION = ("query", "query_bias", "key", "key_bias", "positional_embedding")
_READOUT = ("value", "value_bias", "output", "output_bias", "layer")


def write_pool(path: Path, pool: AttentionPool, stamp: Stamp, attributes: Mapping[str, Any]) -> None:
    """Write an attention pool and its readout."""
    readout = pool.readout
    arrays: dict[str, Tensor] = {
        **{name: getattr(readout, name) for name in _READOUT},
        **{name: getattr(pool, name) for name in _ATTENTION},
    }
    sizes = {
        "head": pool.heads,
        "width": readout.width,
        "stream": readout.value.shape[2],
        "embed": pool.embed,
        "token": pool.tokens,
    }
    with create_zarr(path, READOUT, stamp, sizes, attributes=attributes) as store:
        for name, values in arrays.items():
            store.write(name, values)


def read_pool(path: Path) -> tuple[AttentionPool, Stamp]:
    """Read an attention pool and the stamp of its model."""
    store = open_zarr(path, READOUT)
    return AttentionPool(readout=load_readout(store), **{name: store.tensor(name) for name in _ATTENTION}), store.stamp
