"""The demo with its vision transformer: docs/vit_demo.yaml over the small demo's config."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import yaml
from PIL import Image

from nadpipe.cli import main
from nadpipe.config import check

ROOT = Path(__file__).parents[1]
OVERLAY = yaml.safe_load((ROOT / "docs" / "vit_demo.yaml").read_text())
BLOCK = OVERLAY["model"]["block"]
LAYERS = range(BLOCK + 1, 6)


def test_the_overlay_is_valid_over_the_shipped_config():
    config = check(yaml.safe_load((ROOT / "config.yaml").read_text()))
    for section, keys in OVERLAY.items():
        assert set(keys) <= set(config[section])
        config[section] |= keys
    check(config)


@pytest.fixture(scope="module")
def results(checkout):
    """Return the results of the small demo with the vision transformer. Images and texts are those of the finished run."""
    tables = [f"results/{name}.csv" for name in ("segmentation", "ledger", "shift")]
    pages = ["results/report.html", "results/explorer"]
    checkout.run(
        *tables,
        *pages,
        "results/artifacts/discovery/head_means.zarr",
        *("--configfile", "config.yaml", "docs/vit_demo.yaml"),
    )
    return checkout.folder / "results"


def stores(results, name):
    return [xr.open_zarr(path) for path in sorted(results.glob(f"artifacts/*/{name}/*.zarr"))]


@pytest.mark.slow
def test_pairs_and_rest_sum_to_the_embedding_in_every_shard(results):
    contributions = stores(results, "contributions")
    assert [store.sizes["head"] for store in contributions] == [6 * len(LAYERS)] * 3
    assert max(float(store["residual"].max()) for store in contributions) < 1e-5
    for store in stores(results, "features"):
        assert float(store.attrs["encode_image_error"]) < 1e-5


@pytest.mark.slow
def test_the_shares_of_the_ledger_are_those_of_the_stores_and_sum_to_1(results):
    ledger = pd.read_csv(results / "ledger.csv")
    assert ledger["energy"].sum() == pytest.approx(1, abs=1e-5)
    assert ledger["variance"].sum() == pytest.approx(1, abs=1e-5)
    assert ledger.loc[ledger["part"] == "pairs", "layer"].tolist() == list(LAYERS)
    of_discovery = [xr.open_zarr(path) for path in sorted(results.glob("artifacts/discovery/contributions/*.zarr"))]
    embedding, rest = (np.concatenate([store[name] for store in of_discovery]) for name in ("embedding", "rest"))
    energy = ((embedding - rest) * embedding).sum(1).mean() / np.square(embedding).sum(1).mean()
    pairs = ledger[ledger["part"] == "pairs"]
    assert pairs["energy"].sum() == pytest.approx(energy, abs=1e-5)
    assert 0.05 < pairs["variance"].sum() < 0.5  # a part of the embedding only


@pytest.mark.slow
def test_the_tables_find_what_the_model_sees(results):
    scores = pd.read_csv(results / "segmentation.csv").set_index("method")
    assert scores["miou"].between(0, 1).all()
    assert scores.loc[["nad", "nad_centred"], "miou"].min() > 0.2  # chance is below 0.1
    shift = pd.read_csv(results / "shift.csv")
    auroc = shift.groupby("concept")["auroc"].max()
    assert auroc["sky"] > 0.95
    assert auroc["blue"] > 0.9
    assert auroc.min() > 0.6
    assert set(shift["group"]) == set(range(2018, 2026))


@pytest.mark.slow
def test_pairs_are_named_by_block_and_head_everywhere(results, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    pairs = pd.read_parquet(results / "pairs.parquet").set_index(["layer", "layer_head", "neuron"])
    assert len(pairs) == 6 * len(LAYERS) * 768
    name = f"{LAYERS[-1]}.2"
    assert main(["show", "pair", name, "100", "--results", str(results)]) == 0
    printed = capsys.readouterr().out
    pair = pairs.loc[(LAYERS[-1], 2, 100)]
    assert f"pair {name}/100: rank {pair['contribution_rank']} of {len(pairs):,}" in printed
    assert f"{pair['nearest_text']} ({pair['nearest_cosine']:.2f})" in printed
    assert main(["show", "pair", f"{BLOCK}.2", "100", "--results", str(results)]) != 0  # heads up to the block read no neuron
    report = (results / "report.html").read_text()
    assert re.search(rf"\b[{LAYERS[0]}-5]\.[0-5]/\d+", report)


@pytest.mark.slow
def test_files_are_segmented_as_the_workflow_segments_them(results, tmp_path):
    """`nadpipe segment` takes the model, its block and the settings from the run."""
    classes = yaml.safe_load((ROOT / "config.yaml").read_text())["datasets"]["segmentation"]["classes"]
    images = sorted((results / "demo/segmentation/images").iterdir())[:2]
    arguments = ["--methods", "nad", "sclip", "--output", tmp_path / "o", "--results", results]
    assert main([str(word) for word in ("segment", *images, "--texts", *classes, *arguments)]) == 0
    for variant in (tmp_path / "o" / "labels").iterdir():
        for image in images:
            expected = results / "segmentation/segmentation/labels/0" / variant.name / f"{image.stem}.png"
            np.testing.assert_array_equal(Image.open(variant / f"{image.stem}.png"), Image.open(expected))
    assert len(list((tmp_path / "o" / "labels").iterdir())) == 2
