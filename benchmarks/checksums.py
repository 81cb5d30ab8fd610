"""Measure what checksums and the wait for the disk cost: time and bytes of a shard of contributions, a table and an image.

    python benchmarks/checksums.py

Both sides take turns, and the best times count, of the wall clock and of the CPU with all threads. The side without leaves out
the checksums of chunks, files, tables and images, and does not wait until files are on the disk.
"""

import argparse
import contextlib
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import zarr.codecs
from common import ARCHITECTURES, STAMP, TINY, make_parser, parse, report, timed, write_photos

from nadpipe.data.views import read_image
from nadpipe.store import arrays, atomic, tables
from nadpipe.store.arrays import create_zarr, open_zarr
from nadpipe.store.checksums import LISTING
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.kinds.units import ASSIGNMENTS
from nadpipe.store.tables import read_parquet, write_parquet


def main() -> None:
    """Measure each kind of artifact."""
    parser = make_parser(__doc__)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="RN50")
    parser.add_argument("--views", type=int, default=256)
    parser.add_argument("--rows", type=int, default=300_000, help="rows of the table")
    parser.add_argument("--turns", type=int, default=9)
    given = parse(parser, architecture=TINY, views=8, rows=100, turns=1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [*measure_store(given, Path(folder)), *measure_table(given, Path(folder)), measure_image(given, Path(folder))]
    report(given, "checksums", "Time and bytes with checksums, relative to the same code without them", rows)


@contextlib.contextmanager
def without_checksums() -> Iterator[None]:
    """Leave out all checksums and the wait for the disk."""

    def list_nothing(folder: Path, has_own: Callable[[str], bool]) -> None:
        (folder / LISTING).touch()

    def open_file(path: Path, schema: object) -> pq.ParquetWriter:
        return pq.ParquetWriter(path, schema, compression="zstd", write_page_index=True)

    with contextlib.ExitStack() as stack:
        for module, name, value in [
            (atomic, "_flush", lambda path: None),
            (atomic, "_flush_folder", lambda path: None),
            (arrays, "_COMPRESSORS", (zarr.codecs.ZstdCodec(level=3),)),
            (arrays, "list_files", list_nothing),
            (arrays, "read_listing", lambda path: SimpleNamespace(check=lambda: None)),
            (tables, "_writer", open_file),
            (tables, "seal", lambda path: None),
            (tables, "is_marked", lambda content: True),
            (tables, "is_intact", lambda content: True),
        ]:
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def compare(
    what: str, given: argparse.Namespace, plain: Callable[[], object], checked: Callable[[], object], size: str = ""
) -> dict[str, object]:
    """Return the row of one operation. plain: the operation without checksums."""
    times: dict[str, list[tuple[float, float]]] = {"plain": [], "checked": []}
    for _ in range(given.turns):
        with without_checksums():
            times["plain"].append(_time(plain))
        times["checked"].append(_time(checked))
    (plain_wall, plain_cpu), (wall, cpu) = (map(min, zip(*turns, strict=True)) for turns in times.values())
    return {
        "operation": what,
        "CPU without, ms": round(plain_cpu * 1e3, 2),
        "CPU with, ms": round(cpu * 1e3, 2),
        "CPU, ratio": round(cpu / plain_cpu, 2),
        "wall, ratio": round(wall / plain_wall, 2),
        "bytes, ratio": size,
    }


def _time(function: Callable[[], object]) -> tuple[float, float]:
    """Return wall and CPU seconds of a call, with all threads."""
    start = time.process_time()
    wall, _ = timed(function)
    return wall, time.process_time() - start


def measure_store(given: argparse.Namespace, folder: Path) -> Iterator[dict[str, object]]:
    """Yield the rows of a shard of contributions."""
    heads, neurons, embed, spatial = ARCHITECTURES[given.architecture]
    sizes = {"view": given.views, "head": heads, "neuron": neurons, "embed": embed, "token": spatial + 1}
    generator = np.random.default_rng(0)
    values = {
        name: generator.standard_normal([sizes[axis] for axis in array.axes], dtype=np.float32)
        if array.type == "float"
        else np.zeros([sizes[axis] for axis in array.axes], int)
        for name, array in CONTRIBUTIONS.arrays.items()
    }
    attributes = {"shard": 0, "shards": 1, "images": "random"}

    def write(name: str) -> None:
        with create_zarr(folder / f"{name}.zarr", CONTRIBUTIONS, STAMP, sizes, attributes=attributes) as store:
            for array, value in values.items():
                store.write(array, value)

    def read(name: str) -> None:
        store = open_zarr(folder / f"{name}.zarr", CONTRIBUTIONS)
        for array in CONTRIBUTIONS.arrays:
            store.read(array)

    def write_unflushed() -> None:
        with mock.patch.object(atomic, "_flush", return_value=None):
            write("checked")

    shard = f"shard of {given.views} images"
    row = compare(f"write a {shard}, no wait for the disk", given, lambda: write("plain"), write_unflushed)
    yield row | {"bytes, ratio": f"{_size(folder / 'checked.zarr') / _size(folder / 'plain.zarr'):.5f}"}
    yield compare(f"write a {shard}", given, lambda: write("plain"), lambda: write("checked"))
    yield compare(f"read a {shard}", given, lambda: read("plain"), lambda: read("checked"))
    yield compare(
        f"open a {shard}",
        given,
        lambda: open_zarr(folder / "plain.zarr", CONTRIBUTIONS),
        lambda: open_zarr(folder / "checked.zarr", CONTRIBUTIONS),
    )


def measure_table(given: argparse.Namespace, folder: Path) -> Iterator[dict[str, object]]:
    """Yield the rows of a table of texts."""
    kind, generator = ASSIGNMENTS["pair"], np.random.default_rng(0)
    table = pd.DataFrame(
        {
            name: generator.choice(["a fish", "a star", "red"], given.rows)
            if column.type in ("text", "string")
            else generator.integers(0, 100, given.rows)
            if column.type.startswith("int")
            else generator.random(given.rows)
            for name, column in kind.columns.items()
        }
    )

    def write(name: str) -> None:
        write_parquet(folder / f"{name}.parquet", kind, table, STAMP)

    row = compare(f"write a table of {given.rows:,} rows", given, lambda: write("plain"), lambda: write("checked"))
    yield row | {"bytes, ratio": f"{_size(folder / 'checked.parquet') / _size(folder / 'plain.parquet'):.5f}"}
    sides = [lambda name=name: read_parquet(folder / f"{name}.parquet", kind) for name in ("plain", "checked")]
    yield compare(f"read a table of {given.rows:,} rows", given, *sides)


def measure_image(given: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Return the row of decoding one photograph."""
    [path] = map(str, write_photos(None, 1, folder / "photos"))
    checksum = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return compare("decode an image", given, lambda: read_image(path), lambda: read_image(path, checksum))


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder."""
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
