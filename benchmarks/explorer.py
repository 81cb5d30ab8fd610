"""Measure how long the explorer takes to build, and how long its pages take to load in a browser.

    python benchmarks/explorer.py

Activations, names and images are random; time and size do not depend on them. The time of a page runs from the click until its
content is shown, in a browser with an empty cache, from a static file server on this machine. Requires chromium.
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
from common import (
    ARCHITECTURES,
    STAMP,
    TINY,
    make_parser,
    nadpipe,
    parse,
    random_pool,
    report,
    save_pool,
    write_random_features,
)
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from nadpipe.circuit.attention import AttentionPool
from nadpipe.data.manifest import examine
from nadpipe.stages.compute_contributions import compute_contributions
from nadpipe.store.arrays import create_zarr
from nadpipe.store.kinds.images import IMAGES
from nadpipe.store.kinds.units import ASSIGNMENTS, CORRELATIONS, DIRECTIONS, UNIT_TABLES, explained_column
from nadpipe.store.tables import write_parquet

PAGES = {
    "all pairs": "#/",
    "a pair": "#/pair/{0}/{1}",
    "a neuron": "#/neuron/{1}",
    "a head": "#/head/{0}",
    "a search": "#/search/text {1}",
}


def main() -> None:
    """Build an explorer, serve it, and open pages of every kind."""
    parser = make_parser(__doc__)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="RN50x16")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--texts", type=int, default=20000)
    parser.add_argument("--opened", type=int, default=9, help="pages of each kind to open")
    given = parse(parser, architecture=TINY, images=9, texts=200, opened=1)
    pool = random_pool(given.architecture)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        seconds, peak = build(folder, pool, given)
        files = [path for path in (folder / "explorer").rglob("*") if path.is_file()]
        rows = [
            {
                "task": f"building, {pool.heads * pool.neurons:,} pairs, {given.images} images",
                "s": round(seconds, 1),
                "MiB": round(sum(path.stat().st_size for path in files) / 2**20),
                "peak memory, MiB": round(peak),
                "files": len(files),
            }
        ]
        for name, (page_seconds, size) in load(folder / "explorer", pool, given.opened).items():
            row = {"task": f"opening {name}", "s": round(page_seconds, 2), "MiB": round(size, 2)}
            rows.append(row | {"peak memory, MiB": "", "files": ""})
    title = (
        f"Explorer of {given.architecture}, {given.texts:,} texts; pages opened with an empty cache, median of {given.opened}"
    )
    report(given, "explorer", title, rows)


def build(folder: Path, pool: AttentionPool, given: argparse.Namespace) -> tuple[float, float]:
    """Write the inputs of the explorer's stages and run them; return their seconds and the largest peak memory in MiB."""
    rng = np.random.default_rng(0)
    save_pool(pool, folder / "readout.zarr")
    write_random_features(pool, given.images, "float32", folder / "features.zarr")
    outputs = folder / "contributions.zarr", folder / "means.zarr"
    compute_contributions(folder / "features.zarr", folder / "readout.zarr", *outputs)
    write_images(folder, given.images, rng)
    write_directions(folder / "directions.zarr", pool, rng)
    write_tables(folder, pool, given.texts, rng)
    steps = {
        "find-extremes": ("contributions.zarr", "directions.zarr"),
        "map-firing": ("features.zarr", "contributions.zarr", "extremes.zarr", "directions.zarr", "readout.zarr"),
        "build-explorer": (
            *("images.parquet", "extremes.zarr", "firing.zarr", "pairs.parquet", "neurons.parquet", "heads.parquet"),
            *("assignments.parquet", "correlated.parquet", "readout.zarr"),
        ),
    }
    outputs = ("extremes.zarr", "firing.zarr", "explorer")
    measured = [
        nadpipe(command, **{Path(name).stem: folder / name for name in inputs}, output=folder / output)
        for (command, inputs), output in zip(steps.items(), outputs, strict=True)
    ]
    return sum(seconds for seconds, _ in measured), max(peak for _, peak in measured)


