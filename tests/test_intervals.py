"""Intervals: identities, independent formulas, limits, and a small version of benchmarks/coverage.py."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize, stats
from sklearn.metrics import roc_auc_score

from nadpipe.circuit.intervals import (
    auroc_interval,
    correlation_interval,
    jackknife_interval,
    mean_interval,
    placements,
)
from nadpipe.circuit.metrics import mean_iou

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SKEWED = np.random.default_rng(0).gamma(0.5, size=40)


def without_one(statistic, value):
    return np.array([statistic(np.delete(value, index)) for index in range(len(value))])


# --------------------------------------------------------------------------------------------------------- jackknife


def test_the_jackknife_of_a_mean_is_students_interval():
    interval = jackknife_interval(SKEWED.mean(), without_one(np.mean, SKEWED), 0.9)
    assert interval == pytest.approx(stats.ttest_1samp(SKEWED, 0).confidence_interval(0.9))
    wide = jackknife_interval(SKEWED.mean(), without_one(np.mean, SKEWED), 0.9, freedom=3.0)
    assert (wide[1] - wide[0]) / (interval[1] - interval[0]) == pytest.approx(stats.t.ppf(0.95, 3) / stats.t.ppf(0.95, 39))


def test_the_jackknife_reaches_from_the_estimate_to_the_unbiased_one():
    low, high = jackknife_interval(SKEWED.var(), without_one(np.var, SKEWED), 0.9)
    reach = SKEWED.var() - low
    assert high - reach == pytest.approx(SKEWED.var(ddof=1))
    low, high = jackknife_interval(-SKEWED.var(), -without_one(np.var, SKEWED), 0.9)
    assert (low + reach, high - reach) == pytest.approx((-SKEWED.var(ddof=1), -SKEWED.var()))


def test_the_jackknife_stays_within_the_range_of_the_statistic():
    assert jackknife_interval(0.9, np.array([0.5, 0.99, 0.99]), 0.95, within=(0.0, 1.0)) == (0, 1)
    assert np.isnan(jackknife_interval(0.5, np.array([0.5]), 0.95)).all()


# ------------------------------------------------------------------------------------------------------------- means


def test_the_interval_of_a_symmetric_sample_is_students():
    value = np.array([-3.0, -1, 0, 1, 3]) + 7
    assert mean_interval(value, 0.95) == pytest.approx(stats.ttest_1samp(value, 0).confidence_interval(0.95))


def test_the_interval_of_a_skewed_sample_inverts_halls_transformation():
    count, skewness = len(SKEWED), stats.skew(SKEWED)

    def transformed(mean):
        t = (SKEWED.mean() - mean) / (SKEWED.std(ddof=1) / count**0.5)
        a = skewness / count**0.5
        return t + t**2 * a / 3 + t**3 * a**2 / 27 + a / 6

    quantile = stats.t.ppf(0.975, count - 1)
    ends = [optimize.brentq(lambda mean, end=end: transformed(mean) - end, -9, 9) for end in (quantile, -quantile)]
    low, high = mean_interval(SKEWED, 0.95)
    assert (low, high) == pytest.approx(ends)
    assert high - SKEWED.mean() > 1.2 * (SKEWED.mean() - low)  # the long side is that of the large values
    assert mean_interval(-SKEWED, 0.95) == pytest.approx((-high, -low))
    assert mean_interval(10 * SKEWED + 3, 0.95) == pytest.approx((10 * low + 3, 10 * high + 3))


def test_the_interval_of_a_large_skewed_sample_is_that_of_the_bca_bootstrap():
    value = np.random.default_rng(1).gamma(0.5, size=400)
    bca = stats.bootstrap((value,), np.mean, method="BCa", n_resamples=4000, rng=np.random.default_rng(0)).confidence_interval
    width = bca.high - bca.low
    assert mean_interval(value, 0.95) == pytest.approx((bca.low, bca.high), abs=0.06 * width)


def test_equal_values_have_an_interval_without_width_and_one_value_has_none():
    assert mean_interval(np.full(4, 0.1), 0.95) == pytest.approx((0.1, 0.1))
    assert np.isnan(mean_interval(np.ones(1), 0.95)).all()


# ------------------------------------------------------------------------------------------------------------ AUROCs


@pytest.fixture
def sides():
    rng = np.random.default_rng(3)
    return np.round(rng.normal(size=17) + 1, 1), np.round(rng.normal(size=60), 1)  # with ties


def test_placements_are_the_shares_of_pairs_in_order(sides):
    inside, outside = sides
    order = (inside[:, None] > outside) + 0.5 * (inside[:, None] == outside)
    assert (order == 0.5).any()
    above, below = placements(inside, outside)
    np.testing.assert_allclose(above, order.mean(1))
    np.testing.assert_allclose(below, order.mean(0))
    label = np.repeat([1, 0], [len(inside), len(outside)])
    assert above.mean() == pytest.approx(roc_auc_score(label, np.concatenate(sides)))


def newcombes_error(true, count, other):
    """Return the standard error of Newcombe's method 5 at a true AUROC."""
    star = (count + other) / 2 - 1
    return (true * (1 - true) * (1 + star * (1 - true) / (2 - true) + star * true / (1 + true)) / (count * other)) ** 0.5


