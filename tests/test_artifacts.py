import dataclasses
import json
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
import zarr

from nadpipe.errors import NadpipeError
from nadpipe.store import arrays
from nadpipe.store import kinds as kinds_package
from nadpipe.store.arrays import create_zarr, open_zarr
from nadpipe.store.atomic import atomic_path
from nadpipe.store.checksums import LISTING, list_files
from nadpipe.store.kinds import FAMILIES, all_kinds
from nadpipe.store.kinds.features import CONTRIBUTIONS, DENSE, FEATURES, SHARD_MEANS
from nadpipe.store.kinds.images import IMAGES
from nadpipe.store.kinds.model import READOUT
from nadpipe.store.kinds.texts import TEXT
from nadpipe.store.kinds.units import UNIT_TABLES
from nadpipe.store.manifest import read_images
from nadpipe.store.schema import CsvKind, StoreKind, TableKind
from nadpipe.store.stamp import Stamp
from nadpipe.store.tables import TYPES, read_parquet, read_stamp, write_csv, write_parquet

KINDS = all_kinds()
STORES = [kind for kind in KINDS if isinstance(kind, StoreKind)]
TABLES = [kind for kind in KINDS if isinstance(kind, TableKind)]
MODEL = Stamp(model="a" * 64, architecture="RN50", code="123")
OTHER = Stamp(model="b" * 64, architecture="RN50x16", code="123")
SIZES = {
    "view": 5,
    "head": 2,
    "neuron": 6,
    "token": 4,
    "key": 5,
    "prefix": 1,
    "layer": 2,
    "part": 3,
    "recipe": 2,
    "shown": 4,
    "map": 5,
    "bin": 3,
    "end": 2,
    "embed": 3,
    "stream": 6,
    "width": 3,
    "frequency": 2,
    "component": 2,
    "text": 3,
    "rank": 4,
    "kept": 2,
}
TEXTS = ["a fish", "naïve ≠", "日本"]


def fill(kind, path, model=MODEL, sizes=SIZES):
    """Write a store of a kind with random values, and return these values."""
    rng = np.random.default_rng(0)
    values = {}
    with create_zarr(path, kind, model, sizes, texts=TEXTS, attributes={"shard": 0, "shards": 1, "images": "x"}) as store:
        for name, array in kind.arrays.items():
            if array.type == "text":
                continue
            shape = tuple(sizes[axis] for axis in array.axes)
            values[name] = rng.normal(size=shape).astype("f4") if array.type == "float" else rng.integers(0, 9, shape)
            store.write(name, values[name])
    return values


@pytest.mark.parametrize("kind", STORES, ids=lambda kind: kind.name)
def test_every_store_survives_the_round_trip_and_opens_in_xarray(tmp_path, kind):
    path = tmp_path / "a b" / "store.zarr"
    values = fill(kind, path)
    store = open_zarr(path, kind, MODEL)
    dataset = xr.open_zarr(path)
    assert dataset.attrs["kind"] == kind.name
    for name, value in values.items():
        np.testing.assert_array_equal(store[name][:], value)
        np.testing.assert_array_equal(dataset[name].values, value)
        assert dataset[name].dims == kind.arrays[name].axes
        assert dataset[name].attrs["units"]
        assert dataset[name].attrs["source"]
    if "text" in kind.arrays:
        assert store.texts() == TEXTS
        assert list(dataset["text"].values) == TEXTS
    assert zarr.open_group(str(path), mode="r").metadata.consolidated_metadata is not None


def test_every_family_of_kinds_is_listed_and_names_are_unique():
    assert set(FAMILIES) == {module.name for module in pkgutil.iter_modules([str(Path(kinds_package.__file__).parent)])}
    assert len({kind.name for kind in KINDS}) == len(KINDS)


