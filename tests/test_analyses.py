"""Stages of the analyses on a tiny random model."""

import numpy as np
import pandas as pd
import pytest
from conftest import ink
from sklearn.metrics import average_precision_score
from stage_run import noise

from nadpipe.errors import NadpipeError
from nadpipe.stages.draw_retrieval import draw_retrieval
from nadpipe.stages.embed_texts import embed_texts
from nadpipe.stages.index_images import index_images
from nadpipe.stages.measure_faithfulness import measure_faithfulness
from nadpipe.stages.measure_naming import measure_naming
from nadpipe.stages.measure_polysemanticity import measure_polysemanticity
from nadpipe.stages.measure_reconstruction import measure_reconstruction
from nadpipe.stages.measure_sparse_text import measure_sparse_text
from nadpipe.stages.measure_sparsity import measure_sparsity
from nadpipe.stages.plot_table import plot_table
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.analyses import POLYSEMANTICITY
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.kinds.texts import TEXT
from nadpipe.store.kinds.units import DIRECTIONS
from nadpipe.store.tables import read_parquet


def test_analyses_start_at_the_mean_and_end_at_the_model(run):
    """With all pairs, directions or texts, embeddings are the model's own; without any, they are the mean."""
    labels = ["cat", "dog", None, "dog", "cat"] * 2
    attributes = {"big_eyes": [1, 0, 1, 1, 0] * 2, "dog": [0, 1, 0, 1, 0] * 2, "flat": [1] * 10}
    run.write_images(noise(10), group=labels, **attributes)
    index_images("table", run.folder / "t.csv", run.folder / "images.parquet", label_column="group")
    contributions = run.decompose(shards=2)
    for unit in ("pair", "neuron", "head"):
        run.tabulate(unit, contributions)
    embed_texts(output=run.folder / "labels.zarr", labels=run.folder / "images.parquet", device="cpu", **run.model)
    assert open_zarr(run.folder / "labels.zarr", TEXT).texts() == ["cat", "dog", "big eyes", "flat"]
    labelled = (run.folder / "images.parquet", contributions, run.folder / "labels.zarr")
    units = [run.folder / f"{unit}.zarr" for unit in ("pair", "neuron", "head")]

    measure_sparsity(*labelled, *units[:2], run.pool, run.folder / "sparsity.csv", shares=(0.1001, 0.1, 1.0), draws=2)
    sparsity = pd.read_csv(run.folder / "sparsity.csv").set_index(["unit", "kept", "draw", "pairs"])
    kept = {"neuron": [52, 512], "pair": [51, 512]}  # both shares of a tenth are 13 of 128 neurons, and 51 of 512 pairs
    assert sparsity.groupby("unit").apply(lambda rows: sorted(set(rows.index.get_level_values("pairs")))).to_dict() == kept
    assert sparsity.index.is_unique
    assert sorted(set(sparsity["share"].loc["neuron"])) == pytest.approx([13 / 128, 1])
    assert sorted(set(sparsity["share"].loc["pair"])) == pytest.approx([51 / 512, 1])
    everything = sparsity.xs(512, level="pairs")
    assert everything["relative_error"].max() < 1e-5
    assert set(sparsity["images"]) == {8}
    assert set(sparsity["classes"]) == {2}
    assert set(sparsity["attributes"]) == {2}  # flat is true of all images
    assert set(sparsity["prevalence"]) == {0.5}
    for unit, (tenth, _) in kept.items():
        energy = sparsity["energy"][unit]
        assert energy["top", 0, tenth] > energy["random", 1, tenth] > energy["bottom", 0, tenth]
    label_store = open_zarr(run.folder / "labels.zarr", TEXT)
    text = dict(zip(label_store.texts(), label_store.read("embedding"), strict=True))
    embedding = np.concatenate([open_zarr(path, CONTRIBUTIONS).read("embedding") for path in contributions])
    labelled_rows = [row for row, label in enumerate(labels) if label]
    score = embedding[labelled_rows] / np.linalg.norm(embedding[labelled_rows], axis=1, keepdims=True)
    expected = np.mean(
        [
            average_precision_score(np.array(attributes[column])[labelled_rows], score @ text[name])
            for column, name in (("big_eyes", "big eyes"), ("dog", "dog"))
        ]
    )
    assert everything["average_precision"].to_numpy() == pytest.approx(expected)
    measure_reconstruction(*labelled, *units, run.pool, run.folder / "reconstruction.csv")
    table = pd.read_csv(run.folder / "reconstruction.csv").set_index(["unit", "components"])
    assert table.index.tolist() == [(u, c) for u, n in (("pair", 1), ("neuron", 2), ("head", 2)) for c in range(n + 1)]
    assert table.loc[("pair", 1), "relative_error"] < 1e-5
    assert table.xs(0, level="components")["relative_error"].nunique() == 1
    for unit in ("neuron", "head"):
        assert table.loc[unit]["explained"].is_monotonic_increasing
    texts = [run.folder / f"{unit}-texts.parquet" for unit in ("pair", "neuron", "head")]
    words = run.folder / "words.zarr"
    measure_sparse_text(*labelled, *units, *texts, words, run.pool, run.folder / "sparse_text.csv", atoms=(1, 2, 99), draws=2)
    every = pd.read_csv(run.folder / "sparse_text.csv")
    assert every.groupby(["unit", "dictionary"], sort=False)["draw"].unique().map(list).tolist() == 3 * [[0], [1, 2]]
    assert (every.groupby("unit")["units"].nunique() == 1).all()
    for _, rows in every.groupby(["unit", "dictionary", "draw"]):
        assert rows["explained"].is_monotonic_increasing
    coded = every[every["dictionary"] == "texts"].set_index(["unit", "atoms"])
    assert coded.index.tolist() == [(unit, count) for unit in ("pair", "neuron", "head") for count in (0, 1, 2)]
    assert coded.loc["pair"]["explained"].is_monotonic_increasing
    for unit in ("pair", "neuron", "head"):  # a code is at most the direction that it stands for
        assert coded.loc[(unit, 2), "relative_error"] >= table.loc[(unit, 1), "relative_error"]
        assert coded.loc[(unit, 0), "relative_error"] == pytest.approx(table.loc[(unit, 0), "relative_error"])
    assert (coded["coded"] == 1).all()
    measure_sparse_text(
        *labelled, *units, *texts, words, run.pool, run.folder / "few.csv", atoms=(2,), control_units=5, draws=1
    )
    few = pd.read_csv(run.folder / "few.csv").query("atoms == 2").groupby("unit")
    assert few["dictionary"].apply(list).to_dict() == {
        "head": ["texts", "random"],  # of the 4 heads, none is left out
        "neuron": ["texts", "texts", "random"],
        "pair": ["texts", "texts", "random"],
    }
    assert few["units"].apply(list)[["head", "pair"]].map(lambda counts: counts[1:]).tolist() == [[4], [5, 5]]
    assert few["coded"].apply(list)["pair"][0] == pytest.approx(1)
    assert few["coded"].apply(list)["pair"][1] == few["coded"].apply(list)["pair"][2] < 0.5
    for name in ("sparsity", "reconstruction", "sparse_text"):
        plot_table(name, run.folder / f"{name}.csv", run.folder / f"{name}.png")
        assert 0.01 < ink(run.folder / f"{name}.png") < 0.9
    with pytest.raises(NadpipeError, match="0 different labels"):
        index_images("table", run.folder / "t.csv", run.folder / "images.parquet")
        embed_texts(output=run.folder / "x.zarr", labels=run.folder / "images.parquet", device="cpu", **run.model)
    with pytest.raises(NadpipeError, match="no image has a label"):
        measure_sparsity(*labelled, *units[:2], run.pool, run.folder / "sparsity.csv")


