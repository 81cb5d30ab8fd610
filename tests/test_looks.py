"""Commands that show the explorer's content in a terminal."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from PIL import Image

from nadpipe.circuit.attention import trace
from nadpipe.cli import main
from nadpipe.errors import BAD_INPUT
from nadpipe.pages.explorer import Explorer
from nadpipe.store.pool import read_pool

PHOTOGRAPH = "results/demo/segmentation/images/000000.jpg"


@pytest.fixture
def look(checkout, monkeypatch, capsys):
    """Return a function that runs a command in the checkout and returns its exit code, standard output and standard error."""
    monkeypatch.chdir(checkout.folder)
    monkeypatch.setenv("COLUMNS", "200")

    def look(*arguments):
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return look


@pytest.fixture(scope="module")
def pairs(checkout):
    return pd.read_parquet(checkout.folder / "results" / "pairs.parquet").set_index(["head", "neuron"])


def test_a_pair_is_shown_with_its_texts_and_images(look, pairs, tmp_path):
    code, printed, _ = look("show", "pair", 3, 100, "--png", tmp_path / "p.png")
    pair = pairs.loc[(3, 100)]
    assert code == 0
    assert f"pair 3/100: rank {pair['contribution_rank']} of {len(pairs):,}" in printed
    assert f"{pair['active_text']} ({pair['active_correlation']:.2f})" in printed
    assert f"{pair['nearest_text']} ({pair['nearest_cosine']:.2f})" in printed
    assert re.search(r"top images \d+, \d+, \d+, \d+; bottom images \d+, \d+, \d+, \d+", printed)
    assert Image.open(tmp_path / "p.png").width > 600


def test_a_neuron_is_shown_with_all_its_pairs(look, pairs, tmp_path):
    code, printed, _ = look("show", "neuron", 100, "--png", tmp_path / "n.png")
    assert code == 0
    assert Image.open(tmp_path / "n.png").height > 6 * 150
    ranks = pairs.xs(100, level="neuron")["contribution_rank"].sort_values()
    assert re.findall(r"(\d+)/100 +│ +(\d+) │", printed) == [(str(head), str(rank)) for head, rank in ranks.items()]


def test_a_search_finds_the_pairs_that_a_text_names(look, pairs, tmp_path):
    code, printed, _ = look("search", "fish", "--most", 5, "--png", tmp_path / "s.png")
    assert Image.open(tmp_path / "s.png").height > 5 * 150
    assert code == 0
    best = pairs[pairs["active_text"] == "fish"].sort_values("active_correlation", ascending=False)
    head, neuron = best.index[0]
    printed = " ".join(printed.split())  # titles are wrapped
    assert printed.index(f"{head}/{neuron} ") < printed.index("texts by direction")
    assert "other texts: " in printed


@pytest.mark.parametrize(("head", "neuron"), [(3, 100), (0, 0), (11, 767)])
def test_the_explorers_files_agree_with_the_stores(checkout, head, neuron):
    """Recompute images at the ends, their values, the histogram and the maps of a pair from the stores."""
    artifacts = checkout.folder / "results" / "artifacts"
    explorer = Explorer(checkout.folder / "results" / "explorer")
    pair = explorer.load(f"neurons/{neuron}")["pairs"][head]
    pool, _ = read_pool(artifacts / "model" / "readout.zarr")
    sign = int(xr.open_zarr(artifacts / "directions" / "pair.zarr")["sign"][head, neuron])
    shards = [xr.open_zarr(artifacts / "discovery" / "contributions" / f"{shard}.zarr") for shard in (0, 1)]
    value = sign * np.concatenate([store["coefficient"][:, head, neuron] for store in shards])
    order = np.argsort(-value, kind="stable")
    np.testing.assert_allclose(pair["values"], value[[*order[:4], *order[:-5:-1]]], rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(pair["values"], value[pair["images"]], rtol=1e-3, atol=1e-9)  # image_id = row: none is skipped
    assert sum(pair["counts"]) == len(value) == 60
    features = [xr.open_zarr(artifacts / "discovery" / "features" / f"{shard}.zarr")["activation"] for shard in (0, 1)]
    z = torch.from_numpy(np.concatenate([np.asarray(store) for store in features]))
    expected = []
    for image_id in pair["images"]:
        view = trace(z[image_id][None], pool)
        expected.append(sign * view.attention[0, head, 1:] * view.activation[0, 1:, neuron])
    largest = float(torch.stack(expected).abs().max())
    assert pair["scale"] == pytest.approx(largest, rel=1e-3)  # one scale for all images of the pair
    maps = explorer.firing(head, neuron) / 127 * pair["scale"]
    np.testing.assert_allclose(maps.reshape(len(expected), -1), torch.stack(expected), atol=largest / 120)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "pair", "99", "1"], ["head 99", "0 to 11"]),
        (["show", "neuron", "768"], ["neuron 768", "0 to 767"]),
        (["show", "pair", "1"], ["show pair: 1", "give head and neuron"]),
        (["show", "neuron", "1", "2"], ["show neuron: 2", "give one number"]),
        (["show", "neuron", "1", "--results", "nowhere"], ["about.js", "FileNotFoundError", "results/explorer"]),
        (["search", "xyzzy"], ["no text", "'xyzzy'"]),
        (["explain", "gone.jpg", "--texts", "a"], ["gone.jpg: no such image"]),
        (["explain", "gone.jpg", "--texts", "a", "--results", "nowhere"], ["provenance.json", "FileNotFoundError"]),
        (["explain", "gone.jpg", "--texts", "a", "--template", "a photo"], ["--template", "{} once"]),
        (["segment", PHOTOGRAPH, "--texts", "a", "b", "--output", "o", "--results", "nowhere"], ["nowhere/provenance.json"]),
    ],
)
def test_a_wrong_request_is_reported_in_one_line(look, arguments, words):
    code, _, reported = look(*arguments)
    assert code == BAD_INPUT
    assert [word for word in words if word not in reported] == []
    assert reported.count("\n") == 1


def test_files_are_segmented_as_the_workflow_segments_them(look, checkout, tmp_path):
    """Label maps of the files equal those of the data set byte for byte, and shares equal those of the tables."""
    source = checkout.config["datasets"]["segmentation"]
    images = sorted((checkout.folder / "results/demo/segmentation/images").iterdir())
    methods = ("nad", "nad_centred", "maskclip")
    arguments = ("--texts", *source["classes"], "--methods", *methods, "--output", tmp_path / "o", "--results")
    code, printed, reported = look("segment", *images, *arguments, checkout.folder / "results")
    assert code == 0, reported
    assert [str(tmp_path / "o" / name) in printed for name in ("labels", "overlays", "shares.csv")] == [True] * 3
    expected = checkout.folder / "results/segmentation/segmentation/labels/0"
    for variant in ("nad-k1250", "nad_centred-k1250", "maskclip"):
        for path in images:
            label_map = (tmp_path / "o" / "labels" / variant / f"{path.stem}.png").read_bytes()
            assert label_map == (expected / variant / f"{path.stem}.png").read_bytes()
    assert {path.stem for path in (tmp_path / "o" / "overlays").iterdir()} == {path.stem for path in images}
    shares = pd.read_csv(tmp_path / "o" / "shares.csv")
    assert len(shares) == len(images) * len(methods) * len(source["classes"])
    tables = pd.read_parquet(checkout.folder / "results/segmentation/image_shares.parquet")
    key = ["method", "class"]
    table = tables[(tables["dataset"] == "segmentation") & (tables["image_id"] == 3)].set_index(key)["pixels"]
    found = shares[(shares["image"] == str(images[3])) & (shares["pixels"] > 0)].set_index(key)["pixels"]
    assert found.to_dict() == {pair: pixels for pair, pixels in table.to_dict().items() if pair[0] in methods}


def test_an_image_is_explained_and_its_pairs_sum_to_the_cosine(look, checkout, tmp_path):
    image = next((checkout.folder / "results/demo/segmentation/images").iterdir())
    code, printed, _ = look("explain", image, "--texts", "fish", "red ball", "--output", tmp_path / "e.html", "--most", 3)
    assert code == 0
    sums = re.findall(r"cosine (-?\d\.\d+), sum over pairs (-?\d\.\d+)", " ".join(printed.split()))  # titles are wrapped
    assert len(sums) == 2
    for cosine, summed in sums:
        assert float(cosine) == pytest.approx(float(summed), abs=2e-5)
    for section in printed.split("cosine ")[1:]:
        added = [float(value) for value in re.findall(r"│ +([+-]\d\.\d+) │", section)]
        assert len(added) == 7
        assert sum(added) == pytest.approx(float(section.split(",")[0]), abs=1e-4)
    assert printed.endswith(f"\nmade: {tmp_path}/e.html\n")
    page = (tmp_path / "e.html").read_text()
    assert page.count("<img ") == 1 + 2 * (1 + 6 + 2)  # two colour bars per text
    assert "http:" not in page  # base64 has no colon
    assert "https:" not in page