def test_only_optional_arrays_may_be_missing(tmp_path):
    sizes = {axis: size for axis, size in SIZES.items() if axis != "neuron"}
    with create_zarr(tmp_path / "r.zarr", READOUT, MODEL, sizes, omit=READOUT.optional) as store:
        for name, array in READOUT.arrays.items():
            if name not in READOUT.optional:
                store.write(name, np.zeros([SIZES[axis] for axis in array.axes]))
    store = open_zarr(tmp_path / "r.zarr", READOUT)
    assert [name for name in READOUT.arrays if name in store] == ["value", "value_bias", "output", "output_bias", "layer"]
    with create_zarr(tmp_path / "bad.zarr", READOUT, MODEL, SIZES, omit=(*READOUT.optional, "layer")) as store:
        for name in ("value", "value_bias", "output", "output_bias"):
            store.write(name, np.zeros([SIZES[axis] for axis in READOUT.arrays[name].axes]))
    with pytest.raises(NadpipeError, match="array layer is missing"):
        open_zarr(tmp_path / "bad.zarr", READOUT)


def test_readers_find_the_coordinates_they_expect(tmp_path):
    fill(FEATURES, tmp_path / "features.zarr")
    fill(CONTRIBUTIONS, tmp_path / "contributions.zarr")
    features, contributions = (xr.open_zarr(tmp_path / f"{name}.zarr") for name in ("features", "contributions"))
    assert features["token"].values.tolist() == [1, 2, 3, 4]  # spatial tokens alone
    assert contributions["token"].values.tolist() == [0, 1, 2, 3]
    assert "image_id" in features["activation"].coords
    assert "image_id" in contributions["coefficient"].coords
    assert contributions["coefficient"].sel(head=1, neuron=5).dims == ("view",)
    joined = features["activation"].sel(token=2) * contributions["attention"].sel(token=2)
    assert joined.dims == ("view", "neuron", "head")


def test_blocks_of_any_size_are_joined_and_files_stay_few(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "_FILE_BYTES", 700)
    monkeypatch.setattr(arrays, "_CHUNK_BYTES", 200)
    sizes = {**SIZES, "view": 23}
    coefficient = np.random.default_rng(0).normal(size=(23, 2, 6)).astype("f4")
    others = {name: np.ones([sizes[axis] for axis in array.axes]) for name, array in CONTRIBUTIONS.arrays.items()}
    del others["coefficient"]
    with create_zarr(tmp_path / "c.zarr", CONTRIBUTIONS, MODEL, sizes) as store:
        store.append(coefficient=coefficient[:1])
        store.append(coefficient=coefficient[1:20])
        store.append(coefficient=coefficient[20:])
        store.append(**others)
    store = open_zarr(tmp_path / "c.zarr", CONTRIBUTIONS)
    np.testing.assert_array_equal(store["coefficient"][:], coefficient)
    files = [path for path in (tmp_path / "c.zarr" / "coefficient").rglob("*") if path.is_file()]
    assert 1 < len(files) - 1 <= 4
    assert store["coefficient"].chunks == (4, 2, 6)


def test_one_image_and_one_pair_are_both_read_from_small_parts_of_a_shard():
    chunks, shards = arrays._layout(CONTRIBUTIONS.arrays["coefficient"], (1000, 48, 3072), 4)
    assert chunks == (32, 2, 3072)  # a pair's column is read without the other heads, an image without the whole shard
    assert shards == (96, 48, 3072)


def test_missing_rows_are_an_error_and_leave_no_file(tmp_path):
    with (
        pytest.raises(ValueError, match="coefficient has 3 of 5 rows"),
        create_zarr(tmp_path / "c.zarr", CONTRIBUTIONS, MODEL, SIZES) as store,
    ):
        store.append(coefficient=np.zeros((3, 2, 6)))
    with (
        pytest.raises(ValueError, match="value_mean has 0 of 2 rows"),
        create_zarr(tmp_path / "c.zarr", SHARD_MEANS, MODEL, SIZES) as store,
    ):
        for name, array in SHARD_MEANS.arrays.items():
            if name != "value_mean":
                store.write(name, np.zeros([SIZES[axis] for axis in array.axes]))
    assert list(tmp_path.iterdir()) == []