def test_the_control_of_sparse_codes_differs_in_its_atoms_alone(run, monkeypatch):
    """With the texts in place of random atoms, the control has the numbers of the texts."""
    run.write_images(noise(6), group=["cat", "dog"] * 3)
    index_images("table", run.folder / "t.csv", run.folder / "images.parquet", label_column="group")
    contributions = run.decompose()
    for unit in ("pair", "neuron", "head"):
        run.tabulate(unit, contributions)
    embed_texts(output=run.folder / "labels.zarr", labels=run.folder / "images.parquet", device="cpu", **run.model)
    units = [run.folder / f"{unit}.zarr" for unit in ("pair", "neuron", "head")]
    texts = [run.folder / f"{unit}-texts.parquet" for unit in ("pair", "neuron", "head")]
    inputs = (run.folder / "images.parquet", contributions, run.folder / "labels.zarr", *units, *texts)
    output = run.folder / "sparse_text.csv"

    def measure():
        measure_sparse_text(*inputs, run.folder / "words.zarr", run.pool, output, atoms=(1, 2), control_units=20, draws=1)
        table = pd.read_csv(output)
        smallest = table.groupby("unit")["units"].transform("min")
        return table[table["units"] == smallest].set_index(["dictionary", "unit", "atoms"])[["relative_error", "explained"]]

    random = measure()
    assert (random.loc["random"] - random.loc["texts"]).abs().max(axis=None) > 1e-3
    monkeypatch.setattr("nadpipe.stages.measure_sparse_text.random_atoms", lambda atom, generator: atom)
    same = measure()
    pd.testing.assert_frame_equal(same.loc["random"], same.loc["texts"], rtol=1e-5)


