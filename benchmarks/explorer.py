"""Building the explorer at the size of RN50x16, and how long its pages take to load in a browser.

    python benchmarks/explorer.py

Random activations, names and images: time and size do not depend on what they are. A page counts from the click until its
content stands, in a browser that has nothing of the explorer yet, over a static file server on this machine. Needs chromium.
"""

import argparse
import functools
import http.server
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from common import STAMP, nadpipe, random_pool, report, save_pool, write_random_features
from nadpipe.artifacts import PARQUET, ZARR
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from nadpipe.circuit.attention import AttentionPool
from nadpipe.data.manifest import examine
from nadpipe.stages.compute_contributions import compute_contributions
from nadpipe.store.arrays import create_zarr
from nadpipe.store.kinds.images import IMAGES
from nadpipe.store.kinds.units import ASSIGNMENTS, CORRELATIONS, DIRECTIONS, explained_column
from nadpipe.store.tables import write_parquet

PAGES = {
    "all pairs": "#/",
    "a pair": "#/pair/{0}/{1}",
    "a neuron": "#/neuron/{1}",
    "a head": "#/head/{0}",
    "a search": "#/search/text {1}",
}
OPENED = 9


def main() -> None:
    """Build an explorer, serve it, and open pages of every kind."""
    options = argparse.ArgumentParser()
    options.add_argument("--architecture", default="RN50x16")
    options.add_argument("--images", type=int, default=200)
    options.add_argument("--texts", type=int, default=20000)
    given = options.parse_args()
    pool = random_pool(given.architecture)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        built, peak = build(folder, pool, given)
        files = [path for path in (folder / "explorer").rglob("*") if path.is_file()]
        rows = [
            {
                "what": f"building, {pool.heads * pool.neurons:,} pairs, {given.images} images",
                "s": round(built, 1),
                "MiB": round(sum(path.stat().st_size for path in files) / 2**20),
                "peak MiB of memory": round(peak),
                "files": len(files),
            }
        ]
        for name, (seconds, size) in load(folder / "explorer", pool).items():
            row = {"what": f"opening {name}", "s": round(seconds, 2), "MiB": round(size, 2)}
            rows.append(row | {"peak MiB of memory": "", "files": ""})
    about = f"Explorer of {given.architecture}, {given.texts:,} texts; pages opened with an empty cache, median of {OPENED}"
    report("explorer", about, rows)


def build(folder: Path, pool: AttentionPool, given: argparse.Namespace) -> tuple[float, float]:
    """Make what the stage reads, and run it; returns its seconds and peak MiB."""
    rng = np.random.default_rng(0)
    save_pool(pool, folder / "pool.zarr")
    write_random_features(pool, given.images, "float32", folder / "features.zarr")
    compute_contributions(folder / "features.zarr", folder / "pool.zarr", folder / "contributions.zarr")
    write_images(folder, given.images, rng)
    write_directions(folder / "directions.zarr", pool, rng)
    write_tables(folder, pool, given.texts, rng)
    stores = ["images.parquet", "features.zarr", "contributions.zarr", "directions.zarr", "pairs.parquet", "neurons.parquet"]
    stores += ["heads.parquet", "assignments.parquet", "correlated.parquet"]
    arguments = [part for name in stores for part in (f"--{name.partition('.')[0]}", folder / name)]
    return nadpipe("build-explorer", *arguments, "--readout", folder / "pool.zarr", "--output", folder / "explorer")


def write_images(folder: Path, count: int, rng: np.random.Generator) -> None:
    """Pictures of noise, which compress worse than photographs."""
    for at in range(count):
        Image.fromarray(rng.integers(0, 256, (384, 384, 3), dtype=np.uint8)).save(folder / f"{at}.jpg")
    paths = [str(folder / f"{at}.jpg") for at in range(count)]
    rows = pd.DataFrame({"path": paths, "mask_path": None, "group": None, "label": None}, dtype=object)
    write_parquet(folder / "images.parquet", IMAGES, examine(rows), STAMP)


