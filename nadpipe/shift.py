"""Scores of concepts per image, and how groups of images differ in them.

Bu & Gandelsman, arXiv 2509.19943: a concept's score is what its pairs, chosen by text, add to the embedding.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from nadpipe.attnpool import AttentionPool, pair_constants, pooled_values
from nadpipe.errors import NadpipeError
from nadpipe.texts import Selection


def concept_scores(
    coefficient: Float[Tensor, "view head neuron"],
    embedding: Float[Tensor, "view embed"],
    selection: Selection,
    text: Float[Tensor, "text embed"],
    pool: AttentionPool,
) -> tuple[Float[Tensor, "view text"], Float[Tensor, "view text"]]:
    """Per view and concept, of the summed contribution R of the concept's pairs: ‖R‖ / ‖y‖ and ⟨R, text⟩ / ‖y‖.

    R = sum over the pairs of s[h, n] w[h, n] + b[h] goes through the heads' value spaces, so that no write vector is built.
    """
    norm, projection = [], []
    whole = embedding.norm(dim=1)
    constant = pair_constants(pool)[selection.head].sum(1)
    for at in range(len(text)):
        selected = torch.zeros_like(coefficient[0])
        selected[selection.head[at], selection.neuron[at]] = 1
        summed = pooled_values(coefficient * selected, pool).flatten(1) @ pool.c_weight.T + constant[at]
        norm.append(summed.norm(dim=1) / whole)
        projection.append(summed @ text[at] / whole)
    return torch.stack(norm, dim=1), torch.stack(projection, dim=1)


Test = Literal["mann_whitney", "welch", "ks"]


def compare_groups(
    scores: pd.DataFrame,
    labels: pd.DataFrame,
    references: Mapping[str, Sequence[str]],
    resamples: int,
    confidence: float,
    seed: int,
    test: Test = "mann_whitney",
    small: int = 20,
) -> pd.DataFrame:
    """One row per concept, score and group.

    scores: columns image_id, group, concept, score, value. labels: indexed by image_id, a 0/1 column for each concept that
    has one. references: of each group in order the groups it is compared with, none for a reference itself. Per group: n (and
    whether that is below `small`), mean with percentile bootstrap interval, Cliff's delta against its reference (from -1 to 1:
    chance that a value of the group is larger minus chance that it is smaller), two-sided p of the test, and
    Benjamini-Hochberg q over all rows with a p; label rate of the group. Over all images: trend (see `trend`), and how far
    the score follows its label (see `trust`). What is undefined (one image, one class of label) is NaN.
    """
    rows = []
    for (concept, score), part in scores.groupby(["concept", "score"], sort=False):
        label = labels.loc[part["image_id"], concept] if concept in labels else None
        values = part["value"].to_numpy(dtype=float)
        overall = trend(values, part["group"].to_numpy(), list(references))
        overall |= trust(values, None if label is None else label.to_numpy(), resamples, confidence, seed)
        for group, compared in references.items():
            members = part[part["group"] == group]
            if members.empty:
                continue
            value = members["value"].to_numpy(dtype=float)
            base = part.loc[part["group"].isin(compared), "value"].to_numpy(dtype=float)
            low, high = bootstrap_interval(value, resamples, confidence, seed)
            effect, p = (cliffs_delta(value, base), p_value(value, base, test)) if len(base) else (np.nan, np.nan)
            rows.append(
                {
                    "concept": concept,
                    "score": score,
                    "group": group,
                    "n": len(value),
                    "small": len(value) < small or 0 < len(base) < small,
                    "mean": value.mean(),
                    "mean_low": low,
                    "mean_high": high,
                    "reference": named(compared),
                    "effect": effect,
                    "test": test,
                    "p": p,
                    "label_rate": np.nan if label is None else labels.loc[members["image_id"], concept].mean(),
                    **overall,
                }
            )
    table = pd.DataFrame(rows)
    table["q"] = benjamini_hochberg(table["p"].to_numpy())
    whole = ~table.duplicated(["concept", "score"])
    table.loc[whole, "trend_q"] = benjamini_hochberg(table.loc[whole, "trend_p"].to_numpy())
    table["trend_q"] = table.groupby(["concept", "score"], sort=False)["trend_q"].transform("first")
    return table


def named(groups: Sequence[str]) -> str | None:
    """What tables call the groups that another is compared with."""
    return None if not groups else groups[0] if len(groups) == 1 else f"{groups[0]} to {groups[-1]}"


def trend(value: Float[np.ndarray, " image"], group: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Kendall's tau-b of score and position of the group over all images, and its p: the Mann-Kendall test with ties.

    NaN for fewer than three groups, and for groups that have no order (names that are neither numbers nor dates).
    """
    if len(names) < 3 or not all(_ORDERED.fullmatch(name) for name in names):
        return {"trend": np.nan, "trend_p": np.nan}
    position = {name: at for at, name in enumerate(names)}
    found = stats.kendalltau([position[name] for name in group], value)
    return {"trend": float(found.statistic), "trend_p": float(found.pvalue)}


