"""Stages of shift monitoring on a tiny random model: labels, few groups, batches."""

import numpy as np
import pandas as pd
import pytest
from stage_run import noise

from nadpipe.errors import NadpipeError
from nadpipe.stages.rank_shifts import rank_shifts
from nadpipe.stages.score_batch import score_batch
from nadpipe.stages.score_shift import score_shift
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.kinds.shift import DISCOVERED
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
    assert discovered["effect"].abs().dropna().is_monotonic_decreasing
    assert discovered[["n", "n_reference", "small"]].drop_duplicates().to_numpy().tolist() == [[3, 3, True]]
    first = discovered.iloc[0]
    of_pair = np.concatenate(
        [open_zarr(path, CONTRIBUTIONS)["coefficient"][:, first["head"], first["neuron"]] for path in contributions]
    )
    toward = np.sign(of_pair[3:].mean() - of_pair[:3].mean()) * of_pair[3:]
    assert first["images"].tolist() == (3 + np.argsort(-toward)).tolist()


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
    stages[1]()
    discovered = read_parquet(run.folder / "ranked.parquet", DISCOVERED)
    assert discovered["group"].nunique() == compared


def test_a_batch_is_scored_like_a_group_of_the_same_images(run):
    run.write_images(noise(8), group=[1] * 4 + [2] * 4, a=[0, 1] * 4)
    contributions = run.decompose(name="all")
    run.tabulate("pair", contributions)
    run.select(contributions, ("a", "b"))
    everything = (run.folder / "images.parquet", contributions, run.folder / "s.zarr", run.pool)
    score_shift(*everything, run.folder / "shift.csv", run.folder / "scores.parquet")
    run.write_images(noise(8)[4:], a=[0, 1] * 2)
    batch = run.decompose(name="batch")
    paths = (run.folder / "images.parquet", batch, run.folder / "s.zarr", run.folder / "scores.parquet", run.pool)
    score_batch(*paths, run.folder / "batch.csv", "april")
    monitored, new = pd.read_csv(run.folder / "shift.csv").query("group == 2"), pd.read_csv(run.folder / "batch.csv")
    same = ["concept", "score", "n", "mean", "mean_low", "mean_high", "effect", "p", "label_rate"]
    pd.testing.assert_frame_equal(new[same], monitored[same].reset_index(drop=True), rtol=1e-4)
    assert new["reference"].tolist() == [1] * 4
    assert new["group"].unique().tolist() == ["april (batch)"]
    score_batch(*paths, run.folder / "rolling.csv", "april", reference="rolling:2")
    assert pd.read_csv(run.folder / "rolling.csv")["reference"].tolist() == ["1 to 2"] * 4
    run.select(contributions, ("a", "c"))
    with pytest.raises(NadpipeError, match=r"scores\.parquet: .*no scores of c; run score-shift"):
        score_batch(*paths, run.folder / "batch.csv", "april")
