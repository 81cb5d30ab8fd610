"""Every artifact that a stage or a command reads is refused after any bit flips, or if a file is empty or missing."""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_artifacts import MODEL, SIZES, STORES, TABLES, fill, rows

from nadpipe.cli import main
from nadpipe.errors import BAD_INPUT, NadpipeError
from nadpipe.pages.explorer import Explorer
from nadpipe.pages.explorer_files import _write_data
from nadpipe.pages.pictures import heat_image
from nadpipe.stages.embed_texts import _add_to_cache, _read_cache
from nadpipe.store import arrays
from nadpipe.store.arrays import create_zarr, open_zarr
from nadpipe.store.checksums import UNSEALED, list_files, read_table_bytes, seal
from nadpipe.store.kinds import all_kinds
from nadpipe.store.kinds.features import CONTRIBUTIONS, SHARD_MEANS
from nadpipe.store.label_maps import read_label_map, write_label_map
from nadpipe.store.png import read_png
from nadpipe.store.results import read_csv, read_settings
from nadpipe.store.schema import CsvKind
from nadpipe.store.tables import read_parquet, read_stamp, write_csv, write_parquet

FLIPS = 23  # per artifact
CSV_TABLES = [kind for kind in all_kinds() if isinstance(kind, CsvKind)]


@dataclasses.dataclass(frozen=True)
class Case:
    """An artifact: how to write it at a path, and how its reader reads all of it."""

    name: str
    write: Callable[[Path], None]
    read: Callable[[Path], object]


def store_case(kind, name=None, sizes=SIZES):
    def read(path):
        store = open_zarr(path, kind, MODEL)
        return {name: store.read(name).tolist() for name in sorted(store.group.array_keys())}  # with the coordinates

    return Case(name or kind.name, lambda path: fill(kind, path, sizes=sizes), read)


def parquet_case(kind):
    def read(path):
        return read_stamp(path, kind), read_parquet(path, kind, MODEL).to_dict("records"), read_table_bytes(path)

    return Case(f"{kind.name} table", lambda path: write_parquet(path, kind, rows(kind), MODEL), read)


def csv_case(kind):
    def write(path):
        write_csv(path / "t.csv", kind, pd.DataFrame({name: [0.25, 11] for name in kind.columns}))

    return Case(f"{kind.name} CSV", write, lambda path: (read_csv(path / "t.csv", kind), read_table_bytes(path / "t.csv")))


def write_map(path):
    (path / "nad").mkdir(parents=True)
    classes = np.random.default_rng(0).integers(0, 9, (40, 50))
    write_label_map(path, "nad", 3, classes, [(index, 9, 255 - index) for index in range(9)])


def write_overlay(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path, "PNG")


def write_provenance(path):
    path.mkdir()
    config = {"model": {"architecture": "RN50", "pretrained": "openai"}}
    (path / "provenance.json").write_text(json.dumps({"config": config, "checksum": UNSEALED}, indent=1))
    seal(path / "provenance.json")


def write_explorer(path):
    data = path / "data"
    (data / "firing").mkdir(parents=True)
    (data / "images").mkdir()
    sizes = {"heads": 2, "neurons": 1, "grid": 3, "texts": 4}
    for name, content in {"about": sizes, "texts": ["a", "b"], "neurons/0": {"pairs": [{"mean": 0.5}, {"mean": 2}]}}.items():
        _write_data(data, name, content)
    generator = np.random.default_rng(0)
    heat_image(generator.integers(-127, 128, (6, 12), dtype=np.int8)).save(data / "firing" / "0.png")
    Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(data / "images" / "7.jpg")
    list_files(path)


def read_explorer(path):
    explorer = Explorer(path)
    pictures = explorer.firing(1, 0).tolist(), np.asarray(explorer.image(7)).tolist()
    return explorer.sizes, explorer.texts, explorer.load("neurons/0"), pictures


def write_cache(path):
    path.mkdir()
    embedding = np.float32([0.6, 0.8, 0])
    _add_to_cache(path, MODEL, {"fish": embedding, "star": embedding[::-1]}, path / "t.zarr")


