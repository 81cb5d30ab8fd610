"""The dense tensor r[h, n] = s[h, n] w[h, n] + b[h] of all views, made from its factors where it is asked for."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nadpipe.artifacts import ZARR, ZarrStore
from nadpipe.attnpool import AttentionPool, pair_constants
from nadpipe.inputs import open_shards, read_pool


def contributions(
    coefficient: Float[Tensor, "view head neuron"],
    write: Float[Tensor, "head neuron embed"],
    constant: Float[Tensor, "head embed"],
) -> Float[Tensor, "view head neuron embed"]:
    """r[h, n] = s[h, n] w[h, n] + b[h] of each view."""
    return torch.addcmul(constant[:, None], coefficient[..., None], write)  # one allocation, that of the result


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DenseContributions:
    """The tensor (view, head, neuron, embed) of a data set without its bytes: an index makes the part that it names.

    An index has, per axis, an integer (which drops the axis), a slice, or a list or 1-d array of integers or booleans, and at
    most one Ellipsis; it selects as numpy does, and several lists select their outer product. dask.array.from_array takes it.
    """

    stores: Sequence[ZarrStore]
    pool: AttentionPool

    axes = ZARR["dense contributions"]["contribution"].axes
    dtype = np.dtype(np.float32)
    ndim = len(axes)

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        views = sum(store["coefficient"].shape[0] for store in self.stores)
        return views, self.pool.heads, self.pool.neurons, len(self.pool.c_bias)

    @property
    def size(self) -> int:
        """Number of values; times four, the bytes of the whole."""
        return math.prod(self.shape)

    def __repr__(self) -> str:
        return f"DenseContributions({', '.join(f'{axis}: {size}' for axis, size in zip(self.axes, self.shape, strict=True))})"

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray | np.float32:
        """The part of the tensor that the index names, in memory. Raises IndexError for what is not there."""
        taken = [_positions(key, axis, size) for key, axis, size in zip(self._keys(index), self.axes, self.shape, strict=True)]
        views, heads, neurons, embed = (np.atleast_1d(part) for part in taken)
        coefficient = torch.from_numpy(self._coefficients(views, heads, neurons))
        heads, neurons, embed = (torch.from_numpy(part) for part in (heads, neurons, embed))
        part = contributions(coefficient, _write_vectors(self.pool, heads, neurons, embed), self._constant[heads][:, embed])
        return part.numpy()[tuple(0 if positions.ndim == 0 else slice(None) for positions in taken)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The whole tensor, for numpy.asarray."""
        if copy is False:
            raise ValueError("the dense tensor is made when it is asked for, it cannot be had without a copy")
        return self[...].astype(dtype or self.dtype, copy=False)

    @functools.cached_property
    def _constant(self) -> Float[Tensor, "head embed"]:
        return pair_constants(self.pool)

    def _keys(self, index: Any) -> list[Any]:
        """One key an axis: the Ellipsis, or what is missing at the end, filled with whole axes."""
        keys = list(index) if isinstance(index, tuple) else [index]
        open_ends = [at for at, key in enumerate(keys) if key is Ellipsis]
        if len(open_ends) > 1:
            raise IndexError("an index can have one Ellipsis")
        at = open_ends[0] if open_ends else len(keys)
        named = len(keys) - len(open_ends)
        if named > self.ndim:
            raise IndexError(f"too many indices: the axes are {self.axes}, {named} were given")
        return [*keys[:at], *[slice(None)] * (self.ndim - named), *keys[at + 1 :]]

    def _coefficients(self, views: np.ndarray, heads: np.ndarray, neurons: np.ndarray) -> Float[np.ndarray, "view head neuron"]:
        """Coefficients at these positions, from the shards that hold them."""
        found = np.empty((len(views), len(heads), len(neurons)), self.dtype)
        start = 0
        for store in self.stores:
            stored = store["coefficient"]
            held = (views >= start) & (views < start + stored.shape[0])
            if held.any() and found.size:
                found[held] = stored.oindex[_as_slice(views[held] - start), _as_slice(heads), _as_slice(neurons)]
            start += stored.shape[0]
        return found


def open_dense(contributions: Sequence[Path], attnpool_store: Path) -> DenseContributions:
    """The dense tensor of a data set from all shards of its contributions, without making it.

    Raises NadpipeError when a shard is missing, doubled or of another model than the attention pool.
    """
    pool, model = read_pool(attnpool_store)
    return DenseContributions(open_shards(contributions, "contributions", model), pool)


def _write_vectors(
    pool: AttentionPool, heads: Int[Tensor, " head"], neurons: Int[Tensor, " neuron"], embed: Int[Tensor, " embed"]
) -> Float[Tensor, "head neuron embed"]:
    """w[h, n] of these heads and neurons at these positions of the embedding."""
    value, output = pool.by_head(pool.v_weight)[heads], pool.output()[heads]
    return value[:, :, neurons].transpose(1, 2) @ output[:, embed].transpose(1, 2)


def _positions(key: Any, axis: str, size: int) -> np.ndarray:
    """The positions that a key takes along an axis; 0-d for an integer."""
    try:
        taken = np.arange(size)[list(key) if isinstance(key, tuple | range) else key]
    except IndexError as error:
        raise IndexError(f"{axis}: {error}") from None
    if taken.ndim > 1:
        raise IndexError(f"{axis}: {key!r} is no integer, slice, list or 1-d array of integers or booleans")
    return np.array(taken, order="C")  # torch takes no negative strides


def _as_slice(positions: np.ndarray) -> slice | np.ndarray:
    """The same positions as a slice, which Zarr reads faster, where they are consecutive."""
    first = int(positions[0])
    return slice(first, first + len(positions)) if (np.diff(positions) == 1).all() else positions
