"""Export the dense contribution of each view and pair, for tools that cannot use the factors."""

import contextlib
import shutil
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from nadpipe.errors import NadpipeError
from nadpipe.progress import track
from nadpipe.store.arrays import create_zarr, open_zarr
from nadpipe.store.atomic import clear_partials
from nadpipe.store.dense import DenseContributions
from nadpipe.store.kinds.features import CONTRIBUTIONS, DENSE
from nadpipe.store.readout import read_readout


def export_dense(contributions: Path, readout: Path, output: Path, dtype: Literal["float32", "float16"] = "float32") -> None:
    """Write the tensor r[h, n] = s[h, n] w[h, n] + b[h] of one shard, block by block.

    Raises NadpipeError if the disk does not have enough room.

    Args:
        contributions: Contributions of the shard.
        readout: Exported readout.
        output: Zarr store.
        dtype: Type of the stored tensor. float16 takes half the space and keeps three digits, fewer below 6e-5.
    """
    weights, model = read_readout(readout)
    source = open_zarr(contributions, CONTRIBUTIONS, model)
    dense = DenseContributions([source], weights)
    _check_room(output, dense, dtype, source.attributes["shards"])
    sizes = dict(zip(dense.axes, dense.shape, strict=True))
    attributes = {name: source.attributes[name] for name in ("shard", "shards", "images")}
    with create_zarr(output, DENSE, model.made_by(__name__), sizes, {"contribution": dtype}, attributes=attributes) as store:
        store.write("image_id", source.read("image_id"))
        for region in track(store.regions("contribution"), "writing contributions", "block"):
            store.put("contribution", region, store.as_stored("contribution", torch.from_numpy(dense[region])))


def _check_room(output: Path, dense: DenseContributions, dtype: str, shards: int) -> None:
    """Report the size of the store. Raises NadpipeError if the disk cannot hold all remaining shards."""
    clear_partials(output)  # leftovers of a killed run would count against this one
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    finished = [path for path in output.parent.glob("*.zarr") if path.is_dir()]
    started = sum(_folder_size(path) for path in output.parent.glob(".*.zarr.*.partial"))  # by jobs running in parallel
    shard_size = dense.size * np.dtype(dtype).itemsize
    needed, free = shard_size * max(1, shards - len(finished)), shutil.disk_usage(folder).free + started
    remaining = f", all remaining shards {_gigabytes(needed)}" if needed > shard_size else ""
    size = f"{_gigabytes(shard_size)} as {dtype}{remaining}"
    if needed > free:
        options = "fewer images, " + ("--dtype float16, " if dtype == "float32" else "")
        raise NadpipeError(
            f"{output}: the dense tensor takes {size}, the disk of {folder} has {_gigabytes(free)} free; use {options}"
            "another disk, or nadpipe.store.dense.open_dense, which computes any part without writing it"
        )
    axes = " × ".join(f"{length} {axis}" for axis, length in zip(dense.axes, dense.shape, strict=True))
    print(f"{output}: {axes} takes {size}, {_gigabytes(free)} are free", file=sys.stderr)


def _folder_size(folder: Path) -> int:
    """Add up the sizes of all files in a folder; files may disappear meanwhile."""
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            size += path.stat().st_size if path.is_file() else 0
    return size


def _gigabytes(count: int) -> str:
    return f"{np.format_float_positional(count / 1e9, precision=3, fractional=False, trim='-')} GB"
