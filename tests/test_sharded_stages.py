"""Stages that read one shard each, and merge to what a single shard gives: samples for registers, maps for the explorer."""

import numpy as np
import pandas as pd
import pytest
from stage_run import noise

from nadpipe.circuit.attention import attention, tokens
from nadpipe.errors import NadpipeError
from nadpipe.stages.find_extremes import find_extremes
from nadpipe.stages.map_firing import map_firing
from nadpipe.stages.measure_registers import measure_registers
from nadpipe.stages.sample_views import sample_views
from nadpipe.store.arrays import open_zarr
from nadpipe.store.explorer import join_maps, read_extremes
from nadpipe.store.kinds.explorer import FIRING
from nadpipe.store.kinds.features import CONTRIBUTIONS, FEATURES, SAMPLED_VIEWS
from nadpipe.store.kinds.segmentation import REGISTERS
from nadpipe.store.kinds.units import DIRECTIONS
from nadpipe.store.pool import read_pool
from nadpipe.store.shards import join, open_shards
from nadpipe.store.tables import read_parquet


def features_of(contributions):
    return contributions.with_name(contributions.name.replace("-", "-features-"))


def explore(run, contributions, directions, shown):
    """Find the extremes of all shards and map them; return the extremes, the maps per shard, and the path of the extremes."""
    extremes = contributions[0].with_name(f"extremes-{contributions[0].name}")
    find_extremes(contributions, directions, extremes, shown=shown)
    firing = tuple(path.with_name(f"firing-{path.name}") for path in contributions)
    for path, output in zip(contributions, firing, strict=True):
        map_firing(features_of(path), path, extremes, directions, run.pool, output)
    model = read_pool(run.pool)[1]
    return read_extremes(extremes, model), open_shards(firing, FIRING, model), extremes


@pytest.fixture
def shards(run):
    """Return contributions in one shard and in three of seven images, and the directions of the pairs."""
    run.write_images(noise(7))
    contributions = run.decompose(shards=3, name="three")
    return run.decompose(name="one"), contributions, run.fit("pair", contributions)


@pytest.mark.parametrize("shown", [1, 2, 9])
def test_extremes_and_maps_do_not_depend_on_shards(run, shards, shown):
    one, three, directions = shards
    whole, stores, _ = explore(run, one, directions, shown)
    parts, part_stores, _ = explore(run, three, directions, shown)
    for name in ("views", "image_id"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
    for name in ("values", "range"):  # the tower rounds differently for batches of other sizes
        np.testing.assert_allclose(getattr(whole, name), getattr(parts, name), rtol=1e-4, atol=1e-5)
    assert (whole.counts.sum(axis=2) == 7).all()
    assert (whole.counts != parts.counts).mean() < 0.01
    assert (whole.first_views, parts.first_views) == ((0,), (0, 2, 4))
    assert whole.views.shape == (4, 128, 2 * min(shown, 7))
    maps, merged = join_maps(stores, whole), join_maps(part_stores, parts)
    np.testing.assert_allclose(maps.steps, merged.steps, atol=1)
    np.testing.assert_allclose(maps.scale, merged.scale, rtol=1e-4, atol=1e-6)


def test_maps_show_the_signed_contribution_of_each_token(run, shards):
    contributions, _, directions = shards
    extremes, stores, _ = explore(run, contributions, directions, shown=2)
    maps, (pool, model) = join_maps(stores, extremes), read_pool(run.pool)
    store = open_zarr(features_of(contributions[0]), FEATURES, model)
    x = tokens(store.tensor("activation"), pool)
    attended = attention(x, pool)
    sign = open_zarr(directions, DIRECTIONS["pair"], model).tensor("sign")
    coefficient = open_zarr(contributions[0], CONTRIBUTIONS, model).tensor("coefficient")
    for head, neuron in ((0, 0), (3, 127), (2, 41)):
        signed = coefficient[:, head, neuron] * sign[head, neuron]
        assert extremes.views[head, neuron, :2].tolist() == signed.argsort(descending=True)[:2].tolist()
        assert extremes.views[head, neuron, 2:].tolist() == signed.argsort()[:2].tolist()
        for slot, view in enumerate(extremes.views[head, neuron]):
            fires = attended[view, head, 1:] * x[view, 1:, neuron] * sign[head, neuron]
            scale = maps.scale[head, neuron, slot]
            assert scale == pytest.approx(float(fires.abs().max()), rel=1e-4)
            np.testing.assert_allclose(maps.steps[head, neuron, slot] * scale / 127, fires, atol=float(scale) / 200)


def test_maps_of_other_extremes_and_other_shards_are_refused(run, shards):
    one, three, directions = shards
    _, stores, path = explore(run, one, directions, shown=2)
    fewer, _, _ = explore(run, three, directions, shown=1)
    with pytest.raises(NadpipeError, match=r"firing-one-0\.zarr: maps of other extremes; .*same extremes"):
        join_maps(stores, fewer)
    with pytest.raises(NadpipeError, match=r"three-features-1\.zarr: has other images than"):
        map_firing(features_of(three[1]), three[0], path, directions, run.pool, run.folder / "x.zarr")


def test_samples_are_evenly_spaced_and_registers_do_not_depend_on_shards(run, shards):
    one, three, _ = shards
    whole, parts = run.sample(one, number=3), run.sample(three, number=3)
    stores = open_shards(parts, SAMPLED_VIEWS)
    assert join(stores, "image_id").tolist() == [0, 3, 6]
    activation = join(open_shards(tuple(map(features_of, three)), FEATURES), "activation")
    np.testing.assert_array_equal(join(stores, "activation"), activation[[0, 3, 6]])
    tables = []
    for number, samples in enumerate((whole, parts)):
        measure_registers(samples, run.pool, run.folder / f"r{number}.parquet")
        tables.append(read_parquet(run.folder / f"r{number}.parquet", REGISTERS))
    columns = ["attention", "attention_drop", "embedding_change", "activation"]  # the tower rounds differently per batch
    pd.testing.assert_frame_equal(*(table[columns] for table in tables), rtol=1e-3, atol=1e-5)
    assert set(tables[0]["images"]) == {3}


def test_a_shard_may_have_no_sampled_view(run, shards):
    samples = run.sample(shards[1], number=1)
    stores = open_shards(samples, SAMPLED_VIEWS)
    assert [len(store.read("image_id")) for store in stores] == [1, 0, 0]
    measure_registers(samples, run.pool, run.folder / "r.parquet")
    assert set(read_parquet(run.folder / "r.parquet", REGISTERS)["images"]) == {1}


def test_samples_of_another_manifest_are_refused(run, shards):
    run.write_images(noise(7, seed=1))
    with pytest.raises(NadpipeError, match=r"one-features-0\.zarr: has other images than .*images\.parquet"):
        sample_views(run.folder / "images.parquet", features_of(shards[0][0]), run.folder / "s.zarr")
