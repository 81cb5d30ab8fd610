"""Zarr stores: written once, never changed, and checked on opening."""

import contextlib
import dataclasses
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
import zarr.codecs
from torch import Tensor

from nadpipe.errors import NadpipeError
from nadpipe.store.atomic import atomic_path
from nadpipe.store.checksums import LISTING, list_files, read_listing
from nadpipe.store.schema import Array, StoreKind
from nadpipe.store.stamp import Stamp, check_stamp

_CHUNK_BYTES = 4 * 2**20
_FILE_BYTES = 64 * 2**20
_INDEXED = ("view", "head", "neuron", "token", "component", "rank")  # axes that get an integer coordinate
_DTYPES = {"float": "float32", "int": "int64"}
_DTYPE_KINDS = {"float": "f", "int": "i", "text": "T"}
_COMPRESSORS = (zarr.codecs.ZstdCodec(level=3), zarr.codecs.Crc32cCodec())  # the last one checks the bytes on disk
_METADATA = "zarr.json"  # name of the files that are no chunks


class ZarrWriter:
    """Writer of a new store.

    `write` writes a whole array, `append` adds blocks along the first axis, and `put` writes the `regions` in any order.
    """

    def __init__(self, path: Path, group: zarr.Group, kind: StoreKind, arrays: Mapping[str, Array]):
        self._path = path
        self._group = group
        self._kind = kind
        self._arrays = arrays
        self._buffer: dict[str, list[np.ndarray]] = {}
        self._written: dict[str, int] = {}  # rows by array
        self._put: dict[str, set[tuple[int, ...]]] = {}  # positions in the grid of shards by array

    def write(self, name: str, values: Any) -> None:
        """Write a whole array from numpy, torch or a list."""
        array = self._array(name)
        array[:] = _numpy(values)
        self._written[name] = array.shape[0]

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes set so far."""
        return dict(self._group.attrs)

    def describe(self, **attributes: Any) -> None:
        """Add attributes that are known only after writing has started."""
        self._group.attrs.update(attributes)

    def as_stored(self, name: str, values: Any) -> Any:
        """Return a tensor in the precision of its array. Raises NadpipeError if float16 cannot hold it."""
        if self._array(name).dtype != np.float16:
            return values
        stored = values.half()
        if not stored.isfinite().all():
            raise NadpipeError(
                f"{self._path}: {name} reaches {values.abs().max():.3g}, more than float16 can hold; use float32"
            )
        return stored

    def append(self, **blocks: Any) -> None:
        """Add rows along the first axis. They are written to disk in whole shards."""
        for name, block in blocks.items():
            self._buffer.setdefault(name, []).append(_numpy(block))
            self._flush(name, whole_shards=True)

    def regions(self, name: str) -> list[tuple[slice, ...]]:
        """Return the shards of an array as slices."""
        array = self._array(name)
        ranges = [
            [slice(start, min(start + step, size)) for start in range(0, size, step)]
            for size, step in zip(array.shape, _shards(array), strict=True)
        ]
        return list(itertools.product(*ranges))

    def put(self, name: str, region: tuple[slice, ...], values: Any) -> None:
        """Write a block of whole shards.

        Raises ValueError for slices that cut a shard, a shard that was written before, or values of another shape.
        """
        array = self._array(name)
        grid = []
        for rows, size, step in zip(region, array.shape, _shards(array), strict=True):
            start, stop, stride = rows.indices(size)
            if stride != 1 or start % step or (stop % step and stop != size):
                raise ValueError(
                    f"{self._kind.name}: {name}: {region} does not follow the shards {array.shards} of {array.shape}"
                )
            grid.append(range(start // step, math.ceil(stop / step)))
        shards, put = set(itertools.product(*grid)), self._put.setdefault(name, set())
        if shards & put or self._written.get(name) or self._buffer.get(name):
            raise ValueError(f"{self._kind.name}: {name}: {region} was written before")
        values = _numpy(values)
        expected = tuple(len(range(*rows.indices(size))) for rows, size in zip(region, array.shape, strict=True))
        if values.shape != expected:  # zarr would broadcast
            raise ValueError(f"{self._kind.name}: {name}: {region} has shape {expected}, values have {values.shape}")
        array[region] = values
        put |= shards

    def _flush(self, name: str, whole_shards: bool) -> None:
        array = self._array(name)
        rows = sum(len(block) for block in self._buffer[name])
        step = _shards(array)[0]
        if rows < step and whole_shards:
            return
        values = np.concatenate(self._buffer[name])
        take = rows // step * step if whole_shards else rows
        start = self._written.get(name, 0)
        array[start : start + take] = values[:take]
        self._written[name] = start + take
        self._buffer[name] = [values[take:]]

    def _finish(self) -> None:
        for name in self._buffer:
            self._flush(name, whole_shards=False)
        for name, array in self._arrays.items():
            if name in self._put:
                put, shards = len(self._put[name]), len(self.regions(name))
                if put != shards:
                    raise ValueError(f"{self._kind.name}: {name} has {put} of {shards} shards")
                continue
            rows, written = self._array(name).shape[0], self._written.get(name, 0)
            if array.type != "text" and written != rows:
                raise ValueError(f"{self._kind.name}: {name} has {written} of {rows} rows")

    def _array(self, name: str) -> zarr.Array:
        return _member(self._group, name)


@contextlib.contextmanager
def create_zarr(
    path: Path,
    kind: StoreKind,
    stamp: Stamp,
    sizes: Mapping[str, int],
    dtype: Mapping[str, str] | None = None,
    texts: Sequence[str] = (),
    attributes: Mapping[str, Any] | None = None,
    omit: Sequence[str] = (),
    first: Mapping[str, int] | None = None,
) -> Iterator[ZarrWriter]:
    """Create a store of a kind. It appears under its final name only if the block succeeds.

    sizes: length of every axis of the kind. dtype: of arrays that are not stored as float32 or int64. texts: values of the
    `text` axis, if the kind has one. attributes: of the store, beyond the stamp. omit: optional arrays to leave out. first:
    first index of an axis, if not the kind's own.

    Raises ValueError if an array is incomplete at the end of the block.
    """
    with atomic_path(path) as partial:
        group = zarr.open_group(str(partial), mode="w", zarr_format=3)
        group.attrs.update(stamp.attributes(kind) | dict(attributes or {}))
        arrays = {name: array for name, array in kind.arrays.items() if name not in omit}
        coordinates = [name for name, array in arrays.items() if array.axes == ("view",) and array.type == "int"]
        for name, array in arrays.items():
            if array.type == "text":
                _write_text(group, name, array, texts)
                continue
            stored = (dtype or {}).get(name, _DTYPES[array.type])
            created = _create_array(group, name, array, tuple(sizes[axis] for axis in array.axes), stored)
            if coordinates and array.axes[0] == "view" and name not in coordinates:
                created.attrs["coordinates"] = " ".join(coordinates)
        for axis in dict.fromkeys(axis for array in arrays.values() for axis in array.axes):
            if axis in _INDEXED and axis not in arrays:
                start = (first or kind.first).get(axis, 0)
                values = np.arange(start, start + sizes[axis], dtype=np.int64)
                spec = Array((axis,), "int", "spatial tokens count from 1" if axis == "token" else "index", "coordinate")
                _create_array(group, axis, spec, values.shape, "int64")[:] = values
        writer = ZarrWriter(path, group, kind, arrays)
        yield writer
        writer._finish()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            zarr.consolidate_metadata(group.store)
        list_files(partial, has_own=_is_chunk)


def _create_array(group: zarr.Group, name: str, array: Array, shape: tuple[int, ...], dtype: str) -> zarr.Array:
    chunks, shards = _layout(array, shape, np.dtype(dtype).itemsize)
    created = group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        shards=shards,
        dimension_names=list(array.axes),
        compressors=_COMPRESSORS,
    )
    created.attrs.update({"units": array.units, "source": array.source})
    return created


def _write_text(group: zarr.Group, name: str, array: Array, texts: Sequence[str]) -> None:
    values = np.array(list(texts), dtype=np.dtypes.StringDType())
    created = group.create_array(name, data=values, dimension_names=list(array.axes), compressors=_COMPRESSORS)
    created.attrs.update({"units": array.units, "source": array.source})


def _layout(array: Array, shape: tuple[int, ...], itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the sizes of chunks and shards.

    Chunks have up to 4 MiB, fill the last axis first and stay within `array.longest`. Shards have about 64 MiB and span every
    axis except the first. If one row along the first axis is larger, a shard is part of one row, split along the next axis, and
    so on.
    """
    row_bytes = [math.prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape))]
    split = next(axis for axis, size in enumerate(row_bytes) if size <= _FILE_BYTES or axis + 1 == len(shape))
    largest = [1] * split + [min(max(1, shape[split]), max(1, _FILE_BYTES // max(row_bytes[split], 1))), *shape[split + 1 :]]
    chunk = [1] * len(shape)
    for axis, name in reversed(list(enumerate(array.axes))):
        room = max(1, _CHUNK_BYTES // itemsize // math.prod(chunk))
        chunk[axis] = min(largest[axis], room, array.longest.get(name, room))
    shard = [math.ceil(size / side) * side for size, side in zip(largest, chunk, strict=True)]
    shard[split] = largest[split] // chunk[split] * chunk[split]
    return tuple(chunk), tuple(shard)


@dataclasses.dataclass(frozen=True)
class ZarrStore:
    """A checked, open store."""

    path: Path
    group: zarr.Group

    def __getitem__(self, name: str) -> zarr.Array:
        return _member(self.group, name)

    def read(self, name: str, index: Any = ...) -> np.ndarray:
        """Read an array, or the part that `index` selects, as numpy. Raises NadpipeError if a chunk is damaged."""
        with self._checked(name):
            return np.asarray(self[name][index])

    def read_outer(self, name: str, index: tuple[Any, ...]) -> np.ndarray:
        """Read the outer product of the positions that `index` lists per axis. Raises NadpipeError as `read` does."""
        with self._checked(name):
            return np.asarray(self[name].oindex[index])

    def tensor(self, name: str, index: Any = ...) -> Tensor:
        """Read an array, or the part that `index` selects, as torch."""
        return torch.from_numpy(self.read(name, index))

    def __contains__(self, name: str) -> bool:
        return name in self.group

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the store."""
        return dict(self.group.attrs)

    @property
    def stamp(self) -> Stamp:
        """Stamp of the model and code that made the store."""
        return Stamp(**{field.name: str(self.group.attrs[field.name]) for field in dataclasses.fields(Stamp)})

    def texts(self) -> list[str]:
        """Return the values of the text axis."""
        return [str(text) for text in self.read("text")]

    @contextlib.contextmanager
    def _checked(self, name: str) -> Iterator[None]:
        """Turn the errors that codecs raise on damaged chunks into a NadpipeError."""
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            raise NadpipeError(
                f"{self.path / name}: damaged array ({type(error).__name__}); delete {self.path} and make it again"
            ) from error


def open_zarr(path: Path, kind: StoreKind, model: Stamp | None = None) -> ZarrStore:
    """Open a store and check its kind, format, files, arrays, axes and dtypes, and its model, if `model` is given.

    Sizes of all files and checksums of the metadata are compared with the list that was written with the store, because Zarr
    reads missing files as zeros. Chunks contain checksums, which are compared when they are read. Raises NadpipeError if a
    check fails; the message names the store, its content and the expected content.
    """
    path = Path(path)
    listed = (path / LISTING).exists()
    if listed:
        read_listing(path).check()
    try:
        group = zarr.open_group(str(path), mode="r", zarr_format=3)
    except (FileNotFoundError, NotADirectoryError, KeyError, ValueError) as error:
        raise NadpipeError(
            f"{path}: not a Zarr store of {kind.name} ({type(error).__name__}); make it with Snakemake"
        ) from None
    check_stamp(path, dict(group.attrs), kind, model)
    if not listed:
        raise NadpipeError(f"{path}: {LISTING} is missing; delete the store and make it again")
    for name, array in kind.arrays.items():
        if name not in group and name in kind.optional:
            continue
        if name not in group:
            raise NadpipeError(f"{path}: array {name} is missing; delete the store and make it again")
        stored = _member(group, name)
        axes = tuple(getattr(stored.metadata, "dimension_names", None) or ())
        if axes != array.axes:
            raise NadpipeError(f"{path}: axes of {name} are {axes}, expected {array.axes}; delete it and make it again")
        if stored.dtype.kind != _DTYPE_KINDS[array.type]:
            raise NadpipeError(f"{path}: {name} holds {stored.dtype}, expected {array.type}; delete it and make it again")
    return ZarrStore(path, group)


def _is_chunk(name: str) -> bool:
    return name.rpartition("/")[2] != _METADATA


def _member(group: zarr.Group, name: str) -> zarr.Array:
    """Return an array of a group; the assertion tells the type checker that it is no subgroup."""
    member = group[name]
    assert isinstance(member, zarr.Array)
    return member


def _shards(array: zarr.Array) -> tuple[int, ...]:
    """Return the shape of an array's shards. All arrays of numbers have shards."""
    assert array.shards is not None
    return array.shards


def _numpy(values: Any) -> np.ndarray:
    return np.asarray(values.cpu() if hasattr(values, "cpu") else values)
