import numpy as np
import pandas as pd
import pytest
import torch
from conftest import activations
from reference import dense_contributions
from scipy import stats
from sklearn.metrics import roc_auc_score

from nadpipe.circuit import shift
from nadpipe.circuit.accumulators import Selection
from nadpipe.circuit.attention import trace
from nadpipe.circuit.naming import normalise
from nadpipe.circuit.readout import coefficients, sum_pairs
from nadpipe.errors import NadpipeError


def test_scores_are_norm_and_projection_of_the_selected_pairs_contributions(pool):
    z = activations(pool, 4)
    dense, _, total = dense_contributions(z, pool)
    readout = pool.readout
    coefficient = coefficients(trace(z, pool), readout)
    generator = torch.Generator().manual_seed(0)
    k = min(4, readout.pairs)
    chosen = torch.stack([torch.randperm(readout.pairs, generator=generator)[:k] for _ in range(2)])
    selection = Selection(torch.zeros(2, k), chosen // pool.neurons, chosen % pool.neurons)
    text = normalise(torch.randn(2, pool.embed, generator=generator))
    embedding = sum_pairs(coefficient, readout)
    norm, projection = shift.concept_scores(coefficient, embedding, selection, text, readout)
    for concept in range(2):
        summed = dense[:, selection.head[concept], selection.neuron[concept]].sum(1)
        length = np.linalg.norm(total, axis=1)
        np.testing.assert_allclose(norm[:, concept], np.linalg.norm(summed, axis=1) / length, rtol=1e-3, atol=1e-5)
        expected = summed @ text[concept].double().numpy() / length
        np.testing.assert_allclose(projection[:, concept], expected, rtol=1e-3, atol=1e-4)


AGAINST_FIRST = {"2019": [], "2020": ["2019"], "2021": ["2019"]}


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    group = np.repeat(["2019", "2020", "2021"], 40)
    rising = rng.normal(size=120) + np.where(group == "2021", 2, 0)
    steady = rng.normal(size=120)
    wide = pd.DataFrame({"image_id": range(120), "group": group, "rising": rising, "steady": steady})
    table = wide.melt(["image_id", "group"], var_name="concept", value_name="value").assign(score="norm")
    labels = pd.DataFrame({"rising": (rising > 1).astype(int)}, index=pd.RangeIndex(120, name="image_id"))
    return table, labels, wide


def test_a_shifted_group_is_found_and_an_unshifted_one_is_not(scores):
    table, labels, wide = scores
    compared = shift.compare_groups(table, labels, AGAINST_FIRST, confidence=0.95)
    rows = compared.set_index(["concept", "group"])
    assert rows.loc[("rising", "2021"), "q"] < 1e-6
    assert rows.loc[("rising", "2021"), "effect"] > 0.6
    assert (rows["q"].drop(("rising", "2021")).dropna() > 0.05).all()
    assert rows.loc[("rising", "2019"), ["effect", "p", "q"]].isna().all()
    base, late = (wide.loc[wide["group"] == year, "rising"].to_numpy() for year in ("2019", "2021"))
    assert rows.loc[("rising", "2021"), "p"] == pytest.approx(stats.mannwhitneyu(late, base).pvalue)
    wins = (late[:, None] > base).mean() - (late[:, None] < base).mean()
    assert rows.loc[("rising", "2021"), "effect"] == pytest.approx(wins)
    assert rows.loc[("rising", "2021"), "mean_low"] < late.mean() < rows.loc[("rising", "2021"), "mean_high"]
    assert rows.loc[("rising", "2020"), "auroc"] == 1
    assert rows.loc[("rising", "2021"), "label_rate"] == labels["rising"][80:].mean()
    assert rows.loc["steady", "auroc"].isna().all()


@pytest.mark.parametrize(("images", "reference_images"), [(1, 2), (2, 60), (20, 20), (20, 580), (100, 60)])
def test_the_test_of_pairs_is_the_mann_whitney_test(images, reference_images):
    rng = np.random.default_rng(images)
    skewed = rng.lognormal(sigma=2, size=(images + reference_images, 6)).astype(np.float32)
    skewed[:, 2:4] = np.round(skewed[:, 2:4])  # ties
    skewed[rng.random(len(skewed)) < 0.7, 4:] = 0  # most images are tied
    skewed[0] = 1.5
    group, reference = skewed[:images], skewed[images:]
    effect, p = shift.compare_pairs(torch.from_numpy(group), torch.from_numpy(reference))
    for pair in range(6):
        one, other = group[:, pair].astype(float), reference[:, pair].astype(float)
        wins, losses = (one[:, None] > other).sum(), (one[:, None] < other).sum()
        assert effect[pair] == pytest.approx((wins - losses) / (images * reference_images), abs=1e-12)
        _, tied = np.unique(np.concatenate([one, other]), return_counts=True)
        total = images + reference_images
        variance = images * reference_images / 12 * (total + 1 - (tied**3 - tied).sum() / (total * (total - 1)))
        z = (abs(wins - losses) / 2 - 0.5) / variance**0.5  # with the correction for continuity
        assert p[pair] == pytest.approx(min(1, 2 * stats.norm.sf(z)), rel=1e-10)
        assert p[pair] == pytest.approx(stats.mannwhitneyu(one, other, method="asymptotic").pvalue, rel=1e-10)


def test_pairs_are_compared_block_by_block(monkeypatch):
    group, reference = torch.rand(4, 11), torch.rand(6, 11)
    whole = shift.compare_pairs(group, reference)
    monkeypatch.setattr(shift, "_BLOCK", 30)  # 3 pairs
    np.testing.assert_array_equal(shift.compare_pairs(group, reference), whole)


def test_pairs_that_are_constant_in_each_group_have_the_largest_effect_and_those_that_never_vary_have_no_p():
    group, reference = torch.zeros(30, 4), torch.zeros(50, 4)
    group[:, 0], reference[:, 0] = 2, 1
    group[:, 1], reference[:, 1] = -2, -1
    group[:, 2], reference[:, 2] = 1, np.nextafter(np.float32(1), np.float32(2)).item()  # differ by rounding
    effect, p = shift.compare_pairs(group, reference)
    assert effect.tolist() == [1, -1, 0, 0]
    expected = stats.mannwhitneyu(group[:, 0], reference[:, 0], method="asymptotic").pvalue
    assert p[:2] == pytest.approx([expected, expected])
    assert np.isnan(p[2:]).all()


def test_q_is_adjusted_within_each_group():
    table = pd.DataFrame({"group": list("abab"), "p": [0.01, 1e-9, 0.04, 1e-9]}, index=[3, 2, 1, 0])
    assert shift.adjust_by_group(table).to_dict() == pytest.approx({3: 0.02, 2: 1e-9, 1: 0.04, 0: 1e-9})


def test_q_values_cover_only_tests_with_a_p():
    q = shift.benjamini_hochberg(np.array([0.01, np.nan, 0.04, 0.03]))
    assert q[[0, 2, 3]].tolist() == pytest.approx([0.03, 0.04, 0.04])
    assert np.isnan(q[1])


@pytest.mark.parametrize(
    ("group", "reference", "message"),
    [
        (["a", None], None, "image 1 has no group"),
        (["a", "a"], None, "at least two groups"),
        (["a", "b"], "c", "unknown group c"),
    ],
)
def test_incomparable_groups_are_refused(group, reference, message):
    with pytest.raises(NadpipeError, match=message):
        shift.groups_of(pd.Series(group), reference, "images.parquet")


def test_the_first_group_is_the_reference_unless_named():
    group = pd.Series(["b", "a"])
    assert shift.groups_of(group, None, "") == {"b": [], "a": ["b"]}
    assert shift.groups_of(group, "a", "") == {"b": ["a"], "a": []}
    assert shift.groups_of(pd.Series(["10", "9"]), None, "") == {"9": [], "10": ["9"]}


@pytest.mark.parametrize(
    "names",
    [
        ["2018-9", "2018-10", "2019-01"],
        ["2018-9-1", "2018-9-10", "2018-10-2"],
        ["2018", "2018-2", "2018-11-30"],
        ["-1.5", "2", "10"],
        ["2018/9/1", "2018/9/10", "2018/10/2"],
        ["30.9.2018", "1.10.2018", "02.01.2019"],
        ["march", "april", "May", "September"],
        ["Mar", "apr.", "May", "Sept"],
        ["Dec 2018", "jan 2019", "Feb-2019", "april 2019"],
        ["2018 Dec", "2019 Jan", "2019-feb-03"],
        ["9 Dec 2018", "10 December 2018", "Jan 2, 2019"],
        ["2018-Q2", "2018Q4", "2019 q1"],
        ["Q2 2018", "q4 2018", "Q1-2019"],
        ["Q1", "Q2", "Q3"],
        ["2018-W9", "2018-W10", "2019W01"],
        ["2018-09-30 09:00", "2018-09-30 10:00:30", "2018-09-30T11:15"],
    ],
)
def test_numbers_and_dates_are_in_order_and_have_a_trend(names):
    assert shift.sort_groups(names[::-1]) == shift.sort_groups(sorted(names)) == names
    assert shift.groups_of(pd.Series(names[::-1]), None, "")[names[-1]] == [names[0]]
    value = np.arange(3.0 * len(names))
    result = shift.trend(value, np.repeat(names, 3), names)
    assert result["trend"] == pytest.approx(stats.kendalltau(np.repeat(range(len(names)), 3), value).statistic)


@pytest.mark.parametrize(
    ("given", "order", "expected"),
    [
        (["2018-9", "2018-13", "2018-10"], "appearance", ["2018-9", "2018-13", "2018-10"]),
        (["-5", "2018-9", "2018-10"], "appearance", ["-5", "2018-9", "2018-10"]),
        (["low", "medium", "high"], "appearance", ["low", "medium", "high"]),
        (["March", "April 2019", "Feb"], "appearance", ["March", "April 2019", "Feb"]),
        (["2018-W10", "2018-09"], "appearance", ["2018-W10", "2018-09"]),
        (["march", "april", "other"], "appearance", ["march", "april", "other"]),
        (["10", "9", "x"], "names", ["9", "10", "x"]),
        (["Batch 10", "Batch 9", "batch 2"], "names", ["batch 2", "Batch 9", "Batch 10"]),
        (["a", "b"], "names", ["a", "b"]),
    ],
)
def test_other_groups_are_in_the_order_of_the_images_or_of_their_names_and_have_no_trend(given, order, expected):
    assert shift.group_order(given) == order
    assert shift.sort_groups(given) == expected
    assert np.isnan(shift.trend(np.arange(3.0 * len(given)), np.repeat(given, 3), expected)["trend"])


def test_a_rolling_reference_is_the_groups_before(scores):
    table, labels, wide = scores
    references = shift.groups_of(wide["group"], "rolling:2", "")
    assert references == {"2019": [], "2020": ["2019"], "2021": ["2019", "2020"]}
    compared = shift.compare_groups(table, labels, references, 0.9).set_index(["concept", "group"])
    assert compared.loc[("rising", "2021"), "reference"] == "2019 to 2020"
    late, before = (wide.loc[wide["group"].isin(years), "rising"] for years in (["2021"], ["2019", "2020"]))
    assert compared.loc[("rising", "2021"), "p"] == pytest.approx(stats.mannwhitneyu(late, before).pvalue)


@pytest.mark.parametrize(
    ("test", "function"),
    [
        ("mann_whitney", stats.mannwhitneyu),
        ("welch", lambda one, other: stats.ttest_ind(one, other, equal_var=False)),
        ("ks", stats.ks_2samp),
    ],
)
def test_p_is_that_of_the_given_test(scores, test, function):
    table, labels, wide = scores
    compared = shift.compare_groups(table, labels, AGAINST_FIRST, 0.9, test).set_index(["concept", "group"])
    late, base = (wide.loc[wide["group"] == year, "rising"] for year in ("2021", "2019"))
    assert compared.loc[("rising", "2021"), "p"] == pytest.approx(function(late, base).pvalue)
    assert set(compared["test"]) == {test}


def test_only_ordered_groups_have_a_trend(scores):
    table, labels, wide = scores
    compared = shift.compare_groups(table, labels, AGAINST_FIRST, 0.9).groupby("concept").first()
    expected = stats.kendalltau(wide["group"].astype(int), wide["rising"])
    assert compared.loc["rising", "trend"] == pytest.approx(expected.statistic)
    assert compared.loc["rising", "trend_p"] == pytest.approx(expected.pvalue)
    q = shift.benjamini_hochberg(compared["trend_p"].to_numpy())
    assert compared["trend_q"].to_numpy() == pytest.approx(q)
    assert compared.loc["rising", "trend_q"] < 0.001 < compared.loc["steady", "trend_q"]
    value, group = wide["rising"].to_numpy(), wide["group"].map({"2019": "x", "2020": "y", "2021": "z"}).to_numpy()
    assert np.isnan(shift.trend(value, group, ["x", "y", "z"])["trend"])
    assert np.isnan(shift.trend(value, wide["group"].to_numpy(), ["2019", "2020"])["trend"])
    dated = wide["group"].map(lambda year: f"{year}-05").to_numpy()
    names = ["2019-05", "2020-05", "2021-05"]
    assert shift.trend(value, dated, names)["trend"] == pytest.approx(expected.statistic)


def test_small_groups_are_marked_and_not_tested(scores):
    table, labels, _ = scores
    few = table[(table["group"] != "2020") | (table["image_id"] < 45)]
    compared = shift.compare_groups(few, labels, AGAINST_FIRST, 0.9, small=20).set_index(["concept", "group"])
    assert compared["small"].groupby("group").all().to_dict() == {"2019": False, "2020": True, "2021": False}
    assert compared.loc[("rising", "2020"), "n"] == 5
    assert compared[["p", "q"]].notna().all(axis=1).groupby("group").all().to_dict() == {
        "2019": False,
        "2020": False,
        "2021": True,
    }
    assert compared.loc[("rising", "2020"), ["effect", "mean", "mean_low"]].notna().all()
    alone = shift.compare_groups(table[table["group"] != "2020"], labels, {"2019": [], "2021": ["2019"]}, 0.9)
    assert compared.loc[(slice(None), "2021"), "q"].tolist() == alone.loc[alone["group"] == "2021", "q"].tolist()
    assert (shift.compare_groups(few, labels, {"2020": [], "2021": ["2020"]}, 0.9)["small"]).all()


def test_auroc_equals_that_of_scikit_learn_and_its_interval_covers_it():
    rng = np.random.default_rng(0)
    label = (np.arange(200) % 3 == 0).astype(int)
    value = np.round(rng.normal(size=200) + label, 1)  # with ties
    agreement = shift.label_agreement(value, label, 0.9)
    assert agreement["auroc"] == pytest.approx(roc_auc_score(label, value))
    assert agreement["auroc_low"] < agreement["auroc"] < agreement["auroc_high"]
    assert 0.03 < agreement["auroc_high"] - agreement["auroc_low"] < 0.2
    assert agreement["correlation"] == pytest.approx(np.corrcoef(label, value)[0, 1])
    assert agreement["correlation_low"] < agreement["correlation"] < agreement["correlation_high"]
    assert np.isnan(list(shift.label_agreement(value, np.zeros(200, int), 0.9).values())).all()
