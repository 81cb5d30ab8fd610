"""The dense tensor r[h, n] = s[h, n] w[h, n] + b[h] of all views, computed from its factors on access."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nadpipe.circuit.readout import Readout, dense_contributions, pair_constants, write_vector_entries
from nadpipe.store.arrays import ZarrStore
from nadpipe.store.kinds.features import CONTRIBUTIONS, DENSE
from nadpipe.store.readout import read_readout
from nadpipe.store.shards import open_shards


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DenseContributions:
    """The tensor (view, head, neuron, embed) of a data set. Indexing computes only the requested part.

    An index has, per axis, an integer (which drops the axis), a slice, or a list or 1-d array of integers or booleans, and at
    most one Ellipsis. It selects like numpy, except that several lists select their outer product. dask.array.from_array
    accepts it.
    """

    stores: Sequence[ZarrStore]
    readout: Readout

    axes = DENSE.arrays["contribution"].axes
    dtype = np.dtype(np.float32)
    ndim = len(axes)

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        views = sum(store["coefficient"].shape[0] for store in self.stores)
        return views, self.readout.heads, self.readout.neurons, self.readout.embed

    @property
    def size(self) -> int:
        """Number of values. Each takes four bytes."""
        return math.prod(self.shape)

    def __repr__(self) -> str:
        return f"DenseContributions({', '.join(f'{axis}: {size}' for axis, size in zip(self.axes, self.shape, strict=True))})"

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray | np.float32:
        """Compute a part of the tensor. Raises IndexError for an invalid index."""
        positions = [
            _positions(key, axis, size) for key, axis, size in zip(self._keys(index), self.axes, self.shape, strict=True)
        ]
        views, heads, neurons, embed = (np.atleast_1d(index) for index in positions)
        coefficient = torch.from_numpy(self._coefficients(views, heads, neurons))
        head, neuron, entry = (torch.from_numpy(index) for index in (heads, neurons, embed))
        write = write_vector_entries(self.readout, head, neuron, entry)
        values = dense_contributions(coefficient, write, self._constant[head][:, entry])
        return values.numpy()[tuple(0 if index.ndim == 0 else slice(None) for index in positions)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Compute the whole tensor, for numpy.asarray."""
        if copy is False:
            raise ValueError("the dense tensor is computed on access and needs a copy")
        return np.asarray(self[...]).astype(dtype or self.dtype, copy=False)

    @functools.cached_property
    def _constant(self) -> Float[Tensor, "head embed"]:
        return pair_constants(self.readout)

    def _keys(self, index: Any) -> list[Any]:
        """Return one key per axis, with whole axes for the Ellipsis or for missing keys at the end."""
        keys = list(index) if isinstance(index, tuple) else [index]
        ellipses = [index for index, key in enumerate(keys) if key is Ellipsis]
        if len(ellipses) > 1:
            raise IndexError("an index can have only one Ellipsis")
        start = ellipses[0] if ellipses else len(keys)
        named = len(keys) - len(ellipses)
        if named > self.ndim:
            raise IndexError(f"too many indices: got {named} for the axes {self.axes}")
        return [*keys[:start], *[slice(None)] * (self.ndim - named), *keys[start + 1 :]]

    def _coefficients(self, views: np.ndarray, heads: np.ndarray, neurons: np.ndarray) -> Float[np.ndarray, "view head neuron"]:
        """Read coefficients from the shards that contain them."""
        values = np.empty((len(views), len(heads), len(neurons)), self.dtype)
        start = 0
        for store in self.stores:
            count = store["coefficient"].shape[0]
            inside = (views >= start) & (views < start + count)
            if inside.any() and values.size:
                index = (_as_slice(views[inside] - start), _as_slice(heads), _as_slice(neurons))
                values[inside] = store.read_outer("coefficient", index)
            start += count
        return values


def open_dense(contributions: Sequence[Path], readout: Path) -> DenseContributions:
    """Open the dense tensor of a data set from all shards of its contributions, without computing it.

    Raises NadpipeError if a shard is missing, given twice, or made with another model than the readout.
    """
    weights, model = read_readout(readout)
    return DenseContributions(open_shards(contributions, CONTRIBUTIONS, model), weights)


def _positions(key: Any, axis: str, size: int) -> np.ndarray:
    """Return the positions that a key selects along an axis; 0-d for an integer."""
    try:
        positions = np.arange(size)[list(key) if isinstance(key, tuple | range) else key]
    except IndexError as error:
        raise IndexError(f"{axis}: {error}") from None
    if positions.ndim > 1:
        raise IndexError(f"{axis}: {key!r} is not an integer, slice, list or 1-d array of integers or booleans")
    return np.array(positions, order="C")  # torch does not accept negative strides


def _as_slice(positions: np.ndarray) -> slice | np.ndarray:
    """Return consecutive positions as a slice, which Zarr reads faster."""
    first = int(positions[0])
    return slice(first, first + len(positions)) if (np.diff(positions) == 1).all() else positions