def read_cache(path):
    found = _read_cache(path, MODEL, 3, ["fish", "star"])
    return {text: embedding.tolist() for text, embedding in found.items()}


OTHERS = [
    Case("label map", write_map, lambda path: read_label_map((path,), "nad", 3).tolist()),
    Case("overlay", write_overlay, lambda path: np.asarray(read_png(path)).tolist()),
    Case("provenance", write_provenance, read_settings),
    Case("explorer", write_explorer, read_explorer),
    Case("cached texts", write_cache, read_cache),
]
FOUND_BY_LISTING = ("overlay", "cached texts")  # without a file there is one overlay, or one part of the cache, less
CASES = [
    *map(store_case, STORES),
    store_case(CONTRIBUTIONS, "contributions in several shards of several chunks", {**SIZES, "view": 23}),
    *map(parquet_case, TABLES),
    *map(csv_case, CSV_TABLES),
    *OTHERS,
]


@pytest.fixture
def artifact(request, tmp_path, monkeypatch):
    """Write an artifact; return its path, its case and its files."""
    case = request.param
    if "shards" in case.name:
        monkeypatch.setattr(arrays, "_FILE_BYTES", 700)
        monkeypatch.setattr(arrays, "_CHUNK_BYTES", 200)
    path = tmp_path / "artifact"
    case.write(path)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    assert files
    return path, case, files


def assert_refused(path, case):
    """Raise unless the reader refuses the artifact in one line that names it and says what to do."""
    with pytest.raises(NadpipeError) as error:
        case.read(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message or "label map is in none" in message, message
    assert "; " in message, message


every_artifact = pytest.mark.parametrize("artifact", CASES, ids=lambda case: case.name, indirect=True)


def test_a_thousand_bits_are_flipped():
    assert len(CASES) * FLIPS > 1000


@every_artifact
def test_an_artifact_with_a_flipped_bit_is_refused(artifact, tally):
    path, case, files = artifact
    case.read(path)
    generator = random.Random(0)
    for _ in range(FLIPS):
        file = generator.choice(files)
        content = file.read_bytes()
        position, bit = generator.randrange(len(content)), generator.randrange(8)
        damaged = bytearray(content)
        damaged[position] ^= 1 << bit
        file.write_bytes(damaged)
        assert_refused(path, case)
        tally("flipped bits in artifacts", True)
        file.write_bytes(content)
    case.read(path)  # whole again


def test_a_stage_that_meets_a_damaged_chunk_ends_with_one_line_and_leaves_no_output(tmp_path, capsys, tally):
    path, output = tmp_path / "means.zarr", tmp_path / "out" / "head_means.zarr"
    attributes = {"shard": 0, "shards": 1, "images": "x", "views": 5}
    with create_zarr(path, SHARD_MEANS, MODEL, SIZES, attributes=attributes) as store:
        for name, array in SHARD_MEANS.arrays.items():
            store.write(name, np.ones([SIZES[axis] for axis in array.axes]))
    [chunk] = [file for file in (path / "value_mean" / "c").rglob("*") if file.is_file()]
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    assert main(["average-heads", "--means", str(path), "--output", str(output)]) == BAD_INPUT
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith(f"nadpipe average-heads: {path}/value_mean: damaged array (")
    assert line.endswith(f"; delete {path} and make it again")
    assert list(tmp_path.rglob("*head_means*")) == []
    tally("damaged artifacts met by a stage", True)


@every_artifact
def test_an_artifact_with_an_empty_or_missing_file_is_refused(artifact, tally):
    path, case, files = artifact
    for file in files:
        content = file.read_bytes()
        file.write_bytes(b"")
        assert_refused(path, case)
        tally("empty files of artifacts", True)
        if case.name not in FOUND_BY_LISTING:
            file.unlink()
            assert_refused(path, case)
            tally("missing files of artifacts", True)
        file.write_bytes(content)
