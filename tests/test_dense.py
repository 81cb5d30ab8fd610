"""The dense tensor, computed on access and as a store, against the paper's formula by plain loops."""

import math
import pickle
import shutil
from types import SimpleNamespace

import dask.array
import numpy as np
import pytest
import torch
import xarray as xr
from conftest import activations, make_pool
from reference import dense_contributions
from stage_run import noise

from nadpipe.circuit import readout as readouts
from nadpipe.circuit.attention import trace
from nadpipe.circuit.readout import pair_constants, write_vectors
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint
from nadpipe.stages.export_dense import export_dense
from nadpipe.store import arrays, dense
from nadpipe.store.arrays import create_zarr, open_zarr
from nadpipe.store.dense import DenseContributions, open_dense
from nadpipe.store.kinds.features import CONTRIBUTIONS, DENSE, FEATURES
from nadpipe.store.pool import write_pool
from nadpipe.store.schema import Array
from nadpipe.store.stamp import Stamp

MODEL = Stamp(model="a" * 64, architecture="RN50", code="123")
SHARDS = (3, 1, 3)  # views of each
VIEWS = sum(SHARDS)


def write_stores(folder, pool, coefficient, dtype="float32"):
    """Write the readout and shards with these coefficients, as stages do; arrays that no test reads are zero."""
    write_pool(folder / "pool.zarr", pool, MODEL, {})
    sizes = {"head": pool.heads, "neuron": pool.neurons, "token": pool.tokens, "embed": pool.embed}
    paths, start = [], 0
    for shard, views in enumerate(SHARDS):
        paths.append(folder / f"{shard}.zarr")
        attributes = {"shard": shard, "shards": len(SHARDS), "images": "x"}
        sizes["view"] = views
        with create_zarr(paths[-1], CONTRIBUTIONS, MODEL, sizes, {"coefficient": dtype}, attributes=attributes) as store:
            for name, array in CONTRIBUTIONS.arrays.items():
                store.write(name, np.zeros([sizes[axis] for axis in array.axes]))
            store.write("image_id", np.arange(start, start + views))
            store.write("coefficient", coefficient[start : start + views])
        start += views
    return paths, folder / "pool.zarr"


def coefficients(z, pool):
    return readouts.coefficients(trace(z, pool), pool.readout)