_ORDERED = re.compile(r"-?\d+(\.\d+)?|\d{4}-\d{2}(-\d{2})?")  # a number, a month or a day


def p_value(value: Float[np.ndarray, " image"], base: Float[np.ndarray, " other"], test: Test) -> float:
    """Two-sided p of Mann-Whitney's, Welch's or the two-sample Kolmogorov-Smirnov test; NaN where it needs more images."""
    if test == "mann_whitney":
        return float(stats.mannwhitneyu(value, base, alternative="two-sided").pvalue)
    if test == "ks":
        return float(stats.ks_2samp(value, base).pvalue)
    if min(len(value), len(base)) < 2:
        return float("nan")
    return float(stats.ttest_ind(value, base, equal_var=False).pvalue)


def bootstrap_interval(value: Float[np.ndarray, " image"], resamples: int, confidence: float, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; NaN for fewer than two images."""
    if len(value) < 2:
        return np.nan, np.nan
    interval = stats.bootstrap(
        (value,),
        np.mean,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
        batch=max(1, 10**7 // len(value)),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def cliffs_delta(value: Float[np.ndarray, " image"], base: Float[np.ndarray, " other"]) -> float:
    """Cliff's delta of value against base: chance that it is larger minus chance that it is smaller."""
    return float(2 * stats.mannwhitneyu(value, base).statistic / (len(value) * len(base)) - 1)


def benjamini_hochberg(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """q values over the tests that have a p; NaN stays NaN."""
    q = np.full(len(p), np.nan)
    tested = ~np.isnan(p)
    if tested.any():
        q[tested] = stats.false_discovery_control(p[tested], method="bh")
    return q


def trust(
    value: Float[np.ndarray, " image"], label: np.ndarray | None, resamples: int, confidence: float, seed: int
) -> dict[str, float]:
    """How far a score follows its 0/1 label over all images: point-biserial correlation with Fisher's interval, AUROC with a
    percentile bootstrap interval over images, resampled within each label. NaN without a label of two values."""
    names = [f"{name}{end}" for name in ("correlation", "auroc") for end in ("", "_low", "_high")]
    if label is None or len(np.unique(label)) < 2 or np.ptp(value) == 0:
        return dict.fromkeys(names, np.nan)
    correlation = stats.pearsonr(label, value)
    around = correlation.confidence_interval(confidence)
    inside, outside = value[label == 1], value[label == 0]
    found = [correlation.statistic, around.low, around.high, auroc(inside, outside)]
    if min(len(inside), len(outside)) < 2:
        return dict(zip(names, map(float, [*found, np.nan, np.nan]), strict=True))
    interval = stats.bootstrap(
        (inside, outside),
        auroc,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
        batch=max(1, 10**6 // len(value)),
    ).confidence_interval
    return dict(zip(names, map(float, [*found, interval.low, interval.high]), strict=True))


def auroc(
    inside: Float[np.ndarray, "*resample image"], outside: Float[np.ndarray, "*resample other"], axis: int = -1
) -> Float[np.ndarray, "*resample"] | float:
    """Chance that a score of an image with the label is larger than one of an image without (ties count half)."""
    ranks = stats.rankdata(np.concatenate([inside, outside], axis=axis), axis=axis)
    count, other = inside.shape[axis], outside.shape[axis]
    summed = np.take(ranks, np.arange(count), axis=axis).sum(axis)
    return (summed - count * (count + 1) / 2) / (count * other)


class GroupMoments:
    """Count, mean and variance of every pair's coefficient per group, in one pass over blocks (Chan's update)."""

    def __init__(self) -> None:
        self.count: dict[str, int] = {}
        self.mean: dict[str, Float[Tensor, "head neuron"]] = {}
        self.square: dict[str, Float[Tensor, "head neuron"]] = {}  # summed squares of deviations from the mean

    def add(self, group: str, block: Float[Tensor, "view head neuron"]) -> None:
        """Count another block of views of one group in."""
        block = block.double()
        mean = block.mean(0)
        self._merge(group, len(block), mean, (block - mean).square().sum(0))

    def pooled(self, groups: Sequence[str]) -> "GroupMoments":
        """Several groups as one, called by their `named`."""
        whole, name = GroupMoments(), named(groups)
        for group in groups:
            whole._merge(name, self.count[group], self.mean[group], self.square[group])
        return whole

    def _merge(self, group: str, new: int, mean: Tensor, square: Tensor) -> None:
        before = self.count.get(group, 0)
        if before:
            gap = mean - self.mean[group]
            square = self.square[group] + square + gap.square() * before * new / (before + new)
            mean = self.mean[group] + gap * new / (before + new)
        self.count[group], self.mean[group], self.square[group] = before + new, mean, square

    def against(
        self, group: str, references: Sequence[str]
    ) -> tuple[Float[np.ndarray, "head neuron"], Float[np.ndarray, "head neuron"], Float[np.ndarray, "head neuron"]]:
        """Difference of means, Cohen's d (pooled standard deviation) and Welch p per pair; NaN where nothing varies."""
        base, reference = self.pooled(references), named(references)
        n, m = self.count[group], base.count[reference]
        difference = (self.mean[group] - base.mean[reference]).numpy()
        square, base_square = self.square[group].numpy(), base.square[reference].numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            deviation = ((square + base_square) / max(n + m - 2, 1)) ** 0.5
            effect = np.where(deviation > 0, difference / np.where(deviation > 0, deviation, 1), np.nan)
            p = stats.ttest_ind_from_stats(
                self.mean[group].numpy(),
                np.sqrt(square / max(n - 1, 1)),
                n,
                base.mean[reference].numpy(),
                np.sqrt(base_square / max(m - 1, 1)),
                m,
                equal_var=False,
            ).pvalue
        small = min(n, m) < 2
        return difference, np.where(small, np.nan, effect), np.where(small, np.nan, p)


class Examples:
    """Of every pair, the images of a group where it goes farthest in a given direction, in one pass over blocks."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.value: Float[Tensor, "kept head neuron"] | None = None
        self.image: Int[Tensor, "kept head neuron"] | None = None

    def add(self, signed: Float[Tensor, "view head neuron"], image_id: Int[Tensor, " view"]) -> None:
        """Another block of coefficients, times the sign of the direction that is looked for."""
        image = image_id[:, None, None].expand_as(signed)
        if self.value is not None:
            signed, image = torch.cat([self.value, signed]), torch.cat([self.image, image])
        self.value, at = signed.topk(min(self.keep, len(signed)), dim=0)
        self.image = image.gather(0, at)


def groups_of(group: pd.Series, reference: str | None, source: str) -> dict[str, list[str]]:
    """The images' groups in order, each with the groups that it is compared with.

    reference: one group, the first unless given, or rolling:<n> for the n groups before each. Raises NadpipeError when images
    have no group, there is only one, or the reference is none of them.
    """
    if group.isna().any():
        raise NadpipeError(f"{source}: image {group.isna().idxmax()} has no group; name a column that every row fills")
    names = in_order(group.unique())
    if len(names) < 2:
        raise NadpipeError(f"{source}: all images are in group {names[0]}; a shift needs two groups")
    rolling = ROLLING.fullmatch(reference or "")
    if rolling:
        return {name: names[max(0, at - int(rolling[1])) : at] for at, name in enumerate(names)}
    if reference is not None and reference not in names:
        raise NadpipeError(f"shift.reference: no group {reference} in {source}; there are {', '.join(names[:10])}")
    base = reference or names[0]
    return {name: [] if name == base else [base] for name in names}


ROLLING = re.compile(r"rolling:([1-9]\d*)")


def in_order(groups: Iterable[str]) -> list[str]:
    """Groups sorted as numbers when all of them are (9 before 10), else as texts."""
    names = sorted(groups)
    return sorted(names, key=float) if all(re.fullmatch(r"-?\d+(\.\d+)?", name) for name in names) else names