def test_regions_can_be_put_in_any_order_and_each_is_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "_FILE_BYTES", 30)
    monkeypatch.setattr(arrays, "_CHUNK_BYTES", 12)
    values = np.random.default_rng(0).normal(size=(5, 2, 6, 3)).astype("f4")
    with create_zarr(tmp_path / "d.zarr", DENSE, MODEL, SIZES) as store:
        store.write("image_id", np.arange(5))
        regions = store.regions("contribution")
        assert len(regions) == 5 * 2 * 3  # two neurons of 12 bytes a file
        for region in regions[::-1][1:]:
            store.put("contribution", region, values[region])
        store.put("contribution", (slice(4, None), slice(1, 2), slice(-2, None), slice(None)), values[4:, 1:, -2:])
    np.testing.assert_array_equal(open_zarr(tmp_path / "d.zarr", DENSE)["contribution"][:], values)
    files = [path for path in (tmp_path / "d.zarr" / "contribution" / "c").rglob("*") if path.is_file()]
    assert len(files) == len(regions)


@pytest.mark.parametrize(
    ("neurons", "given", "message"),
    [
        (slice(1, 3), 2, "does not follow the shards"),
        (slice(0, 3), 3, "does not follow the shards"),
        (slice(0, 6, 2), 3, "does not follow the shards"),
        (slice(2, 4), 1, r"has shape \(1, 1, 2, 3\), values have \(1, 1, 1, 3\)"),
        (slice(0, 4), 4, "was written before"),
        (slice(4, 6), 2, "contribution has 2 of 30 shards"),
    ],
)
def test_regions_that_cut_repeat_or_miss_files_are_an_error_and_leave_no_file(tmp_path, monkeypatch, neurons, given, message):
    monkeypatch.setattr(arrays, "_FILE_BYTES", 30)
    monkeypatch.setattr(arrays, "_CHUNK_BYTES", 12)
    with (
        pytest.raises(ValueError, match=message),
        create_zarr(tmp_path / "d.zarr", DENSE, MODEL, SIZES) as store,
    ):
        store.write("image_id", np.arange(5))
        for rows, length in ((slice(0, 2), 2), (neurons, given)):
            store.put("contribution", (slice(0, 1), slice(0, 1), rows, slice(None)), np.ones((1, 1, length, 3)))
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_writer_are_removed(tmp_path):
    (tmp_path / ".t.zarr.999.partial").mkdir()
    (tmp_path / ".other.zarr.999.partial").mkdir()
    fill(TEXT, tmp_path / "t.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.zarr.999.partial", "t.zarr"]


WRITER = """
import sys
from pathlib import Path
from nadpipe.store.atomic import atomic_path

with atomic_path(Path(sys.argv[1])) as partial:
    partial.mkdir()
    (partial / "first").write_text(sys.argv[2])
    print("begun", flush=True)
    sys.stdin.readline()
    (partial / "last").write_text(sys.argv[2])
"""