def by_axis(full, index):
    """Index with numpy, one axis after the other, so that several lists select their outer product."""
    keys = list(index) if isinstance(index, tuple) else [index]
    ellipsis = next((axis for axis, key in enumerate(keys) if key is ...), len(keys))
    missing = 5 - len(keys) if ellipsis < len(keys) else 4 - len(keys)
    keys[ellipsis : ellipsis + 1] = [slice(None)] * missing
    for axis in (3, 2, 1, 0):
        full = full[(slice(None),) * axis + (keys[axis],)]
    return full


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return an open tensor, all its values from one slice, and the paths it was opened from."""
    _, pool = make_pool(4, 64, 16, 3)
    paths, store = write_stores(tmp_path_factory.mktemp("small"), pool, coefficients(activations(pool, VIEWS), pool))
    view = open_dense(paths, store)
    return view, view[:, :, :, :], paths, store


def test_the_open_tensor_is_the_dense_tensor(tmp_path, pool):
    z = activations(pool, VIEWS)
    full, _, total = dense_contributions(z, pool)
    view = open_dense(*write_stores(tmp_path, pool, coefficients(z, pool)))
    assert view.shape == full.shape
    assert (view.ndim, view.dtype, view.size, len(view)) == (4, np.float32, full.size, VIEWS)
    assert view.axes == ("view", "head", "neuron", "embed")
    assert repr(view) == "DenseContributions(view: {}, head: {}, neuron: {}, embed: {})".format(*full.shape)
    values = np.asarray(view)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, full, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(values.sum((1, 2), dtype="f8"), total, rtol=1e-4, atol=1e-5)
    for head in range(pool.heads):
        np.testing.assert_allclose(view[2:5, head, -1], full[2:5, head, -1], rtol=1e-4, atol=1e-5)


BASIC = [
    np.s_[0],
    np.s_[-1],
    np.s_[np.int64(3)],
    np.s_[...],
    np.s_[()],
    np.s_[4, 3, 63, 15],
    np.s_[-7, -4, -64, -16],
    np.s_[2:5],
    np.s_[-3:-1, 1:, :7],
    np.s_[::-1],
    np.s_[5:0:-2, ::3, ::-5, 3::4],
    np.s_[3:3],
    np.s_[5:2, 0],
    np.s_[90:],
    np.s_[:100],
    np.s_[..., 0],
    np.s_[..., 2, 5, 1],
    np.s_[6, ..., 1:],
    np.s_[:, 0, 1],
    np.s_[0, 0, 0, 0, ...],
    np.s_[:, 1:1],
]
OUTER = [
    [3, 0, 3],
    [2, 3, 4],
    np.array([-1, 2, 4, 2]),
    np.s_[[6, 1], [3, 1], [60, 0, 60], [15, 2]],
    np.s_[[6, 1], [2], 5, :3],
    np.s_[..., [1, 0]],
    np.s_[:, [0, -1], ..., 4],
    np.s_[np.arange(VIEWS) % 2 == 0, :, np.arange(64) > 60],
    np.s_[[True, False] * 3 + [True]],
    np.s_[np.zeros(VIEWS, bool)],
    np.s_[[], 0],
    np.s_[0, [], []],
    np.s_[np.array([5], np.uint8), np.array(2)],
]


@pytest.mark.parametrize("index", [*BASIC, *OUTER], ids=str)
def test_every_index_gives_what_numpy_gives(small, index):
    view, full, *_ = small
    computed, expected = view[index], by_axis(full, index)
    assert type(computed) is type(expected)
    assert computed.dtype == np.float32
    assert computed.shape == expected.shape
    np.testing.assert_allclose(computed, expected, rtol=1e-5, atol=1e-7)
    if any(index is basic for basic in BASIC):
        assert computed.shape == full[index].shape


def test_tuples_and_ranges_are_lists(small):
    view, full, *_ = small
    np.testing.assert_allclose(view[(5, 0), range(1, 3)], full[[5, 0]][:, 1:3], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (VIEWS, "view: index 7 is out of bounds"),
        (-VIEWS - 1, "view: index -8 is out of bounds"),
        (np.s_[0, [0, 4]], "head: index 4 is out of bounds"),
        (np.s_[..., -17], "embed: index -17 is out of bounds"),
        (np.s_[0, 0, 0, 0, 0], "too many indices"),
        (np.s_[..., 0, ...], "one Ellipsis"),
        (np.s_[None], "view: None is not an integer"),
        (np.s_[:, True], "head: True is not an integer"),
        (1.0, "view: only integers"),
        ("view", "view: only integers"),
        (np.s_[:, [[0], [1]]], "head: .* is not an integer"),
        (np.s_[:, :, np.ones(3, bool)], "neuron: boolean index did not match"),
    ],
    ids=str,
)
def test_an_invalid_index_is_an_index_error(small, index, message):
    with pytest.raises(IndexError, match=message):
        small[0][index]


def test_only_the_requested_part_is_read_and_computed(tmp_path, small, monkeypatch):
    _, full, paths, store = small
    copies = [shutil.copytree(path, tmp_path / path.name) for path in paths]
    for copy in copies[::2]:
        for file in (copy / "coefficient" / "c").rglob("*"):
            if file.is_file():
                file.write_bytes(bytes(255 - byte for byte in file.read_bytes()))  # of the same size, so that it opens
    damaged = open_dense(copies, store)
    computed = []
    write_vector_entries = dense.write_vector_entries

    def spy(*arguments):
        computed.append(write_vector_entries(*arguments))
        return computed[-1]

    monkeypatch.setattr(dense, "write_vector_entries", spy)
    np.testing.assert_allclose(damaged[3, [2], 5:8, ::2], full[3, [2], 5:8, ::2], rtol=1e-5, atol=1e-7)
    assert [write.shape for write in computed] == [(1, 3, 8)]
    with pytest.raises(NadpipeError, match=r"coefficient: damaged array \(ValueError\); delete"):
        damaged[2]


def test_float16_coefficients_are_computed_with_in_float32(tmp_path):
    _, pool = make_pool(2, 8, 12, 2)
    coefficient = coefficients(activations(pool, VIEWS), pool)
    view = open_dense(*write_stores(tmp_path, pool, coefficient, "float16"))
    assert view[3:5].dtype == np.float32
    rounded = coefficient.half().float()[..., None] * torch.stack([write_vectors(pool.readout, head) for head in (0, 1)])
    np.testing.assert_allclose(view[...], rounded + pair_constants(pool.readout)[:, None], rtol=1e-5, atol=1e-6)


def test_missing_shards_are_refused_and_shards_are_sorted(small):
    _, _, paths, store = small
    with pytest.raises(NadpipeError, match=r"shards \[0, 2\], expected 0 to 2"):
        open_dense([paths[2], paths[0]], store)
    assert open_dense(paths[::-1], store)[-1, 0, 0, 0] == open_dense(paths, store)[-1, 0, 0, 0]


def test_dask_and_xarray_compute_on_the_view(small, tmp_path):
    view, full, *_ = small
    lazy = dask.array.from_array(view, chunks=(2, 1, 32, -1))
    assert (lazy.shape, lazy.dtype, lazy.numblocks) == (full.shape, full.dtype, (4, 4, 2, 1))
    np.testing.assert_allclose(lazy[1:6, :, [3, 40]].compute(), full[1:6, :, [3, 40]], rtol=1e-5, atol=1e-7)
    array = xr.DataArray(lazy, dims=view.axes)
    np.testing.assert_allclose(array.isel(view=-1, neuron=slice(0, 9)), full[-1, :, :9], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(array.sum(("head", "neuron")), full.sum((1, 2)), rtol=1e-4, atol=1e-5)
    _, pool = make_pool(4, 64, 16, 3)
    other = open_dense(*write_stores(tmp_path, pool, coefficients(activations(pool, VIEWS, seed=8), pool)))
    assert dask.array.from_array(other).name != lazy.name  # dask computes arrays of one name once
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(view))[4, 0], view[4, 0])  # as dask sends it to other processes


# ------------------------------------------------------------------------------------------------------------ the store


@pytest.fixture
def run(run):
    run.write_images(noise(5))
    return run


def disk(free):
    return lambda path: SimpleNamespace(total=10**15, used=0, free=free)


def test_the_store_is_the_dense_tensor_and_sums_to_the_embedding(run, capsys):
    contributions = run.decompose(shards=2)
    view, start = open_dense(contributions, run.pool), 0
    for shard, path in enumerate(contributions):
        output = run.folder / "new" / f"dense-{shard}.zarr"
        capsys.readouterr()
        export_dense(path, run.pool, output)
        source, stored = open_zarr(path, CONTRIBUTIONS), open_zarr(output, DENSE)
        views = source["image_id"].shape[0]
        lines = capsys.readouterr().err
        assert f"{output}: {views} view × 4 head × 128 neuron × 12 embed takes 0.0000" in lines
        assert " GB as float32, " in lines
        assert "writing contributions: 1/1 block" in lines
        np.testing.assert_allclose(stored["contribution"][:], view[start : start + views], rtol=1e-5, atol=1e-6)
        summed = stored["contribution"][:].sum((1, 2), dtype="f8")
        np.testing.assert_allclose(summed, source["embedding"][:], rtol=1e-4, atol=1e-5)
        dataset = xr.open_zarr(output)
        assert dataset["contribution"].dims == ("view", "head", "neuron", "embed")
        assert dataset["contribution"].dtype == np.float32
        assert dataset["contribution"].attrs["units"] == "embedding units"
        assert dataset["contribution"].coords["image_id"].values.tolist() == list(range(start, start + views))
        pair = dataset["contribution"].sel(head=3, neuron=127).values
        np.testing.assert_allclose(pair, view[start : start + views, 3, 127], rtol=1e-5, atol=1e-6)
        assert {name: dataset.attrs[name] for name in ("shard", "shards")} == {"shard": shard, "shards": 2}
        assert dataset.attrs["code"] == code_fingerprint("nadpipe.stages.export_dense")
        start += views
    assert start == view.shape[0] == 5


def test_a_view_larger_than_a_file_is_computed_and_written_in_parts(run, monkeypatch):
    [path] = run.decompose()
    monkeypatch.setattr(arrays, "_FILE_BYTES", 2000)
    monkeypatch.setattr(arrays, "_CHUNK_BYTES", 600)
    blocks = []
    make = DenseContributions.__getitem__
    monkeypatch.setattr(DenseContributions, "__getitem__", lambda view, index: blocks.append(make(view, index)) or blocks[-1])
    export_dense(path, run.pool, run.folder / "dense.zarr")
    monkeypatch.undo()
    assert max(block.nbytes for block in blocks) <= 2000
    assert len(blocks) == 5 * 4 * 4  # 36 neurons in each but the last
    files = [file for file in (run.folder / "dense.zarr" / "contribution" / "c").rglob("*") if file.is_file()]
    assert len(files) == len(blocks)
    stored = open_zarr(run.folder / "dense.zarr", DENSE)["contribution"]
    np.testing.assert_allclose(stored[:], open_dense([path], run.pool)[...], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "item"), [("float32", 4), ("float16", 2)])
def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(run, monkeypatch, dtype, item):
    [path] = run.decompose()
    output = run.folder / "new" / "deep" / "dense.zarr"
    need = 5 * 4 * 128 * 12 * item
    before = sorted(run.folder.rglob("*"))
    monkeypatch.setattr(shutil, "disk_usage", disk(need - 1))
    with pytest.raises(NadpipeError) as refused:
        export_dense(path, run.pool, output, dtype)
    text = str(refused.value)
    gigabytes = {4: "0.000123 GB", 2: "0.0000614 GB"}[item]
    assert text.startswith(f"{output}: the dense tensor takes {gigabytes} as {dtype}, the disk of {run.folder} has 0.0")
    assert ("--dtype float16" in text) == (dtype == "float32")
    assert "open_dense" in text
    assert "\n" not in text
    assert sorted(run.folder.rglob("*")) == before
    monkeypatch.setattr(shutil, "disk_usage", disk(need))
    export_dense(path, run.pool, output, dtype)
    assert open_zarr(output, DENSE)["contribution"].dtype == dtype


def test_a_disk_must_hold_all_remaining_shards(run, monkeypatch):
    first, second = run.decompose(shards=2)
    shard_size = 2 * 4 * 128 * 12 * 4
    outputs = [run.folder / "dense" / f"{shard}.zarr" for shard in range(2)]
    monkeypatch.setattr(shutil, "disk_usage", disk(2 * shard_size - 1))
    with pytest.raises(NadpipeError, match=r"all remaining shards 0\.0000983 GB"):
        export_dense(first, run.pool, outputs[0])
    monkeypatch.setattr(shutil, "disk_usage", disk(2 * shard_size))
    export_dense(first, run.pool, outputs[0])
    started = outputs[0].parent / ".other.zarr.1.partial"  # by a job running in parallel
    started.mkdir()
    (started / "chunk").write_bytes(bytes(2 * shard_size))
    monkeypatch.setattr(shutil, "disk_usage", disk(shard_size // 2 + 1))
    export_dense(second, run.pool, outputs[1])
    assert open_zarr(outputs[1], DENSE).attributes["shard"] == 1


def test_leftovers_of_a_killed_export_do_not_count_against_the_next(run, monkeypatch):
    [path] = run.decompose()
    left = run.folder / ".dense.zarr.999.partial"
    left.mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: disk(0 if left.exists() else 10**9)(folder))
    export_dense(path, run.pool, run.folder / "dense.zarr")
    assert open_zarr(run.folder / "dense.zarr", DENSE)["contribution"].shape[0] == 5


def test_float16_is_within_its_rounding(run):
    [path] = run.decompose()
    export_dense(path, run.pool, run.folder / "dense.zarr", "float16")
    half = open_zarr(run.folder / "dense.zarr", DENSE)["contribution"][:]
    exact = open_dense([path], run.pool)[...]
    assert half.dtype == np.float16
    np.testing.assert_allclose(half.astype("f4"), exact, rtol=2**-11 * 1.01, atol=2**-25 * 1.01)
    assert not np.array_equal(half.astype("f4"), exact)


def test_values_that_float16_cannot_hold_are_refused_and_leave_nothing(tmp_path):
    _, pool = make_pool(2, 8, 12, 2)
    coefficient = coefficients(activations(pool, VIEWS), pool)
    coefficient[1] *= 1e7
    paths, store = write_stores(tmp_path, pool, coefficient)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(NadpipeError, match=r"dense\.zarr: .*float16"):
        export_dense(paths[0], store, tmp_path / "dense.zarr", "float16")
    assert sorted(tmp_path.iterdir()) == before
    export_dense(paths[0], store, tmp_path / "dense.zarr")
    assert np.abs(open_zarr(tmp_path / "dense.zarr", DENSE)["contribution"][:]).max() > 65504


def test_contributions_of_another_model_are_refused(tmp_path, run):
    _, pool = make_pool(4, 128, 12, 2)
    paths, _ = write_stores(tmp_path, pool, coefficients(activations(pool, VIEWS), pool))
    with pytest.raises(NadpipeError, match="is for model RN50 aaaaaaaa"):
        export_dense(paths[0], run.pool, tmp_path / "dense.zarr")


# ----------------------------------------------------------------------------------------------------------- its layout

MIB = 2**20


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("views", [1, 2, 1000])
@pytest.mark.parametrize(
    "model",
    [(64, 4096, 1024), (48, 3072, 768), (40, 2560, 640), (32, 2048, 1024), (1, 2**15, 2**10), (3, 5, 2**25), (2, 8, 12)],
)
def test_no_file_of_any_model_is_over_64_mib(model, views, itemsize):
    shape = (views, *model)
    chunks, shards = arrays._layout(DENSE.arrays["contribution"], shape, itemsize)
    held = math.prod(map(min, shards, shape)) * itemsize
    assert held <= 64 * MIB
    assert held >= min(24 * MIB, math.prod(shape) * itemsize)  # and files are few
    assert math.prod(chunks) * itemsize <= 4 * MIB
    assert all(shard % chunk == 0 for shard, chunk in zip(shards, chunks, strict=True))


@pytest.mark.parametrize(
    ("array", "shape", "chunks", "shards"),
    [
        (FEATURES.arrays["activation"], (1000, 144, 3072), (2, 144, 3072), (36, 144, 3072)),
        (Array(("head", "neuron", "embed"), "float", "", ""), (48, 3072, 768), (1, 1365, 768), (7, 4095, 768)),
        (Array(("out", "neuron"), "float", "", ""), (3072, 3072), (341, 3072), (3069, 3072)),
    ],
)
def test_arrays_whose_rows_fit_a_file_are_split_along_their_first_axis(array, shape, chunks, shards):
    assert arrays._layout(array, shape, 4) == (chunks, shards)