def write_directions(path: Path, pool: AttentionPool, rng: np.random.Generator) -> None:
    """Signs alone are read."""
    sizes = {"head": pool.heads, "neuron": pool.neurons, "embed": len(pool.c_bias)}
    with create_zarr(path, DIRECTIONS["pair"], STAMP, sizes) as store:
        for name, array in ZARR["pair directions"].items():
            shape = tuple(sizes[axis] for axis in array.axes)
            store.write(name, rng.choice([-1, 1], shape) if name == "sign" else np.zeros(shape, np.float32))


def write_tables(folder: Path, pool: AttentionPool, texts: int, rng: np.random.Generator) -> None:
    """Units with random sizes, and five nearest, five active and sixteen sparse texts a pair, as many as the defaults give."""
    names = np.array([f"text {at}" for at in range(texts)], dtype=object)
    head, neuron = (part.ravel() for part in np.indices((pool.heads, pool.neurons)))
    units = {
        "pairs": {"head": head, "neuron": neuron, "sign": np.ones(len(head), int)},
        "neurons": {"neuron": np.arange(pool.neurons)},
        "heads": {"head": np.arange(pool.heads)},
    }
    for kind, index in units.items():
        count = len(next(iter(index.values())))
        more = {} if kind == "pairs" else {f"explained_{at}": explained_column(at) for at in (1, 2, 3)}
        table = {
            name: rng.choice(names, count) if pa.types.is_dictionary(column.type) else rng.random(count)
            for name, column in (PARQUET[kind] | more).items()
        }
        table |= index | {"contribution_rank": rng.permutation(count) + 1}
        write_parquet(folder / f"{kind}.parquet", kind, pd.DataFrame(table), STAMP, more)
    ranked = {"nearest": 5, "sparse": 16}
    parts = [matches(head, neuron, count, names, rng).assign(kind=kind, explained=0.5) for kind, count in ranked.items()]
    write_parquet(folder / "assignments.parquet", ASSIGNMENTS["pair"], pd.concat(parts), STAMP)
    active = matches(head, neuron, 5, names, rng).rename(columns={"weight": "correlation"})
    write_parquet(folder / "correlated.parquet", CORRELATIONS, active, STAMP)


def matches(head: np.ndarray, neuron: np.ndarray, count: int, names: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """Random texts for every pair."""
    rows = len(head) * count
    return pd.DataFrame(
        {
            "head": head.repeat(count),
            "neuron": neuron.repeat(count),
            "rank": np.tile(np.arange(1, count + 1), len(head)),
            "text": rng.choice(names, rows),
            "weight": rng.random(rows),
        }
    )


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A file server that does not print what it serves."""

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


def load(folder: Path, pool: AttentionPool) -> dict[str, tuple[float, float]]:
    """Of each kind of page: median seconds until it stands, and MiB loaded for it."""
    handler = functools.partial(Quiet, directory=str(folder))
    found = {}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, path in PAGES.items():
            places = [(at * 5 % pool.heads, at * 331 % pool.neurons) for at in range(OPENED)]
            opened = [open_page(browser, server.server_port, path.format(*place)) for place in places]
            found[name] = tuple(statistics.median(part) for part in zip(*opened, strict=True))
        server.shutdown()
    return found


def open_page(browser: Browser, port: int, path: str) -> tuple[float, float]:
    """Seconds until a page stands in a browser that knows nothing yet, and MiB that it took."""
    with browser.new_context() as context:
        page = context.new_page()
        loaded = []
        page.on("response", lambda answer: loaded.append(int(answer.headers.get("content-length", 0))))
        start = time.perf_counter()
        page.goto(f"http://127.0.0.1:{port}/index.html{path}")
        page.wait_for_function("() => document.getElementById('main').dataset.shown")
        took = time.perf_counter() - start
        if page.inner_text("h1") == "Not found":
            raise SystemExit(f"{path}: {page.inner_text('main')}")
        return took, sum(loaded) / 2**20


if __name__ == "__main__":
    main()
