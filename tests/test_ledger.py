"""The ledger: parts sum to the embedding, and their shares of energy and variance sum to 1."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from conftest import activations, ink, make_pool
from stage_run import noise
from vit_reference import Reference, make_visual, open_tower, pixels

from nadpipe.circuit import ledger
from nadpipe.circuit.attention import trace, view_trace
from nadpipe.circuit.ledger import Ledger, shares
from nadpipe.circuit.readout import coefficients, sum_pairs
from nadpipe.pages.figures.ledger import draw
from nadpipe.stages.measure_ledger import measure_ledger
from nadpipe.stages.plot_table import plot_table


def test_the_parts_of_a_transformer_are_those_of_the_reference_and_sum_to_its_embedding():
    visual = make_visual()
    tower = open_tower(visual, block=1)
    features = tower.features(pixels())
    coefficient = coefficients(view_trace(features, None), tower.readout)
    parts = ledger.split_embedding(coefficient, tower.readout, features["gain"], features["part"])
    names = ledger.name_parts(tower.readout, tower.parts)
    assert names[:2] == [("pairs", 2), ("pairs", 3)]
    assert (names[-1], len(names)) == (("constants", None), parts.shape[1])
    torch.testing.assert_close(parts.sum(1), features["embedding"], rtol=1e-4, atol=1e-5)
    for view, image in enumerate(pixels()):
        reference = Reference(visual, image)
        pairs = reference.pairs(1).reshape(2, 3, 60, 10).sum((1, 2))
        np.testing.assert_allclose(parts[view, :2], pairs, rtol=1e-3, atol=1e-6)
        biases = reference.embedding - pairs.sum(0) - sum(reference.paths(1).values())
        np.testing.assert_allclose(parts[view, -1], biases, rtol=1e-3, atol=1e-5)


def test_the_parts_of_a_pool_are_pairs_and_constants():
    _, pool = make_pool(4, 64, 16, 3)
    view = trace(activations(pool, 3), pool)
    coefficient = coefficients(view, pool.readout)
    parts = ledger.split_embedding(coefficient, pool.readout, None, None)
    assert ledger.name_parts(pool.readout, ()) == [("pairs", None), ("constants", None)]
    torch.testing.assert_close(parts.sum(1), sum_pairs(coefficient, pool.readout), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts[:, 1], sum_pairs(torch.zeros_like(coefficient), pool.readout))


def test_shares_of_energy_and_variance_sum_to_one():
    parts = torch.randn(50, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + torch.arange(4.0)[:, None]
    embedding = parts.sum(1)
    energy, variance = shares(Ledger(parts.mean(0), torch.einsum("vpe,ve->vp", parts, embedding).mean(0)))
    centred, total = parts - parts.mean(0), embedding - embedding.mean(0)
    torch.testing.assert_close(energy, torch.einsum("vpe,ve->p", parts, embedding) / embedding.square().sum())
    torch.testing.assert_close(variance, torch.einsum("vpe,ve->p", centred, total) / total.square().sum())
    assert (float(energy.sum()), float(variance.sum())) == (pytest.approx(1), pytest.approx(1))


def test_embeddings_that_do_not_vary_have_no_shares_of_variance():
    parts = torch.randn(3, 5).double()
    energy, variance = shares(Ledger(parts, parts @ parts.sum(0)))
    assert float(energy.sum()) == pytest.approx(1)
    assert variance.isnan().all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "vit_run"])
def test_the_table_is_the_same_from_any_number_of_shards(request, kind):
    run = request.getfixturevalue(kind)
    run.write_images(noise(5))
    tables = []
    for shards in (1, 3):
        paths = run.decompose(shards=shards)
        measure_ledger(tuple(run.means(path) for path in paths), run.folder / "ledger.csv")
        tables.append(pd.read_csv(run.folder / "ledger.csv"))
    one, three = tables
    np.testing.assert_allclose(one[["energy", "variance"]], three[["energy", "variance"]], atol=1e-5)
    assert one[["energy", "variance"]].sum().tolist() == pytest.approx([1, 1], abs=1e-5)
    assert set(one["images"]) == {5}
    embedding = np.concatenate([xr.open_zarr(path)["embedding"].values for path in paths]).astype(float)
    if kind == "run":
        assert one["part"].tolist() == ["pairs", "constants"]
        assert one["variance"].tolist() == pytest.approx([1, 0], abs=1e-6)
    else:
        rest = np.concatenate([xr.open_zarr(path)["rest"].values for path in paths]).astype(float)
        pairs = ((embedding - rest) * embedding).sum() / (embedding**2).sum()
        assert one.loc[one["part"] == "pairs", "energy"].sum() == pytest.approx(pairs, abs=1e-5)
        assert one.loc[one["part"] == "mlp", "layer"].tolist() == [0, 1, 2, 3]
    plot_table("ledger", run.folder / "ledger.csv", run.folder / "ledger.png")
    assert ink(run.folder / "ledger.png") > 0.01
    assert len(draw(one).axes[0].patches) == 2 * len(one)