def test_the_interval_of_an_auroc_is_the_wider_of_delongs_and_newcombes(sides):
    for shift in (0, 0.6, 1.5):
        inside, outside = sides[0] + shift, sides[1]
        order = (inside[:, None] > outside) + 0.5 * (inside[:, None] == outside)
        area = order.mean()
        first, second = order.mean(1).var(ddof=1) / len(inside), order.mean(0).var(ddof=1) / len(outside)
        freedom = (first + second) ** 2 / (first**2 / (len(inside) - 1) + second**2 / (len(outside) - 1))
        reach = stats.t.ppf(0.975, freedom) * (first + second) ** 0.5 / (area * (1 - area))
        delong = [1 / (1 + np.exp(-(np.log(area / (1 - area)) + side * reach))) for side in (-1, 1)]
        low, high = auroc_interval(inside, outside, 0.95)
        for end, other in ((low, delong[0]), (high, delong[1])):
            newcombes = abs(area - end) == pytest.approx(1.959964 * newcombes_error(end, len(inside), len(outside)), rel=1e-5)
            assert newcombes or end == pytest.approx(other)
        assert low <= delong[0] + 1e-9
        assert high >= delong[1] - 1e-9
        assert auroc_interval(outside, inside, 0.95) == pytest.approx((1 - high, 1 - low))


def test_an_auroc_of_one_has_an_interval():
    low, high = auroc_interval(np.arange(10.0) + 20, np.arange(10.0), 0.95)
    assert high == 1
    assert 1 - low == pytest.approx(1.959964 * newcombes_error(low, 10, 10))
    assert 0.7 < low < 0.9
    assert auroc_interval(np.arange(10.0), np.arange(10.0) + 20, 0.95) == pytest.approx((0, 1 - low))
    assert np.isnan(auroc_interval(np.ones(1), np.arange(5.0), 0.95)).all()


# ------------------------------------------------------------------------------------------------------ correlations


def test_the_interval_of_a_correlation_is_the_wider_of_fishers_and_the_jackknifes():
    rng = np.random.default_rng(4)
    label = np.arange(30) < 9
    for draw in (rng.normal(size=30) + label, rng.gamma(0.5, size=30) * (1 + 7 * label)):
        z = np.arctanh(np.corrcoef(draw, label)[0, 1])
        others = np.array(
            [np.arctanh(np.corrcoef(np.delete(draw, image), np.delete(label, image))[0, 1]) for image in range(30)]
        )
        squares = (others - others.mean()) ** 2
        with_label, without = squares[label].sum(), squares[~label].sum()
        freedom = (with_label + without) ** 2 / (with_label**2 / 8 + without**2 / 20)
        jackknife = np.tanh(jackknife_interval(z, others, 0.9, freedom))
        fisher = stats.pearsonr(draw, label).confidence_interval(0.9)
        expected = min(fisher.low, jackknife[0]), max(fisher.high, jackknife[1])
        assert correlation_interval(draw, label, 0.9) == pytest.approx(expected)


