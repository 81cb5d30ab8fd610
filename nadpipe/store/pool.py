"""The exported weights of a tower: the readout, and the weights that attention is computed from, and features to trace."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nadpipe.circuit.attention import AttentionPool, at_grid
from nadpipe.circuit.readout import Readout
from nadpipe.errors import NadpipeError
from nadpipe.store.arrays import ZarrStore, open_zarr
from nadpipe.store.kinds.features import FEATURES, TRACED
from nadpipe.store.kinds.model import READOUT
from nadpipe.store.readout import load_readout, write_readout
from nadpipe.store.stamp import Stamp

_ATTENTION = ("query", "query_bias", "key", "key_bias", "positional_embedding")
_ROTARY = "frequency"


def write_pool(path: Path, pool: AttentionPool, stamp: Stamp, attributes: Mapping[str, Any]) -> None:
    """Write an attention pool and its readout."""
    write_weights(path, pool.readout, pool, stamp, {"grid": pool.grid, "tokens": pool.tokens, "block": 0, **attributes})


def write_weights(
    path: Path, readout: Readout, pool: AttentionPool | None, stamp: Stamp, attributes: Mapping[str, Any]
) -> None:
    """Write a readout and, if there is a pool, the weights of its attention.

    attributes: with grid, tokens and block (`Weights`).
    """
    weights = {} if pool is None else {name: getattr(pool, name) for name in (*_ATTENTION, _ROTARY)}
    attention = {name: values for name, values in weights.items() if values is not None}
    write_readout(path, readout, stamp, attributes, attention)


def read_pool(path: Path) -> tuple[AttentionPool, Stamp]:
    """Read an attention pool and the stamp of its model. Raises NadpipeError for a readout without attention weights."""
    weights = read_weights(path)
    if weights.pool is None:
        missing = next(name for name in _ATTENTION if name not in open_zarr(path, READOUT))
        raise NadpipeError(f"{path}: has no attention weights ({missing} is missing); use a model with an attention pool")
    return weights.pool, weights.model


@dataclasses.dataclass(frozen=True)
class Weights:
    """An exported readout with the weights of its attention, if the tower's attention follows from its activations.

    grid: side of the square of spatial tokens on the model's own images. prefix: number of tokens before them. block: block of
    the neurons.
    """

    readout: Readout
    pool: AttentionPool | None
    grid: int
    prefix: int
    block: int
    model: Stamp

    def pool_at(self, grid: int) -> AttentionPool | None:
        """Return the pool for views with another grid."""
        return None if self.pool is None else at_grid(self.pool, grid)


def read_weights(path: Path) -> Weights:
    """Read a readout, with its attention pool if it has one."""
    store = open_zarr(path, READOUT)
    readout = load_readout(store)
    recorded = any(name not in store for name in _ATTENTION)
    names = (*_ATTENTION, _ROTARY) if _ROTARY in store else _ATTENTION
    pool = None if recorded else AttentionPool(readout=readout, **{name: store.tensor(name) for name in names})
    grid = store.attributes["grid"]
    return Weights(readout, pool, grid, store.attributes["tokens"] - grid**2, store.attributes["block"], store.stamp)


def open_features(path: Path, weights: Weights) -> ZarrStore:
    """Open features. Raises NadpipeError if they belong to another model, or to other neurons than the readout."""
    store = open_zarr(path, FEATURES, weights.model)
    if weights.readout.write is not None and store.attributes["block"] != weights.block:
        raise NadpipeError(
            f"{path}: has the neurons of block {store.attributes['block']}, the readout those of block {weights.block}; "
            "delete it and make it again"
        )
    return store


def read_recorded(store: ZarrStore, index: Any) -> dict[str, Tensor]:
    """Read what segmentation needs of features with recorded attention, for some views."""
    names = ("attention", "gain", "stream", "embedding")
    token_embedding = store.tensor("token_embedding", index).unbind(1)
    by_recipe = dict(zip(store.attributes["recipes"], token_embedding, strict=True))
    return {name: store.tensor(name, index) for name in names if name in store} | by_recipe


def read_features(store: ZarrStore, index: Any) -> dict[str, Tensor]:
    """Read the arrays of features that a trace needs, for some views, in float32."""
    return {name: store.tensor(name, index).float() for name in TRACED if name in store}
