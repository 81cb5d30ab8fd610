"""Measure how often nadpipe's 95% intervals contain the true value, beside the usual interval of each statistic.

    python benchmarks/coverage.py --scores results/shift/scores.parquet

Every trial draws a sample from a population whose values are known. For mIoU, the population is 40,000 images with classes that
follow Zipf's law (the r-th class is 1 / r^exponent as probable as the first) and two methods whose errors are correlated.
mIoU has two true values: its mean over data sets of the sample's size, and its value in the whole population. They differ if
there are rare classes: a class that no mask of a data set contains has IoU 0 there if a method predicts it, and is not counted
otherwise. --scores adds the concepts' scores of a run, such as the demo's, to the populations of means.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from common import make_parser, parse, report
from scipy import special, stats

from nadpipe.circuit.intervals import (
    Interval,
    auroc_interval,
    correlation_interval,
    jackknife_interval,
    mean_interval,
    placements,
)
from nadpipe.circuit.metrics import count_rare, mean_iou, mean_iou_without_one

CONFIDENCE = 0.95
CLASSES_PER_IMAGE = {13: 3, 59: 5, 150: 8}  # classes: mean number in an image
EXPONENTS = (1.0, 1.5)  # of Zipf's law
IMAGES = (120, 500, 2000)
SIZES = (5, 10, 20, 60, 200)  # images of a group
SIDES = ((5, 15), (10, 10), (5, 95), (20, 180), (60, 420))  # images with and without the label
LABELLED = ((20, 0.25), (20, 0.5), (60, 0.1), (200, 0.05), (200, 0.5), (480, 0.1))  # images, probability of the label
POOL = 400_000  # values of a population of scores

Draw = Callable[[np.random.Generator, np.ndarray], np.ndarray]  # scores of images with given labels


def main() -> None:
    """Measure all statistics and write the report."""
    parser = make_parser(__doc__)
    parser.add_argument("--trials", type=int, default=1000, help="samples per row")
    parser.add_argument("--resamples", type=int, default=400, help="resamples of the bootstrap")
    parser.add_argument("--population", type=int, default=40_000, help="images of the population of mIoU")
    parser.add_argument("--scores", type=Path, help="table of scores written by `nadpipe score-shift`")
    given = parse(parser, trials=20, resamples=50, population=500)
    rng = np.random.default_rng(0)
    populations = score_populations(given.scores, rng)
    kinds = [(classes, exponent) for exponent in EXPONENTS for classes in CLASSES_PER_IMAGE][: 1 if given.tiny else None]
    rows = [each for kind in kinds for each in miou_rows(given, *kind)]
    rows += mean_rows(given, populations, rng) + auroc_rows(given, rng) + correlation_rows(given, rng)
    title = (
        f"Share of {given.trials} samples whose 95% interval contains the true value, with its standard error, and mean width. "
        "`all data`: the mIoU of the whole population, otherwise its mean over data sets of this size. Rare classes occur in "
        "fewer than 5 images of a sample"
    )
    report(given, "coverage", title, rows)


def row(statistic: str, case: str, usual: str, true: float, before: list[Interval], now: list[Interval]) -> dict[str, str]:
    """Return one row of the report from the usual and nadpipe's intervals of all samples."""
    cells = {"statistic": statistic, "case": case, "usual interval": usual}
    for name, intervals in (("usual", before), ("nadpipe", now)):
        rate, width = coverage(intervals, true)
        cells[f"{name}: coverage"] = f"{rate:.3f} ± {np.sqrt(rate * (1 - rate) / len(intervals)):.3f}"
        cells[f"{name}: width"] = f"{width:.3g}"
    return cells


def coverage(intervals: list[Interval], true: float) -> tuple[float, float]:
    """Return the share of intervals that contain the true value, and their mean width. NaN counts as not contained."""
    low, high = np.array(intervals).T
    return float(((low <= true) & (true <= high)).mean()), float(np.nanmean(high - low))


# ---------------------------------------------------------------------------------------------------------------- mIoU


