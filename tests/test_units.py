"""Stages from contributions to tables of units on a tiny random model: extreme data sets, shards, texts."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from stage_run import noise

from nadpipe.errors import NadpipeError
from nadpipe.stages.accumulate_pairs import accumulate_pairs
from nadpipe.stages.assign_texts import assign_texts
from nadpipe.stages.describe_results import describe_results
from nadpipe.stages.fit_directions import fit_directions
from nadpipe.stages.index_images import index_images
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.features import PAIR_MOMENTS
from nadpipe.store.kinds.units import ASSIGNMENTS
from nadpipe.store.tables import read_parquet


@pytest.mark.parametrize("unit", ["pair", "neuron", "head"])
@pytest.mark.parametrize("pixels", [noise(1), noise(1, 64, 64) * 3, [np.zeros((65, 201, 3), np.uint8)] * 2])
def test_one_image_or_equal_images_give_units_that_do_not_vary(run, unit, pixels):
    run.write_images(pixels)
    table = run.tabulate(unit, run.decompose())
    assert len(table) == {"pair": 512, "neuron": 128, "head": 4}[unit]
    assert (table["std_norm"] == 0).all()
    assert (table["mean_norm"] > 0).any()
    if unit == "pair":
        assert table["explained"].isna().all()
        assert table["nearest_text"].notna().any()
    else:
        assert table[["explained_1", "explained_2"]].isna().all(axis=None)
        assert table["nearest_text"].isna().all()  # nothing varies, so there is no direction to name


def test_any_number_of_shards_gives_the_same_directions(run):
    run.write_images(noise(8))
    one, *others = (xr.open_zarr(run.fit("neuron", run.decompose(shards, name=f"s{shards}"))).load() for shards in (1, 3, 7))
    for other in others:
        for name in ("mean_norm", "std_norm", "top_norm", "explained"):
            np.testing.assert_allclose(other[name], one[name], rtol=1e-3, atol=1e-4)
        first, second = (np.asarray(store["direction"])[:, 0] for store in (one, other))
        np.testing.assert_allclose((first * second).sum(1), np.linalg.norm(first, axis=1), atol=1e-4)
        assert (np.linalg.norm(first, axis=1) > 0.9).mean() > 0.3


def test_missing_repeated_and_foreign_shards_are_refused(run):
    run.write_images(noise(4))
    first = run.decompose(shards=2)
    with pytest.raises(NadpipeError, match=r"shards \[0\], expected 0 to 1"):
        run.fit("pair", first[:1])
    with pytest.raises(NadpipeError, match=r"shards \[1, 1\], expected 0 to 1"):
        run.fit("pair", (first[1], first[1]))
    run.write_images(noise(5))
    with pytest.raises(NadpipeError, match=r"other-1\.zarr: .*other images than .*d-0\.zarr"):
        run.fit("pair", (first[0], run.decompose(shards=2, name="other")[1]))


def test_the_number_of_top_images_comes_from_all_images_not_from_a_shard(run, capsys):
    run.write_images(noise(12))
    images, contributions = run.folder / "images.parquet", run.decompose(shards=2)
    moments = [path.with_name(f"moments-{path.name}") for path in contributions]
    for path, output in zip(contributions, moments, strict=True):
        accumulate_pairs(images, path, output)
        assert open_zarr(output, PAIR_MOMENTS).attributes["top_images"] == 10  # of 12 images; a shard has 6
    logged = capsys.readouterr().err
    assert "warning: directions.top_images: 10 of 12 discovery images are more than a fifth" in logged
    fit_directions("pair", tuple(moments), run.pool, run.folder / "pair.zarr")
    describe_results((), (), run.pool, run.folder / "pair.zarr", "{}", run.folder / "provenance.json")
    provenance = json.loads((run.folder / "provenance.json").read_text())
    assert provenance["directions"] == {"images": 12, "top_images": 10}
    assert provenance["warnings"] == [line.removeprefix("warning: ") for line in logged.splitlines() if "warning" in line][:1]
    accumulate_pairs(images, contributions[0], moments[0], top_images=2)
    assert "warning" not in capsys.readouterr().err
    with pytest.raises(NadpipeError, match=r"directions\.top_images: 13 exceeds the 12 discovery images; "):
        accumulate_pairs(images, contributions[0], moments[0], top_images=13)


@pytest.mark.parametrize("unit", ["pair", "neuron"])
def test_moments_of_other_contributions_are_refused(run, unit):
    run.write_images(noise(4))
    contributions = run.decompose(shards=2)
    moments = run.accumulate(contributions)
    with pytest.raises(NadpipeError, match=r"shards \[0\], expected 0 to 1"):
        fit_directions(unit, moments[:1], run.pool, run.folder / "x.zarr", contributions)
    accumulate_pairs(run.folder / "images.parquet", contributions[1], moments[1], top_images=3)
    with pytest.raises(NadpipeError, match=r"moments-d-1\.zarr: top_images is 3"):
        fit_directions(unit, moments, run.pool, run.folder / "x.zarr", contributions)
    moments = run.accumulate(contributions)
    (run.folder / "more").mkdir()
    for path in run.folder.glob("image *.png"):
        shutil.copy(path, run.folder / "more" / path.name)
    index_images("tree", run.folder / "more", run.folder / "images.parquet")
    others = run.decompose(shards=2, name="other")  # as many views, of other paths
    if unit == "neuron":
        with pytest.raises(NadpipeError, match=r"other-0\.zarr: .*other images than"):
            fit_directions(unit, moments, run.pool, run.folder / "x.zarr", others)
    assert not (run.folder / "x.zarr").exists()


def test_a_sparse_share_limits_codes_to_the_largest_units(run):
    run.write_images(noise(6))
    contributions = run.decompose()
    pairs = run.tabulate("pair", contributions)
    path = run.folder / "few.parquet"
    stores = (run.folder / "pair.zarr", run.folder / "words.zarr", run.pool)
    assign_texts("pair", *stores, path, atoms=2, sparse_share=0.1)
    few = read_parquet(path, ASSIGNMENTS["pair"])
    sparse = few[few["kind"] == "sparse"].set_index(["head", "neuron"]).index.unique()
    largest = pairs[pairs["contribution_rank"] <= 52].set_index(["head", "neuron"]).index  # of 512, rounded up
    assert set(sparse) == set(largest)
    assert (few["kind"] == "nearest").sum() == 3 * pairs["nearest_text"].notna().sum()
    everything = read_parquet(run.folder / "pair-texts.parquet", ASSIGNMENTS["pair"])
    kept = everything[(everything["kind"] == "nearest") | pd.MultiIndex.from_frame(everything[["head", "neuron"]]).isin(sparse)]
    pd.testing.assert_frame_equal(few, kept.reset_index(drop=True))