def test_data_sets_without_attributes_have_no_average_precision(run):
    run.write_images(noise(6), group=["cat", "dog"] * 3)
    index_images("table", run.folder / "t.csv", run.folder / "images.parquet", label_column="group")
    contributions = run.decompose()
    units = [run.fit(unit, contributions) for unit in ("pair", "neuron")]
    embed_texts(output=run.folder / "labels.zarr", labels=run.folder / "images.parquet", device="cpu", **run.model)
    labelled = (run.folder / "images.parquet", contributions, run.folder / "labels.zarr")
    measure_sparsity(*labelled, *units, run.pool, run.folder / "sparsity.csv", shares=(0.1,), draws=1)
    table = pd.read_csv(run.folder / "sparsity.csv")
    assert table[["average_precision", "prevalence"]].isna().all(axis=None)
    assert (table["attributes"] == 0).all()
    plot_table("sparsity", run.folder / "sparsity.csv", run.folder / "sparsity.png")
    other = run.embed("other", ("cat", "horse"))
    with pytest.raises(NadpipeError, match=r"other\.zarr: has no text 'dog'; embed the labels"):
        measure_sparsity(*labelled[:2], other, *units, run.pool, run.folder / "sparsity.csv")


def test_top_images_of_pairs_and_neurons(run, capsys):
    run.write_images(noise(12))
    contributions = run.decompose(shards=2)
    for unit in ("pair", "neuron"):
        run.tabulate(unit, contributions)
    inputs = [run.folder / name for name in ("pair.zarr", "neuron.zarr", "pairs.parquet", "neurons.parquet")]
    measure_polysemanticity(contributions, *inputs, run.pool, run.folder / "p.parquet", top=3)
    table = read_parquet(run.folder / "p.parquet", POLYSEMANTICITY)
    assert table["unit"].value_counts().to_dict() == {"pair": 512, "neuron": 128}
    pairs = table[table["unit"] == "pair"].dropna(subset="spread")
    assert pairs["spread"].between(-1e-5, 1.5 + 1e-5).all()
    row = pairs.astype({"head": int}).iloc[0]
    stores = [open_zarr(path, CONTRIBUTIONS) for path in contributions]
    coefficient = np.concatenate([store["coefficient"][:, row["head"], row["neuron"]] for store in stores])
    sign = open_zarr(run.folder / "pair.zarr", DIRECTIONS["pair"])["sign"][row["head"], row["neuron"]]
    assert row["images"].tolist() == np.argsort(-coefficient * sign, kind="stable")[:3].tolist()
    neuron = table[(table["unit"] == "neuron") & (table["neuron"] == row["neuron"])].iloc[0]
    assert row["parent_spread"] == neuron["spread"]
    assert row["overlap"] == pytest.approx(len(set(row["images"]) & set(neuron["images"])) / 3)
    draw_retrieval(run.folder / "images.parquet", run.folder / "p.parquet", run.folder / "sheets", neurons=2)
    assert len(list((run.folder / "sheets").glob("neuron-*.png"))) == 2
    measure_polysemanticity(contributions, *inputs, run.pool, run.folder / "q.parquet", top=7)
    assert "6 top images per unit" in capsys.readouterr().err
    assert set(read_parquet(run.folder / "q.parquet", POLYSEMANTICITY)["images"].str.len()) == {6}