def test_a_correlation_that_one_image_decides_has_no_interval():
    two = np.array([True, True, False, False, False])
    assert np.isnan(correlation_interval(np.array([3.0, 1, 2, 1, 2]), np.array([True] + 4 * [False]), 0.95)).all()
    assert np.isnan(correlation_interval(np.array([0.7, 0.2, 0.2, 0.2, 0.2]), two, 0.95)).all()  # equal without the first
    assert np.isnan(correlation_interval(np.array([0.7, 0.7, 0.2, 0.2, 0.2]), two, 0.95)).all()
    assert np.isfinite(correlation_interval(np.array([0.7, 0.6, 0.2, 0.2, 0.3]), two, 0.95)).all()


# ---------------------------------------------------------------------------------------------------------- coverage


@pytest.fixture(scope="module")
def simulation():
    """Return benchmarks/coverage.py as a module, under a name that no package has."""
    spec = importlib.util.spec_from_file_location("coverage_benchmark", BENCHMARKS / "coverage.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        spec.loader.exec_module(module)
    sys.modules.pop("common")
    return module


def covers(intervals, true, rate):
    """Return True if a binomial test at p = 0.001 does not contradict this rate of intervals that contain the true value."""
    low, high = np.array(intervals).T
    return stats.binomtest(int(((low <= true) & (true <= high)).sum()), len(low), rate, "less").pvalue > 0.001


@pytest.mark.slow
def test_intervals_of_miou_cover_with_rare_classes_and_percentiles_do_not(simulation):
    rng = np.random.default_rng(0)
    population = simulation.draw_population(59, 4000, rng)
    measured = [simulation.miou_intervals(population[rng.integers(0, 4000, 120)], 100, rng) for _ in range(250)]
    same_size = np.mean([estimates for estimates, _, _ in measured], axis=0)
    first, second = mean_iou(population.sum(0))
    for index, whole in enumerate((first, second - first)):
        usual, now = ([each[kind][index] for each in measured] for kind in (1, 2))
        assert covers(now, same_size[index], 0.93)
        assert covers(now, whole, 0.93)
        assert np.ptp(now, axis=1).mean() < 2 * np.ptp(usual, axis=1).mean()
    assert not covers([usual[0] for _, usual, _ in measured], first, 0.93)


@pytest.mark.slow
def test_intervals_of_means_cover_skewed_scores_and_percentiles_do_not(simulation):
    rng = np.random.default_rng(0)
    samples = rng.gamma(4 / 9, size=(400, 20))  # skewness 3
    drawn = [simulation.percentiles(sample[rng.integers(0, 20, (300, 20))].mean(1)) for sample in samples]
    assert covers([mean_interval(sample, 0.95) for sample in samples], 4 / 9, 0.92)
    assert not covers(drawn, 4 / 9, 0.92)


@pytest.mark.slow
@pytest.mark.parametrize("scores", ["unrelated, lognormal", "gamma, 8 times as large", "like the demo's", "almost apart"])
def test_intervals_of_correlations_and_aurocs_cover_skewed_scores(simulation, scores):
    rng = np.random.default_rng(1)
    draw = simulation.LABELLED_SCORES[scores]
    share = 0.1
    pool = rng.random(100_000) < share
    value = draw(rng, pool.astype(float))
    correlation, area = np.corrcoef(value, pool)[0, 1], placements(value[pool], value[~pool])[0].mean()
    correlations, fisher, areas = [], [], []
    for _ in range(250):
        label = rng.permutation(np.arange(100) < 100 * share)
        sample = draw(rng, label.astype(float))
        correlations.append(correlation_interval(sample, label, 0.95))
        fisher.append(stats.pearsonr(sample, label).confidence_interval(0.95))
        areas.append(auroc_interval(sample[label], sample[~label], 0.95))
    assert covers(correlations, correlation, 0.92)
    assert covers(areas, area, 0.92)
    assert covers(fisher, correlation, 0.92) == (scores == "unrelated, lognormal")
