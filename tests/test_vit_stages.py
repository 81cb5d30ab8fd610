"""Stages on a tiny random vision transformer, whose neurons are those of block 1 of 4."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from conftest import ink
from PIL import Image
from stage_run import noise

from nadpipe.errors import NadpipeError
from nadpipe.looks.explain import explain
from nadpipe.looks.search import search
from nadpipe.looks.show import show
from nadpipe.pages.explorer import Explorer
from nadpipe.stages.build_explorer import build_explorer
from nadpipe.stages.compute_contributions import compute_contributions
from nadpipe.stages.draw_retrieval import draw_retrieval
from nadpipe.stages.embed_texts import embed_texts
from nadpipe.stages.extract_features import extract_features
from nadpipe.stages.find_extremes import find_extremes
from nadpipe.stages.index_images import index_images
from nadpipe.stages.map_firing import map_firing
from nadpipe.stages.measure_polysemanticity import measure_polysemanticity
from nadpipe.stages.measure_reconstruction import measure_reconstruction
from nadpipe.stages.measure_registers import measure_registers
from nadpipe.stages.measure_sparsity import measure_sparsity
from nadpipe.stages.plot_table import plot_table
from nadpipe.store.dense import open_dense
from nadpipe.store.kinds.analyses import POLYSEMANTICITY
from nadpipe.store.kinds.segmentation import REGISTERS
from nadpipe.store.tables import read_parquet

ALL = ("nad", "nad_centred", "nad_shifted", "heads", "neurons", "maskclip", "sclip", "clearclip", "attention")
ALL += ("self_self", "values_only")


def read(path):
    return xr.open_zarr(path).load()


def test_pairs_and_rest_sum_to_encode_image_in_every_shard(vit_run, tiny_vit):
    vit_run.write_images(noise(5))
    paths = vit_run.decompose(shards=2)
    contributions = xr.concat(map(read, paths), "view")
    features = xr.concat([read(path.with_name(path.name.replace("-", "-features-"))) for path in paths], "view")
    assert contributions["coefficient"].shape == (5, 8, 96)  # 4 heads in each of 2 blocks
    assert float(contributions["residual"].max()) < 1e-5
    assert float(features.attrs["encode_image_error"]) < 1e-5
    dense = open_dense(paths, vit_run.pool)
    summed = dense[...].sum((1, 2)) + contributions["rest"].values
    np.testing.assert_allclose(summed, contributions["embedding"].values, atol=1e-5)
    np.testing.assert_allclose(features["embedding"], contributions["embedding"], atol=1e-5)
    assert np.abs(contributions["rest"].values).max() > 0.1
    readout = read(vit_run.pool)
    assert readout["layer"].values.tolist() == [2] * 4 + [3] * 4
    assert (readout.attrs["block"], readout.attrs["grid"], readout.attrs["scaled"]) == (1, 4, True)


def test_head_means_are_means_of_the_weighted_values(vit_run):
    vit_run.write_images(noise(5))
    [path] = vit_run.decompose()
    features, readout = read(vit_run.folder / "d-features-0.zarr"), read(vit_run.pool)
    expected = np.zeros((8, 17, 8))
    for head in range(8):
        stream = features["stream"].values[:, head // 4]
        value = stream @ readout["value"].values[head].T + readout["value_bias"].values[head]
        expected[head] = (features["attention"].values[:, head, :, None] * value).mean(0)
    np.testing.assert_allclose(read(vit_run.means(path))["value_mean"], expected, rtol=1e-3, atol=1e-6)


def test_half_precision_stores_its_error_and_a_larger_one_is_refused(vit_run):
    vit_run.write_images(noise(3))
    [path] = vit_run.decompose(dtype="float16")
    features, contributions = read(vit_run.folder / "d-features-0.zarr"), read(path)
    assert features["activation"].dtype == features["prefix_activation"].dtype == np.float16
    assert 1e-6 < float(features["rounding"].max()) < 1e-2
    assert float((contributions["residual"] - features["rounding"]).max()) < 1e-5
    vit_run.decompose()
    outputs = (vit_run.folder / "x.zarr", vit_run.folder / "y.zarr")
    with pytest.raises(NadpipeError, match="pairs and rest sum to the embedding"):
        compute_contributions(vit_run.folder / "d-features-0.zarr", vit_run.pool, *outputs, tolerance=1e-12)


def test_features_of_another_block_are_refused(vit_run):
    vit_run.write_images(noise(2))
    output = vit_run.folder / "f.zarr"
    extract_features(vit_run.folder / "images.parquet", output=output, device="cpu", block=2, **vit_run.model)
    with pytest.raises(NadpipeError, match=r"f\.zarr: has the neurons of block 2, the readout those of block 1"):
        compute_contributions(output, vit_run.pool, vit_run.folder / "c.zarr", vit_run.folder / "m.zarr")
    assert not (vit_run.folder / "c.zarr").exists()


def test_every_method_segments_and_the_tables_are_complete(vit_run):
    shapes = [(64, 64), (131, 67), (70, 133)]
    rng = np.random.default_rng(0)
    for number, shape in enumerate(shapes):
        Image.fromarray(rng.integers(0, 3, shape, dtype=np.uint8)).save(vit_run.folder / f"m{number}.png")
    pictures = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    vit_run.write_images(pictures, mask=[f"m{number}.png" for number in range(3)])
    contributions = vit_run.decompose(views="sliding")
    vit_run.classes()
    vit_run.select(contributions)
    confusion, labels = vit_run.segment(contributions, k=(9,), methods=ALL)
    scores = vit_run.score(confusion)
    assert scores["method"].tolist() == list(ALL)
    assert (scores["pixels"] == sum(height * width for height, width in shapes)).all()
    for number, shape in enumerate(shapes):
        assert Image.open(labels / "nad-k9" / f"{number:06d}.png").size == shape[::-1]


def test_the_sink_of_recorded_attention_is_found(vit_run):
    vit_run.write_images(noise(4))
    samples = vit_run.sample(vit_run.decompose(shards=2), number=4)
    measure_registers(samples, vit_run.pool, vit_run.folder / "r.parquet")
    table = read_parquet(vit_run.folder / "r.parquet", REGISTERS)
    features = xr.concat([read(path.with_name(path.name.replace("samples-d-", "d-features-"))) for path in samples], "view")
    tokens, neurons = (table[table["kind"] == kind].sort_values("index") for kind in ("token", "neuron"))
    attention = features["attention"].values[:, :, 1:].mean((0, 1))
    np.testing.assert_allclose(tokens["attention"], attention, rtol=1e-5)
    activation = features["activation"].values.mean(0)
    token = int(neurons["token"].iloc[0])
    others = np.delete(activation, token, axis=0).mean(0)
    np.testing.assert_allclose(neurons["elsewhere"], others, rtol=1e-4, atol=1e-6)
    assert neurons["attention_drop"].isna().all()
    best = neurons.set_index("rank").loc[1, "index"]
    assert best == np.argmax(activation[token] - others)
    plot_table("registers", vit_run.folder / "r.parquet", vit_run.folder / "r.png")
    assert 0.01 < ink(vit_run.folder / "r.png") < 0.9


def test_ablations_keep_the_rest(vit_run):
    vit_run.write_images(noise(6), group=["cat", "dog"] * 3)
    index_images("table", vit_run.folder / "t.csv", vit_run.folder / "images.parquet", label_column="group")
    contributions = vit_run.decompose(shards=2)
    for unit in ("pair", "neuron", "head"):
        vit_run.fit(unit, contributions)
    embed_texts(output=vit_run.folder / "l.zarr", labels=vit_run.folder / "images.parquet", device="cpu", **vit_run.model)
    labelled = (vit_run.folder / "images.parquet", contributions, vit_run.folder / "l.zarr")
    units = [vit_run.folder / f"{unit}.zarr" for unit in ("pair", "neuron", "head")]
    measure_sparsity(*labelled, *units[:2], vit_run.pool, vit_run.folder / "s.csv", shares=(0.1, 1.0), draws=1)
    sparsity = pd.read_csv(vit_run.folder / "s.csv")
    assert sparsity.loc[sparsity["share"] == 1, "relative_error"].max() < 1e-5
    assert sparsity.loc[sparsity["share"] < 1, "relative_error"].min() > 1e-4
    measure_reconstruction(*labelled, *units, vit_run.pool, vit_run.folder / "r.csv")
    table = pd.read_csv(vit_run.folder / "r.csv").set_index(["unit", "components"])
    assert table.loc[("pair", 1), "relative_error"] < 1e-5
    embedding = np.concatenate([read(path)["embedding"].values for path in contributions])
    spread = np.linalg.norm(embedding - embedding.mean(0), axis=1) / np.linalg.norm(embedding, axis=1)
    assert table.loc[("pair", 0), "relative_error"] < spread.mean()  # the rest still differs between images


@pytest.fixture
def explored(vit_run):
    """Return the run with an explorer, and its tables."""
    vit_run.write_images(noise(5))
    contributions = vit_run.decompose()
    tables = {unit: vit_run.tabulate(unit, contributions) for unit in ("pair", "neuron", "head")}
    folder, results = vit_run.folder, vit_run.folder / "results"
    directions = folder / "pair.zarr"
    find_extremes(contributions, directions, folder / "extremes.zarr", shown=2)
    map_firing(
        folder / "d-features-0.zarr", *contributions, folder / "extremes.zarr", directions, vit_run.pool, folder / "firing"
    )
    paths = [folder / f"{name}.parquet" for name in ("pairs", "neurons", "heads", "pair-texts", "correlated")]
    firing = (folder / "firing",)
    build_explorer(
        folder / "images.parquet", folder / "extremes.zarr", firing, *paths, vit_run.pool, results / "explorer", thumbnail=32
    )
    return vit_run, tables


def test_heads_have_a_layer_and_a_number_everywhere(explored, capsys, tmp_path):
    run, tables = explored
    for unit in ("pair", "head"):
        table = tables[unit].sort_values("head")
        assert table.drop_duplicates("head")[["layer", "layer_head"]].to_numpy().tolist() == [
            [layer, head] for layer in (2, 3) for head in range(4)
        ]
    assert "layer" not in tables["neuron"]
    results = run.folder / "results"
    inputs = [run.folder / name for name in ("pair.zarr", "neuron.zarr", "pairs.parquet", "neurons.parquet")]
    measure_polysemanticity((run.folder / "d-0.zarr",), *inputs, run.pool, run.folder / "p.parquet", top=2)
    alike = read_parquet(run.folder / "p.parquet", POLYSEMANTICITY)
    assert alike[alike["head"] == 5][["layer", "layer_head"]].drop_duplicates().to_numpy().tolist() == [[3, 1]]
    draw_retrieval(run.folder / "images.parquet", run.folder / "p.parquet", run.folder / "sheets", neurons=1, pairs=1)
    assert len(list((run.folder / "sheets").iterdir())) == 1
    explorer = Explorer(results / "explorer")
    assert explorer.sizes["names"] == [f"{layer}.{head}" for layer in (2, 3) for head in range(4)]
    show("pair", ("3.1", "17"), results, png=tmp_path / "p.png")
    assert ink(tmp_path / "p.png") > 0.01
    show("neuron", ("17",), results)
    search(tables["pair"]["active_text"].iloc[0], results)
    printed = capsys.readouterr().out
    assert "pair 3.1/17: rank" in printed
    assert " 2.3/17 " in printed
    for index, words in (
        (("4.0", "17"), "head 4.0: .* has heads 2.0 to 3.3"),
        (("3", "17"), "head 3: "),
        (("3.1", "x"), "x is not"),
    ):
        with pytest.raises(NadpipeError, match=words):
            show("pair", index, results)


def test_maps_are_the_parts_of_the_coefficient(explored):
    run, _ = explored
    contributions, features = read(run.folder / "d-0.zarr"), read(run.folder / "d-features-0.zarr")
    explorer = Explorer(run.folder / "results" / "explorer")
    sign = read(run.folder / "pair.zarr")["sign"].values
    for head, neuron in ((0, 0), (5, 95)):
        pair = explorer.load(f"neurons/{neuron}")["pairs"][head]
        maps = explorer.firing(head, neuron) / 127 * pair["scale"]
        for view, value, shown in zip(pair["images"], pair["values"], maps, strict=True):
            weight = features["gain"].values[view] * features["attention"].values[view, head]
            weight = weight * features["scale"].values[view, head // 4]
            expected = weight[1:] * features["activation"].values[view, :, neuron] * sign[head, neuron]
            np.testing.assert_allclose(shown.ravel(), expected, atol=pair["scale"] / 120)
            class_token = weight[0] * features["prefix_activation"].values[view, 0, neuron] * sign[head, neuron]
            assert expected.sum() + class_token == pytest.approx(value, rel=1e-3, abs=1e-6)
            assert contributions["coefficient"].values[view, head, neuron] * sign[head, neuron] == pytest.approx(
                value, rel=1e-3
            )


def test_an_image_is_explained_by_pairs_and_other_paths(vit_run, tiny_vit, capsys):
    vit_run.write_images(noise(1))
    output = vit_run.folder / "e.html"
    model = {**vit_run.model, "block": 1, "device": "cpu"}
    explain(vit_run.folder / "image 0.png", ("a fish",), output, vit_run.folder / "none", most=2, **model)
    printed = " ".join(capsys.readouterr().out.split())
    cosine, pairs, others = (
        float(printed.split(f"{name} ")[1].split()[0].rstrip(",")) for name in ("cosine", "sum over pairs", "other paths")
    )
    assert cosine == pytest.approx(pairs + others, abs=2e-5)
    assert abs(pairs) > 1e-4
    page = output.read_text()
    assert "other paths" in page
    assert "<strong>3." in page or "<strong>2." in page