def test_names_and_ablations_are_compared_with_labels(run):
    run.write_images(noise(12), a=[0, 1] * 6, b=[1, 1, 0] * 4, other=range(12))
    contributions = run.decompose()
    run.tabulate("pair", contributions)
    run.select(contributions, ("a", "b", "c"), k=400)
    images, words = run.folder / "images.parquet", run.folder / "words.zarr"
    names = [run.folder / name for name in ("pair.zarr", "pair-texts.parquet", "correlated.parquet")]
    named = (images, contributions, contributions, *names, words, run.pool, run.folder / "n.csv")
    measure_naming(*named)
    check_naming(pd.read_csv(run.folder / "n.csv"))
    paths = (images, contributions, contributions, run.folder / "s.zarr", words, run.folder / "pair.zarr", run.pool)
    measure_faithfulness(*paths, run.folder / "f.csv", shares=(0.01, 0.5), draws=2)
    check_faithfulness(pd.read_csv(run.folder / "f.csv"))

    run.write_images(noise(12), a=[0, 2] * 6)
    with pytest.raises(NadpipeError, match=r"images\.parquet: column a has other values than 0 and 1"):
        measure_faithfulness(*paths, run.folder / "f.csv", draws=2)
    run.write_images(noise(12))
    with pytest.raises(NadpipeError, match=r"images\.parquet: no 0/1 column; naming needs labels"):
        measure_naming(*named)


def check_naming(table):
    every = ["nearest", "sparse", "correlated"]
    rules = table.groupby("units", sort=False)["rule"].unique().map(list)
    assert rules.index[0] == "pairs"
    assert rules.tolist() == [every, every, every, ["correlated"], ["correlated"]]
    assert (table["attributes"] == 2).all()
    assert table["selected"].between(1, 2).all()
    assert table["agreement"].between(0, 1).all()
    whole = table[table["share"] == 1]
    assert whole.groupby("rule")["count"].nunique().tolist() == [1, 1, 1]  # as many controls as pairs that vary
    merged = whole.merge(whole[whole["units"] == "pairs"], on="rule", suffixes=("", "_pairs"))
    assert merged["difference"].isna().equals(merged["units"] == "pairs")
    expected = (merged["agreement_pairs"] - merged["agreement"]).where(merged["units"] != "pairs")
    np.testing.assert_allclose(merged["difference"], expected, atol=1e-6)


def check_faithfulness(table):
    concepts = ["a", "b", "c"]
    controls = [f"random {kind} {draw}" for kind in ("direction", "mixture", "pairs") for draw in (1, 2)]
    selected = table[table["rule"] == "selected"]
    assert selected["ablated"].unique().tolist() == [*concepts, *controls]
    assert (selected["k"] == 400).all()
    measured = selected.groupby("ablated")["measured"].unique().map(list).to_dict()
    assert measured == {name: [name] if name in controls[:4] else concepts for name in [*concepts, *controls]}
    by_score = table.groupby("measured")
    assert by_score["auroc"].nunique()[concepts].tolist() == [1, 1, 0]  # no column c
    assert by_score["own"].unique().map(list)[concepts].tolist() == [["label"], ["label"], ["highest"]]
    highest = table[table["own"] == "highest"]
    assert (highest["change"] == highest["change_highest"]).all()
    curves = table[~table["rule"].isin(["selected", "random"])]
    assert curves["rule"].unique().tolist() == ["write", "direction", "magnitude", "effect", "neurons"]
    assert curves.groupby("rule")["k"].nunique().tolist() == [2] * 5
    assert (curves.loc[curves["rule"] == "neurons", "k"] % 4 == 0).all()  # whole neurons of four heads
    half = curves[curves["k"] == 256].groupby("rule")["auroc_highest"].mean()
    assert half["effect"] < half.drop("effect").min()