def start_writer(path, name):
    command = [sys.executable, "-c", WRITER, str(path), name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_writer_waits_for_a_job_that_outlived_its_run(tmp_path):
    path = tmp_path / "store"
    orphan = start_writer(path, "orphan")
    assert orphan.stdout.readline() == "begun\n"
    successor = start_writer(path, "successor")
    assert "another process is writing it" in successor.stderr.readline()
    assert len(list(tmp_path.glob(".store.*.partial"))) == 1
    orphan.communicate("\n", timeout=60)
    successor.communicate("\n", timeout=60)
    assert [orphan.returncode, successor.returncode] == [0, 0]
    assert [name.read_text() for name in path.iterdir()] == ["successor"] * 2
    assert [name.name for name in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("killed_after", ["move aside", "rename"])
def test_a_killed_writer_leaves_no_mixture_of_an_old_and_a_new_folder(tmp_path, monkeypatch, killed_after):
    """The steps are: move the old folder aside, rename the new one, delete the old one."""
    path = tmp_path / "store"

    def write(content):
        with atomic_path(path) as partial:
            partial.mkdir()
            for name in content:
                (partial / name).write_text(content)

    write("old")
    with monkeypatch.context() as patched:
        rename = Path.replace

        def rename_and_die(source, target):
            if killed_after == "rename" or Path(target) != path:
                rename(source, target)
            if Path(target) == path:
                os._exit(9)

        patched.setattr(Path, "replace", rename_and_die)
        child = os.fork()
        if child == 0:
            write("new")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert path.exists() == (killed_after == "rename")
    assert not path.exists() or {file.name: file.read_text() for file in path.iterdir()} == dict.fromkeys("new", "new")
    assert list(tmp_path.glob(".store.old.*.partial"))
    write("more")
    assert [file.name for file in tmp_path.iterdir()] == ["store"]
    assert {file.name: file.read_text() for file in path.iterdir()} == dict.fromkeys("more", "more")


def test_a_folder_that_cannot_be_replaced_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "store"
    fill(TEXT, path)
    rename = Path.replace

    def fail(source, target):
        if source.suffix == ".partial" and ".old." not in source.name and Path(target) == path:
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no"):
        fill(TEXT, path, OTHER)
    open_zarr(path, TEXT, MODEL)
    assert [file.name for file in tmp_path.iterdir()] == ["store"]


def test_all_bytes_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    """A power cut after a rename without a flush leaves empty files under the final name."""
    steps, flush, rename = [], os.fsync, Path.replace

    def path_of(descriptor):
        return Path(f"/proc/self/fd/{descriptor}").readlink()

    def record(source, target):
        steps.append(target)
        return rename(source, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: (steps.append(path_of(descriptor)), flush(descriptor)))
    monkeypatch.setattr(Path, "replace", record)
    fill(TEXT, tmp_path / "s.zarr")
    renamed = steps.index(tmp_path / "s.zarr")
    before, after = [step for step in steps[:renamed] if ".partial" in str(step)], steps[renamed + 1 :]
    assert steps.count(tmp_path / "s.zarr") == 1
    partial = min(before, key=lambda path: len(path.parts))
    written = [path.relative_to(tmp_path / "s.zarr") for path in (tmp_path / "s.zarr").rglob("*")]
    assert {path.relative_to(partial) for path in before} == {Path(), *written}
    assert after == [tmp_path]


def test_the_lock_of_a_killed_writer_is_released(tmp_path):
    killed = start_writer(tmp_path / "store", "killed")
    assert killed.stdout.readline() == "begun\n"
    killed.kill()
    killed.communicate(timeout=60)
    with atomic_path(tmp_path / "store") as partial:
        partial.mkdir()
    assert [name.name for name in tmp_path.iterdir()] == ["store"]


def test_an_interrupted_writer_keeps_the_old_artifact(tmp_path):
    path = tmp_path / "text.zarr"
    before = fill(TEXT, path)
    with pytest.raises(KeyboardInterrupt), create_zarr(path, TEXT, MODEL, SIZES, texts=TEXTS):
        raise KeyboardInterrupt
    np.testing.assert_array_equal(open_zarr(path, TEXT)["embedding"][:], before["embedding"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["text.zarr"]


def test_writing_again_replaces_every_chunk(tmp_path):
    fill(TEXT, tmp_path / "t.zarr")
    small = {**SIZES, "text": 1}
    with create_zarr(tmp_path / "t.zarr", TEXT, OTHER, small, texts=["x"]) as store:
        store.write("embedding", np.ones((1, 3)))
    assert open_zarr(tmp_path / "t.zarr", TEXT, OTHER)["embedding"].shape == (1, 3)


@pytest.mark.parametrize("kind", STORES, ids=lambda kind: kind.name)
def test_a_store_of_another_model_kind_or_format_is_refused(tmp_path, kind):
    path = tmp_path / "s.zarr"
    fill(kind, path)
    with pytest.raises(NadpipeError, match=r"s\.zarr: is for model RN50 aaaaaaaa, this run is RN50x16 bbbbbbbb"):
        open_zarr(path, kind, OTHER)
    another = next(other for other in STORES if other != kind)
    with pytest.raises(NadpipeError, match=f"holds {kind.name}, expected {another.name}"):
        open_zarr(path, another, MODEL)
    zarr.open_group(str(path), mode="a").attrs["format"] = 99
    list_files(path)
    with pytest.raises(NadpipeError, match=f"has format 99, this nadpipe reads format {kind.format}"):
        open_zarr(path, kind, MODEL)


@pytest.mark.parametrize("kind", STORES, ids=lambda kind: kind.name)
def test_a_store_that_lacks_a_file_is_refused_and_not_read_as_zeros(tmp_path, kind):
    path = tmp_path / "s.zarr"
    fill(kind, path)
    (path / ".snakemake_timestamp").touch()  # as in every folder that Snakemake has made
    shared = tmp_path / "shared.zarr"
    shared.mkdir()
    for member in path.iterdir():
        (shared / member.name).symlink_to(member)  # as Snakemake's cache does
    open_zarr(shared, kind, MODEL)
    chunks = sorted(file for file in path.rglob("*") if file.is_file() and file.name[0] not in "z.")
    chunks[-1].unlink()
    lacks = r"s\.zarr: lacks [a-z_0-9/]+ and has \d+ of its \d+ files, as after a lost connection; delete it"
    with pytest.raises(NadpipeError, match=lacks):
        open_zarr(path, kind, MODEL)


def test_a_store_of_format_5_which_had_no_checksums_is_refused(tmp_path):
    fill(TEXT, tmp_path / "s.zarr")
    (tmp_path / "s.zarr" / LISTING).unlink()
    with pytest.raises(NadpipeError, match=r"s\.zarr: checksums\.json is missing; delete the store and make it again"):
        open_zarr(tmp_path / "s.zarr", TEXT)
    zarr.open_group(str(tmp_path / "s.zarr"), mode="a").attrs["format"] = 5
    with pytest.raises(
        NadpipeError, match=r"s\.zarr: has format 5 of an older nadpipe, this nadpipe reads format 6; delete it"
    ):
        open_zarr(tmp_path / "s.zarr", TEXT)
    metadata = {b"nadpipe": json.dumps(MODEL.attributes(dataclasses.replace(IMAGES, format=5))).encode()}
    pq.write_table(pa.table({"path": ["a"]}).replace_schema_metadata(metadata), tmp_path / "t.parquet")
    with pytest.raises(
        NadpipeError, match=r"t\.parquet: has format 5 of an older nadpipe, this nadpipe reads format 6; delete"
    ):
        read_parquet(tmp_path / "t.parquet", IMAGES)


def test_a_file_that_was_added_to_a_store_is_refused(tmp_path):
    """Zarr reads a chunk that was not written as zeros, and would read an added file in its place."""
    with create_zarr(tmp_path / "s.zarr", TEXT, MODEL, SIZES, texts=TEXTS) as store:
        store.write("embedding", np.zeros((3, 3)))
    np.testing.assert_array_equal(open_zarr(tmp_path / "s.zarr", TEXT).read("embedding"), 0)
    fill(TEXT, tmp_path / "other.zarr")
    chunk = Path("embedding", "c", "0", "0")
    (tmp_path / "s.zarr" / chunk).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(tmp_path / "other.zarr" / chunk, tmp_path / "s.zarr" / chunk)
    with pytest.raises(NadpipeError, match=r"embedding/c/0/0: was not written with .*s\.zarr; delete it"):
        open_zarr(tmp_path / "s.zarr", TEXT)


def test_images_that_were_copied_are_found_in_the_copy(tmp_path):
    table = rows(IMAGES).assign(path=["far/a.png", "far/sub/b.png"], mask_path=["far/m/a.png", None])
    table["problem"] = [None, "far/sub/b.png: is empty"]
    write_parquet(tmp_path / "i.parquet", IMAGES, table, MODEL)
    images = read_images(tmp_path / "i.parquet", ("far", "/near/it"))
    assert images["path"].tolist() == ["/near/it/a.png", "/near/it/sub/b.png"]
    assert images["mask_path"].tolist() == ["/near/it/m/a.png", None]
    assert images["problem"].tolist() == [None, "/near/it/sub/b.png: is empty"]
    with pytest.raises(NadpipeError, match=r"far/a\.png: is not in fa; keep all images and masks"):
        read_images(tmp_path / "i.parquet", ("fa", "near"))


def test_a_store_with_other_axes_or_numbers_is_refused(tmp_path):
    for name, shape, axes, dtype, message in [
        ("axes", (3, 3), ("embed", "text"), "f4", "axes of embedding are"),
        ("numbers", (3, 3), ("text", "embed"), "i8", "embedding holds int64, expected float"),
    ]:
        path = tmp_path / f"{name}.zarr"
        fill(TEXT, path)
        group = zarr.open_group(str(path), mode="a")
        del group["embedding"]
        group.create_array("embedding", shape=shape, dtype=dtype, dimension_names=axes)[:] = 1
        zarr.consolidate_metadata(group.store)
        list_files(path)
        with pytest.raises(NadpipeError, match=message):
            open_zarr(path, TEXT)


@pytest.mark.parametrize("content", [None, "", "{"])
def test_a_path_that_is_no_store_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "none.zarr"
    if content is not None:
        path.mkdir()
        (path / "zarr.json").write_text(content)
    with pytest.raises(NadpipeError) as error:
        open_zarr(path, TEXT)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def rows(kind):
    """Return a table of a kind with values in every column."""

    def values(numbers):
        if pa.types.is_list(numbers):
            return [np.array(values(numbers.value_type))] * 2
        if pa.types.is_boolean(numbers):
            return [True, False]
        if pa.types.is_integer(numbers):
            return [3, 1]
        return [0.5, np.nan] if pa.types.is_floating(numbers) else ["b", "a"]

    return pd.DataFrame({name: values(TYPES[column.type]) for name, column in kind.columns.items()})


@pytest.mark.parametrize("kind", TABLES, ids=lambda kind: kind.name)
def test_every_table_survives_the_round_trip_and_opens_in_duckdb(tmp_path, kind):
    path = tmp_path / "table.parquet"
    table = rows(kind)
    write_parquet(path, kind, table, MODEL)
    back = read_parquet(path, kind, MODEL)
    pd.testing.assert_frame_equal(back, table, check_dtype=False)
    loaded = duckdb.sql(f"select * from '{path}'").df()
    assert list(loaded.columns) == list(kind.columns)
    assert len(loaded) == 2
    schema = pq.read_schema(path)
    assert all(schema.field(name).metadata[b"comment"] for name in schema.names)
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"


@pytest.mark.parametrize("kind", TABLES, ids=lambda kind: kind.name)
def test_a_table_of_another_model_kind_or_format_is_refused(tmp_path, kind):
    path = tmp_path / "t.parquet"
    write_parquet(path, kind, rows(kind), MODEL)
    with pytest.raises(NadpipeError, match="is for model RN50"):
        read_parquet(path, kind, OTHER)
    assert read_stamp(path, kind) == MODEL
    another = next(other for other in TABLES if other != kind)
    for read in (read_parquet, read_stamp):
        with pytest.raises(NadpipeError, match=f"holds {kind.name}, expected {another.name}"):
            read(path, another)
        newer = kind.format + 1
        older = rf"has format {kind.format} of an older nadpipe, this nadpipe reads format {newer}; delete it and make it again"
        with pytest.raises(NadpipeError, match=older):
            read(path, dataclasses.replace(kind, format=newer))


def test_a_foreign_or_broken_table_is_refused(tmp_path):
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "foreign.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    for name, message in [("foreign", "holds no nadpipe artifact"), ("broken", "not a readable"), ("absent", "not a readable")]:
        with pytest.raises(NadpipeError, match=message):
            read_parquet(tmp_path / f"{name}.parquet", IMAGES)


def test_the_source_tables_own_columns_are_kept(tmp_path):
    table = rows(IMAGES).assign(camera=["x", "y"], fish=[0, 1])
    write_parquet(tmp_path / "i.parquet", IMAGES, table, MODEL, sources=True)
    assert read_parquet(tmp_path / "i.parquet", IMAGES)[["camera", "fish"]].to_numpy().tolist() == [["x", 0], ["y", 1]]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if isinstance(kind, CsvKind)], ids=lambda kind: kind.name)
def test_results_tables_have_their_columns_in_order(tmp_path, kind):
    table = pd.DataFrame({name: [1, 2] for name in reversed(kind.columns)})
    write_csv(tmp_path / "r.csv", kind, table)
    assert list(pd.read_csv(tmp_path / "r.csv").columns) == list(kind.columns)


def test_the_same_values_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        fill(CONTRIBUTIONS, tmp_path / name / "c.zarr")
        write_parquet(tmp_path / name / "t.parquet", UNIT_TABLES["pair"], rows(UNIT_TABLES["pair"]), MODEL)
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) > 10
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
