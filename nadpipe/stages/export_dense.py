"""Write the dense contribution of each view and pair, for tools that cannot take the factors."""

import contextlib
import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from nadpipe.artifacts import clear_partials, create_zarr, open_zarr
from nadpipe.dense import DenseContributions
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint
from nadpipe.inputs import read_pool
from nadpipe.progress import track


def export_dense(
    contributions: Path, attnpool_store: Path, output: Path, dtype: Literal["float32", "float16"] = "float32"
) -> None:
    """Write the tensor r[h, n] = s[h, n] w[h, n] + b[h] of one shard, block by block, if the disk can hold it.

    Args:
        contributions: Contributions of the shard.
        attnpool_store: Exported attention pool.
        output: Zarr store.
        dtype: float32, or float16 for half the bytes: three digits, fewer below 6e-5, in steps of 6e-8.
    """
    pool, model = read_pool(attnpool_store)
    source = open_zarr(contributions, "contributions", model)
    dense = DenseContributions([source], pool)
    _check_room(output, dense, dtype, source.attributes["shards"])
    sizes = dict(zip(dense.axes, dense.shape, strict=True))
    stamp = dataclasses.replace(model, code=code_fingerprint(__name__))
    about = {name: source.attributes[name] for name in ("shard", "shards", "images")}
    with create_zarr(output, "dense contributions", stamp, sizes, {"contribution": dtype}, attributes=about) as store:
        store.write("image_id", source["image_id"][:])
        for region in track(store.regions("contribution"), "writing contributions", "block"):
            block = store.as_stored("contribution", torch.from_numpy(dense[region]))
            store.put("contribution", region, block)


def _check_room(output: Path, dense: DenseContributions, dtype: str, shards: int) -> None:
    """Say how large the store will be. Raises NadpipeError when the disk cannot hold all shards still to be written."""
    clear_partials(output)  # else what a killed run left counts against this one
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    done = [path for path in output.parent.glob("*.zarr") if path.is_dir()]
    begun = sum(_bytes(path) for path in output.parent.glob(".*.zarr.*.partial"))  # by jobs beside this one
    own = dense.size * np.dtype(dtype).itemsize
    need, free = own * max(1, shards - len(done)), shutil.disk_usage(folder).free + begun
    size = f"{_gigabytes(own)} as {dtype}" + (f", all shards still to be written {_gigabytes(need)}" if need > own else "")
    if need > free:
        fewer = "fewer images, " + ("--dtype float16, " if dtype == "float32" else "")
        raise NadpipeError(
            f"{output}: the dense tensor takes {size}, the disk of {folder} has {_gigabytes(free)} free; take {fewer}"
            "another disk, or nadpipe.dense.open_dense, which makes any part of it without writing"
        )
    axes = " × ".join(f"{length} {axis}" for axis, length in zip(dense.axes, dense.shape, strict=True))
    print(f"{output}: {axes} takes {size}, {_gigabytes(free)} are free", file=sys.stderr)


def _bytes(folder: Path) -> int:
    """Size of all files below a folder, as far as they are still there."""
    found = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            found += path.stat().st_size if path.is_file() else 0
    return found


def _gigabytes(count: int) -> str:
    return f"{np.format_float_positional(count / 1e9, precision=3, fractional=False, trim='-')} GB"
