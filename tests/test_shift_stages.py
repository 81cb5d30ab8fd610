"""Stages of shift monitoring on a tiny random model: labels, few groups, batches."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from stage_run import noise

from nadpipe.errors import NadpipeError
from nadpipe.stages.rank_shifts import rank_shifts
from nadpipe.stages.score_batch import score_batch
from nadpipe.stages.score_shift import score_shift
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.kinds.shift import DISCOVERED
from nadpipe.store.kinds.units import UNIT_TABLES
from nadpipe.store.tables import read_parquet


def test_shifts_follow_the_labels_of_the_table_and_refuse_wrong_ones(run):
    texts = ("value", "score", "a")  # names of columns inside the stage
    run.write_images(noise(6), group=[9, 9, 9, 10, 10, 10], value=[0, 1, 0, 1, 1, 0], score=[0, 1, 0, 1, 1, 2])
    contributions = run.decompose()
    run.tabulate("pair", contributions)
    run.select(contributions, texts)
    paths = (run.folder / "images.parquet", contributions, run.folder / "s.zarr", run.pool)
    with pytest.raises(NadpipeError, match=r"images\.parquet: column score .*0 and 1"):
        score_shift(*paths, run.folder / "shift.csv", run.folder / "scores.parquet")
    run.write_images(noise(6), group=[9, 9, 9, 10, 10, 10], value=[0, 1, 0, 1, 1, 0])
    score_shift(*paths, run.folder / "shift.csv", run.folder / "scores.parquet")
    table = pd.read_csv(run.folder / "shift.csv")
    assert table["reference"].dropna().unique().tolist() == [9]
    assert set(table["concept"]) == set(texts)
    assert table.set_index("concept")["label_rate"].notna().to_dict() == {"value": True, "score": False, "a": False}
    ranked = run.folder / "ranked.parquet"
    rank_shifts(run.folder / "images.parquet", contributions, run.folder / "pairs.parquet", ranked)
    discovered = read_parquet(ranked, DISCOVERED)
    assert discovered[["n", "n_reference", "small"]].drop_duplicates().to_numpy().tolist() == [[3, 3, True]]
    assert discovered[["p", "q"]].isna().all(axis=None)
    assert discovered["effect"].abs().is_monotonic_decreasing


def test_discovered_shifts_are_those_of_the_coefficients(run):
    year = np.array([1] * 7 + [2] * 5 + [3] * 2 + [4] * 8)
    references = {"2": [1], "3": [1, 2], "4": [2, 3]}
    run.write_images(noise(22), group=list(year))
    contributions = run.decompose()
    run.tabulate("pair", contributions)
    ranked = run.folder / "ranked.parquet"
    rank_shifts(run.folder / "images.parquet", contributions, run.folder / "pairs.parquet", ranked, "rolling:2", 3, 5)
    discovered = read_parquet(ranked, DISCOVERED)
    coefficient = np.concatenate([open_zarr(path, CONTRIBUTIONS).read("coefficient") for path in contributions]).astype(float)
    assert len(discovered) == len(references) * coefficient[0].size
    norm = read_parquet(run.folder / "pairs.parquet", UNIT_TABLES["pair"]).set_index(["head", "neuron"])["write_norm"]
    for name, rows in discovered.groupby("group"):
        members, base = np.flatnonzero(year == int(name)), np.flatnonzero(np.isin(year, references[name]))
        assert rows["reference"].unique().tolist() == [" to ".join(map(str, references[name]))]
        counts = rows[["n", "n_reference", "small"]].drop_duplicates().to_numpy().tolist()
        assert counts == [[len(members), len(base), name == "3"]]
        of_pair = coefficient[:, rows["head"], rows["neuron"]]
        difference = of_pair[members].mean(0) - of_pair[base].mean(0)
        np.testing.assert_allclose(rows["difference"], difference, atol=1e-6)
        norms = norm.loc[pd.MultiIndex.from_frame(rows[["head", "neuron"]])].to_numpy()
        np.testing.assert_allclose(rows["contribution"], difference * norms, atol=1e-6)
        test = stats.mannwhitneyu(of_pair[members], of_pair[base], axis=0, method="asymptotic")
        np.testing.assert_allclose(rows["effect"], 2 * test.statistic / (len(members) * len(base)) - 1, atol=1e-6)
        varies = np.ptp(of_pair[[*members, *base]], axis=0) > 0
        q = np.full(len(rows), np.nan)
        if name != "3":
            q[varies] = stats.false_discovery_control(test.pvalue[varies])
        np.testing.assert_allclose(rows["q"], q, rtol=1e-9)
        shown = np.argsort(np.where(rows["effect"] < 0, 1, -1) * of_pair[members], axis=0)[:3].T
        assert np.array_equal(np.stack(rows["images"])[varies][:, : len(members)], members[shown][varies])
        opposite = np.argsort(np.where(rows["effect"] < 0, -1, 1) * of_pair[base], axis=0)[:3].T
        assert np.array_equal(np.stack(rows["reference_images"])[varies], base[opposite][varies])
    tested = discovered["q"].notna()
    assert tested.sum() == tested.argmin()  # the others come last
    assert discovered["q"].dropna().is_monotonic_increasing
    assert all(rows["effect"].abs().is_monotonic_decreasing for _, rows in discovered.groupby("q"))


@pytest.mark.parametrize(
    ("groups", "rows", "compared"),
    [(["a"] * 6, 0, 0), (["a"] * 5 + ["b"], 2, 1), (list("abcdef"), 6, 5), ([None] * 6, 0, 0)],
    ids=["one group", "one image in a group", "groups of one image", "no group"],
)
def test_shifts_with_few_groups_or_few_images_are_refused_or_marked(run, groups, rows, compared):
    run.write_images(noise(6), group=groups)
    contributions = run.decompose()
    run.tabulate("pair", contributions)
    run.select(contributions, ("a", "b"))
    outputs = (run.folder / "shift.csv", run.folder / "scores.parquet")
    arguments = (run.folder / "images.parquet", contributions)
    stages = [
        lambda: score_shift(*arguments, run.folder / "s.zarr", run.pool, *outputs),
        lambda: rank_shifts(*arguments, run.folder / "pairs.parquet", run.folder / "ranked.parquet"),
    ]
    if not rows:
        for stage in stages:
            with pytest.raises(NadpipeError, match=r"all images are in group a; .*two groups|no group"):
                stage()
        return
    stages[0]()
    table = pd.read_csv(outputs[0])
    assert len(table) == 2 * 2 * rows  # concepts and scores
    assert table["reference"].notna().sum() == 2 * 2 * compared
    assert table["small"].all()
    assert table[["p", "q"]].isna().all(axis=None)
    stages[1]()
    discovered = read_parquet(run.folder / "ranked.parquet", DISCOVERED)
    assert discovered["group"].nunique() == compared
    assert discovered[["p", "q"]].isna().all(axis=None)


def test_a_batch_is_scored_like_a_group_of_the_same_images(run):
    run.write_images(noise(8), group=[1] * 4 + [2] * 4, a=[0, 1] * 4)
    contributions = run.decompose(name="all")
    run.tabulate("pair", contributions)
    run.select(contributions, ("a", "b"))
    everything = (run.folder / "images.parquet", contributions, run.folder / "s.zarr", run.pool)
    score_shift(*everything, run.folder / "shift.csv", run.folder / "scores.parquet", small_group=4)
    run.write_images(noise(8)[4:], a=[0, 1] * 2)
    batch = run.decompose(name="batch")
    paths = (run.folder / "images.parquet", batch, run.folder / "s.zarr", run.folder / "scores.parquet", run.pool)
    score_batch(*paths, run.folder / "batch.csv", "april", small_group=4)
    monitored, new = pd.read_csv(run.folder / "shift.csv").query("group == 2"), pd.read_csv(run.folder / "batch.csv")
    same = ["concept", "score", "n", "mean", "mean_low", "mean_high", "effect", "p", "q", "label_rate"]
    assert new["q"].notna().all()
    pd.testing.assert_frame_equal(new[same], monitored[same].reset_index(drop=True), rtol=1e-4)
    assert new["reference"].tolist() == [1] * 4
    assert new["group"].unique().tolist() == ["april (batch)"]
    score_batch(*paths, run.folder / "rolling.csv", "april", reference="rolling:2")
    assert pd.read_csv(run.folder / "rolling.csv")["reference"].tolist() == ["1 to 2"] * 4
    run.select(contributions, ("a", "c"))
    with pytest.raises(NadpipeError, match=r"scores\.parquet: .*no scores of c; run score-shift"):
        score_batch(*paths, run.folder / "batch.csv", "april")
