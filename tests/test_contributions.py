"""Stage compute_contributions on a tiny random model: precision, rounding, threads, the check of the sum."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import TINY
from stage_run import noise

from nadpipe.circuit.readout import residual, sum_pairs
from nadpipe.errors import NadpipeError
from nadpipe.stages.compute_contributions import compute_contributions
from nadpipe.stages.export_readout import export_readout
from nadpipe.store.arrays import create_zarr, open_zarr
from nadpipe.store.kinds.features import CONTRIBUTIONS, FEATURES
from nadpipe.store.kinds.units import SELECTION
from nadpipe.store.pool import read_pool
from nadpipe.store.stamp import Stamp


def test_half_precision_takes_half_the_space_and_stores_its_error(run):
    run.write_images(noise(6))
    [full], [half] = run.decompose(), run.decompose(name="half", dtype="float16")
    for kind, array, stores in [
        (FEATURES, "activation", ("d-features-0.zarr", "half-features-0.zarr")),
        (CONTRIBUTIONS, "coefficient", (full, half)),
    ]:
        full, low = (open_zarr(run.folder / name, kind) for name in stores)
        assert low[array].dtype == np.float16
        np.testing.assert_allclose(low[array][:], full[array][:], rtol=3e-3, atol=1e-4)
        assert (full["rounding"][:] == 0).all()
        assert ((low["rounding"][:] > 1e-6) & (low["rounding"][:] < 1e-2)).all()
    features, store = open_zarr(run.folder / "half-features-0.zarr", FEATURES), open_zarr(half, CONTRIBUTIONS)
    np.testing.assert_allclose(store["residual"][:], features["rounding"][:], atol=1e-6)
    assert (store["residual"][:] > 1e-5).any()  # so the tolerance alone would refuse it
    pool, _ = read_pool(run.pool)
    kept = sum_pairs(torch.from_numpy(store["coefficient"][:]).float(), pool.readout)
    expected = residual(kept, torch.from_numpy(store["embedding"][:]))
    np.testing.assert_allclose(store["rounding"][:], expected, atol=1e-6)
    assert run.tabulate("pair", (half,))["std_norm"].max() > 0


def test_half_precision_that_overflows_is_refused(run):
    run.write_images(noise(2))
    run.decompose()
    with create_zarr(
        run.folder / "o.zarr", SELECTION, Stamp(), {"text": 1, "rank": 2, "embed": 3}, {"query": "float16"}
    ) as store:
        with pytest.raises(NadpipeError, match=r"o\.zarr: query .*7e\+04.*float16.*float32"):
            store.as_stored("query", torch.full((1, 3), 7e4))
        for name in ("head", "neuron", "cosine", "query"):
            store.write(name, np.zeros((1, 3 if name == "query" else 2)))


def test_features_of_too_low_a_precision_fail_with_the_error(run):
    run.write_images(noise(2))
    features = run.folder / "d-features-0.zarr"
    run.decompose()
    with pytest.raises(NadpipeError, match=r"view \d only within \d\.\de-\d+ of its norm"):
        compute_contributions(features, run.pool, run.folder / "x.zarr", run.folder / "m.zarr", tolerance=1e-12)
    assert not (run.folder / "x.zarr").exists()


def test_any_number_of_threads_gives_the_same_within_rounding(run):
    run.write_images(noise(6))
    before, results = torch.get_num_threads(), {}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            [contributions] = run.decompose(name=f"t{threads}")
            store = open_zarr(contributions, CONTRIBUTIONS)
            results[threads] = store["coefficient"][:], store["embedding"][:], run.tabulate("pair", (contributions,))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(results[1][:2], results[2][:2], strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-5 * np.abs(one).max())
    numbers = ["write_norm", "coefficient_mean", "coefficient_std", "std_norm", "top_norm"]
    np.testing.assert_allclose(results[1][2][numbers], results[2][2][numbers], rtol=1e-4, atol=1e-6)


def test_artifacts_of_another_model_are_refused_by_the_next_stage(run, tiny_clip):
    run.write_images(noise(2))
    contributions = run.decompose()
    (run.folder / "m.json").write_text(json.dumps(TINY | {"quick_gelu": True}))
    shutil.rmtree(run.pool)
    export_readout(output=run.pool, **run.model)
    with pytest.raises(NadpipeError, match=r"d-0\.zarr: .*model m [0-9a-f]{8}, .* m [0-9a-f]{8}"):
        run.fit("pair", contributions)