def draw_population(classes: int, images: int, rng: np.random.Generator, exponent: float = 1.0) -> np.ndarray:
    """Draw the pixels of two methods on images: (image, method, correct / true / predicted, class), as `class_totals`.

    A class has a mean recall in each method, and each image's recall is beta-distributed around it (correlated between the
    methods). Half of the missed pixels go to a class that this class is mistaken for, the others to a class of the image.
    """
    frequency = 1 / np.arange(1, classes + 1) ** exponent
    frequency /= frequency.sum()
    recall = rng.beta(2.5, 1.8, classes)
    recalls = np.stack([recall, special.expit(special.logit(recall) + rng.normal(0.1, 0.3, classes))])
    mistaken = rng.dirichlet(0.08 + 0.05 * classes * frequency, classes)
    np.fill_diagonal(mistaken, 0)
    mistaken = (mistaken / mistaken.sum(1, keepdims=True)).cumsum(1)
    number = np.clip(1 + rng.poisson(CLASSES_PER_IMAGE[classes] - 1, images), 1, classes)
    totals = np.zeros((images, 2, 3, classes), np.int32)
    for image in range(images):
        present = rng.choice(classes, number[image], replace=False, p=frequency)
        size = rng.lognormal(0, 1.2, len(present))
        pixels = np.maximum(np.round(10_000 * size / size.sum()), 1)
        both = rng.normal(size=(2, len(present))) * 0.5 + rng.normal(size=len(present)) * 0.75**0.5
        for method in range(2):
            share = 2.5 * recalls[method, present]
            correct = np.round(pixels * special.betaincinv(share, 2.5 - share, special.ndtr(both[method])))
            stray = (mistaken[present] < rng.random((len(present), 1))).sum(1).clip(max=classes - 1)
            inside = rng.choice(present, len(present))
            taken = np.where((rng.random(len(present)) < 0.5) | (inside == present), stray, inside)
            totals[image, method, 0, present] = correct
            totals[image, method, 1, present] = pixels
            np.add.at(totals[image, method, 2], present, correct.astype(np.int32))
            np.add.at(totals[image, method, 2], taken, (pixels - correct).astype(np.int32))
    return totals