def write_images(folder: Path, count: int, rng: np.random.Generator) -> None:
    """Write pictures of noise, which compress worse than photographs, and their manifest."""
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (384, 384, 3), dtype=np.uint8)).save(path)
    rows = pd.DataFrame({"path": list(map(str, paths)), "mask_path": None, "group": None, "label": None}, dtype=object)
    write_parquet(folder / "images.parquet", IMAGES, examine(rows), STAMP)


def write_directions(path: Path, pool: AttentionPool, rng: np.random.Generator) -> None:
    """Write directions with random signs; the stage reads nothing else."""
    shape = pool.heads, pool.neurons
    with create_zarr(path, DIRECTIONS["pair"], STAMP, {"head": pool.heads, "neuron": pool.neurons}) as store:
        for name in DIRECTIONS["pair"].arrays:
            store.write(name, rng.choice([-1, 1], shape) if name == "sign" else np.zeros(shape, np.float32))


def write_tables(folder: Path, pool: AttentionPool, texts: int, rng: np.random.Generator) -> None:
    """Write units with random norms, and per pair five nearest, five active and sixteen sparse texts, as by default."""
    names = np.array([f"text {number}" for number in range(texts)], dtype=object)
    head, neuron = (index.ravel() for index in np.indices((pool.heads, pool.neurons)))
    indices = {
        "pair": {"head": head, "neuron": neuron, "sign": np.ones(len(head), int)},
        "neuron": {"neuron": np.arange(pool.neurons)},
        "head": {"head": np.arange(pool.heads)},
    }
    for unit, index in indices.items():
        count = len(next(iter(index.values())))
        kind = UNIT_TABLES[unit]
        more = {} if unit == "pair" else {f"explained_{component}": explained_column(component) for component in (1, 2, 3)}
        columns = {
            name: rng.choice(names, count) if column.type == "text" else rng.random(count)
            for name, column in (dict(kind.columns) | more).items()
        }
        columns |= index | {"contribution_rank": rng.permutation(count) + 1}
        write_parquet(folder / f"{unit}s.parquet", kind, pd.DataFrame(columns), STAMP, more)
    ranked = {"nearest": 5, "sparse": 16}
    rows = [match(head, neuron, count, names, rng).assign(kind=kind, explained=0.5) for kind, count in ranked.items()]
    write_parquet(folder / "assignments.parquet", ASSIGNMENTS["pair"], pd.concat(rows), STAMP)
    active = match(head, neuron, 5, names, rng).rename(columns={"weight": "correlation"})
    write_parquet(folder / "correlated.parquet", CORRELATIONS, active, STAMP)


def match(head: np.ndarray, neuron: np.ndarray, count: int, names: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """Return `count` random texts for every pair."""
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


class QuietServer(http.server.SimpleHTTPRequestHandler):
    """Serve files without a log."""

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""


def load(folder: Path, pool: AttentionPool, opened: int) -> dict[str, tuple[float, float]]:
    """Return median seconds and MiB per kind of page."""
    handler = functools.partial(QuietServer, directory=str(folder))
    medians = {}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, path in PAGES.items():
            units = [(number * 5 % pool.heads, number * 331 % pool.neurons) for number in range(opened)]
            pages = [open_page(browser, server.server_port, path.format(*unit)) for unit in units]
            medians[name] = tuple(statistics.median(values) for values in zip(*pages, strict=True))
        browser.close()
        server.shutdown()
    return medians


def open_page(browser: Browser, port: int, path: str) -> tuple[float, float]:
    """Return the seconds until a page is shown in a browser with an empty cache, and the MiB it loaded."""
    with browser.new_context() as context:
        page = context.new_page()
        sizes: list[int] = []
        page.on("response", lambda answer: sizes.append(int(answer.headers.get("content-length", 0))))
        start = time.perf_counter()
        page.goto(f"http://127.0.0.1:{port}/index.html{path}")
        page.wait_for_function("() => document.getElementById('main').dataset.shown")
        seconds = time.perf_counter() - start
        if page.inner_text("h1") == "Not found":
            raise SystemExit(f"{path}: {page.inner_text('main')}")
        return seconds, sum(sizes) / 2**20


if __name__ == "__main__":
    main()