def bootstrap_miou(totals: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Compute the mIoU of both methods over images drawn with replacement: (resample, method)."""
    images = len(totals)
    drawn = rng.multinomial(images, np.full(images, 1 / images), size=resamples).astype(np.float32)
    return mean_iou((drawn @ totals.reshape(images, -1).astype(np.float32)).reshape(resamples, *totals.shape[1:]))


def miou_intervals(
    totals: np.ndarray, resamples: int, rng: np.random.Generator
) -> tuple[list[float], list[Interval], list[Interval]]:
    """Return the first method's mIoU and the difference of both, with percentile intervals and with nadpipe's."""
    miou = mean_iou(totals.sum(0))
    left_out = np.stack([mean_iou_without_one(totals[:, method]) for method in range(2)])
    samples = bootstrap_miou(totals, resamples, rng)
    estimates = [float(miou[0]), float(miou[1] - miou[0])]
    drawn = samples[:, 0], samples[:, 1] - samples[:, 0]
    without_one = left_out[0], left_out[1] - left_out[0]
    usual = [percentiles(each) for each in drawn]
    return estimates, usual, [jackknife_interval(*each, CONFIDENCE) for each in zip(estimates, without_one, strict=True)]


def percentiles(samples: np.ndarray) -> Interval:
    """Return the percentile interval of bootstrap samples."""
    low, high = np.quantile(samples, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def miou_rows(given: argparse.Namespace, classes: int, exponent: float) -> list[dict[str, str]]:
    """Return the rows of mIoU and of the difference of two methods for one kind of population."""
    rng = np.random.default_rng(classes)
    population = draw_population(classes, given.population, rng, exponent)
    whole = mean_iou(population.sum(0, dtype=np.int64))
    rows = []
    for images in IMAGES[: 1 if given.tiny else None]:
        measured, rare = [], []
        for _ in range(given.trials):
            totals = population[rng.integers(0, len(population), images)]
            measured.append(miou_intervals(totals, given.resamples, rng))
            rare.append(count_rare(totals[:, 0]))
        mean = np.mean([estimates for estimates, _, _ in measured], axis=0)
        case = f"{images} images, {classes} classes (exponent {exponent}), {np.mean(rare):.0f} of them rare"
        for index, statistic in enumerate(("mIoU", "difference of two mIoUs")):
            before, now = ([each[kind][index] for each in measured] for kind in (1, 2))
            all_data = whole[0] if index == 0 else whole[1] - whole[0]
            for name, true in ((statistic, mean[index]), (f"{statistic}, all data", all_data)):
                rows.append(row(name, case, "percentile bootstrap", float(true), before, now))
    return rows


# -------------------------------------------------------------------------------------------------------------- scores


def score_populations(scores: Path | None, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return populations of one concept's scores."""
    populations = {
        "normal": rng.normal(size=POOL),
        "gamma, skewness 2": rng.gamma(1, size=POOL),
        "gamma, skewness 3": rng.gamma(4 / 9, size=POOL),
        "lognormal, skewness 6": rng.lognormal(0, 1, POOL),
        "concept in 10% of the images": np.where(
            rng.random(POOL) < 0.1, rng.normal(0.5, 0.1, POOL), rng.normal(0.1, 0.03, POOL)
        ),
    }
    if scores is not None:
        table = pd.read_parquet(scores)
        norms = table[table["score"] == "norm"].groupby("concept", observed=True)["value"]
        populations |= {f"scores of {concept}": values.to_numpy(float) for concept, values in norms}
    return populations


def mean_rows(given: argparse.Namespace, populations: dict[str, np.ndarray], rng: np.random.Generator) -> list[dict[str, str]]:
    """Return the rows of means."""
    rows = []
    for name, population in populations.items():
        for size in SIZES[: 1 if given.tiny else None]:
            before, now = [], []
            for _ in range(given.trials):
                sample = rng.choice(population, size)
                before.append(percentiles(sample[rng.integers(0, size, (given.resamples, size))].mean(1)))
                now.append(mean_interval(sample, CONFIDENCE))
            rows.append(row("mean", f"{size} images, {name}", "percentile bootstrap", population.mean(), before, now))
    return rows


LABELLED_SCORES: dict[str, Draw] = {
    "unrelated, lognormal": lambda rng, label: rng.lognormal(0, 1, label.shape),
    "normal, 1 deviation apart": lambda rng, label: rng.normal(size=label.shape) + label,
    "gamma, twice as large": lambda rng, label: rng.gamma(1, size=label.shape) * (1 + label),
    "gamma, 8 times as large": lambda rng, label: rng.gamma(0.5, size=label.shape) * (1 + 7 * label),
    "like the demo's": lambda rng, label: np.where(
        label == 1, rng.normal(0.5, 0.1, label.shape), 0.1 + 0.03 * rng.gamma(1, size=label.shape)
    ),
    "almost apart": lambda rng, label: np.where(
        label == 1, rng.normal(0.3, 0.1, label.shape), 0.1 + 0.05 * rng.gamma(1, size=label.shape)
    ),
}


def auroc_rows(given: argparse.Namespace, rng: np.random.Generator) -> list[dict[str, str]]:
    """Return the rows of AUROCs."""
    rows = []
    for name, draw in LABELLED_SCORES.items():
        pool = (draw(rng, np.full(POOL, side)) for side in (1, 0))
        true = float(placements(*pool)[0].mean())
        for count, other in SIDES[: 1 if given.tiny else None]:
            before, now = [], []
            for _ in range(given.trials):
                inside, outside = draw(rng, np.ones(count)), draw(rng, np.zeros(other))
                drawn = (side[rng.integers(0, len(side), (given.resamples, len(side)))] for side in (inside, outside))
                ranks = stats.rankdata(np.concatenate([*drawn], axis=1), axis=1)[:, :count].sum(1)
                before.append(percentiles((ranks - count * (count + 1) / 2) / (count * other)))
                now.append(auroc_interval(inside, outside, CONFIDENCE))
            case = f"{count} images with the label, {other} without, AUROC {true:.3f} ({name})"
            rows.append(row("AUROC", case, "percentile bootstrap", true, before, now))
    return rows


def correlation_rows(given: argparse.Namespace, rng: np.random.Generator) -> list[dict[str, str]]:
    """Return the rows of correlations. Samples with fewer than two images of a label have no interval and are drawn again."""
    rows = []
    for name, draw in LABELLED_SCORES.items():
        for images, share in LABELLED[: 1 if given.tiny else None]:
            pool = (rng.random(POOL) < share).astype(float)
            true = float(np.corrcoef(draw(rng, pool), pool)[0, 1])
            before, now = [], []
            while len(now) < given.trials:
                label = (rng.random(images) < share).astype(float)
                if not 2 <= label.sum() <= images - 2:
                    continue
                value = draw(rng, label)
                fisher = stats.pearsonr(value, label).confidence_interval(CONFIDENCE)
                before.append((fisher.low, fisher.high))
                now.append(correlation_interval(value, label == 1, CONFIDENCE))
            case = f"{images} images, {share:.0%} with the label, correlation {true:.2f} ({name})"
            rows.append(row("correlation", case, "Fisher", true, before, now))
    return rows


if __name__ == "__main__":
    main()
