"""Scores of concepts per image, and how groups of images differ in them.

Bu & Gandelsman, arXiv 2509.19943: a concept's score is what its pairs, chosen by text, add to the embedding.
"""

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats
from sklearn.metrics import roc_auc_score
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


def compare_groups(
    scores: pd.DataFrame, labels: pd.DataFrame, reference: str, resamples: int, confidence: float, seed: int
) -> pd.DataFrame:
    """One row per concept, score and group.

    scores: columns image_id, group, concept, score, value. labels: indexed by image_id, a 0/1 column for each concept that
    has one. Per group: n, mean with percentile bootstrap interval, Cliff's delta against the reference group (from -1 to 1:
    chance that a value of the group is larger minus chance that it is smaller), two-sided Mann-Whitney p, and
    Benjamini-Hochberg q over all rows with a p; label rate of the group; point-biserial correlation and AUROC of score
    against label over all images. What is undefined (one image, one class of label) is NaN.
    """
    rows = []
    for (concept, score), part in scores.groupby(["concept", "score"], sort=False):
        label = labels.loc[part["image_id"], concept] if concept in labels else None
        trust = _trust(part["value"].to_numpy(), None if label is None else label.to_numpy())
        base = part.loc[part["group"] == reference, "value"].to_numpy()
        for group in in_order(part["group"].unique()):
            members = part[part["group"] == group]
            value = members["value"].to_numpy()
            low, high = bootstrap_interval(value, resamples, confidence, seed)
            effect, p = (np.nan, np.nan) if group == reference else cliffs_delta(value, base)
            rate = np.nan if label is None else labels.loc[members["image_id"], concept].mean()
            rows.append(
                {
                    "concept": concept,
                    "score": score,
                    "group": group,
                    "n": len(value),
                    "mean": value.mean(),
                    "mean_low": low,
                    "mean_high": high,
                    "reference": reference,
                    "effect": effect,
                    "p": p,
                    "label_rate": rate,
                    **trust,
                }
            )
    table = pd.DataFrame(rows)
    table.insert(table.columns.get_loc("p") + 1, "q", benjamini_hochberg(table["p"].to_numpy()))
    return table


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


def cliffs_delta(value: Float[np.ndarray, " image"], base: Float[np.ndarray, " other"]) -> tuple[float, float]:
    """Cliff's delta of value against base, and the two-sided Mann-Whitney p."""
    test = stats.mannwhitneyu(value, base, alternative="two-sided")
    return float(2 * test.statistic / (len(value) * len(base)) - 1), float(test.pvalue)


def benjamini_hochberg(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """q values over the tests that have a p; NaN stays NaN."""
    q = np.full(len(p), np.nan)
    tested = ~np.isnan(p)
    if tested.any():
        q[tested] = stats.false_discovery_control(p[tested], method="bh")
    return q


def _trust(value: np.ndarray, label: np.ndarray | None) -> dict[str, float]:
    """How far a score follows its label, over all groups."""
    if label is None or len(np.unique(label)) < 2 or np.ptp(value) == 0:
        return {"correlation": np.nan, "auroc": np.nan}
    return {
        "correlation": float(stats.pointbiserialr(label, value).statistic),
        "auroc": float(roc_auc_score(label, value)),
    }


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
        square = (block - mean).square().sum(0)
        before, new = self.count.get(group, 0), len(block)
        if before:
            gap = mean - self.mean[group]
            square = self.square[group] + square + gap.square() * before * new / (before + new)
            mean = self.mean[group] + gap * new / (before + new)
        self.count[group], self.mean[group], self.square[group] = before + new, mean, square

    def against(
        self, group: str, reference: str
    ) -> tuple[Float[np.ndarray, "head neuron"], Float[np.ndarray, "head neuron"], Float[np.ndarray, "head neuron"]]:
        """Difference of means, Cohen's d (pooled standard deviation) and Welch p per pair; NaN where nothing varies."""
        n, m = self.count[group], self.count[reference]
        difference = (self.mean[group] - self.mean[reference]).numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            pooled = ((self.square[group] + self.square[reference]).numpy() / max(n + m - 2, 1)) ** 0.5
            effect = np.where(pooled > 0, difference / np.where(pooled > 0, pooled, 1), np.nan)
            deviation = [np.sqrt(self.square[g].numpy() / max(self.count[g] - 1, 1)) for g in (group, reference)]
            p = stats.ttest_ind_from_stats(
                self.mean[group].numpy(),
                deviation[0],
                n,
                self.mean[reference].numpy(),
                deviation[1],
                m,
                equal_var=False,
            ).pvalue
        small = min(n, m) < 2
        return difference, np.where(small, np.nan, effect), np.where(small, np.nan, p)


def groups_of(group: pd.Series, reference: str | None, source: str) -> tuple[pd.Series, str]:
    """The images' groups and the reference group: the one asked for, or the first in order.

    Raises NadpipeError when images have no group, there is only one, or the reference is none of them.
    """
    if group.isna().any():
        raise NadpipeError(f"{source}: image {group.isna().idxmax()} has no group; name a column that every row fills")
    names = in_order(group.unique())
    if len(names) < 2:
        raise NadpipeError(f"{source}: all images are in group {names[0]}; a shift needs two groups")
    if reference is not None and reference not in names:
        raise NadpipeError(f"shift.reference: no group {reference} in {source}; there are {', '.join(names[:10])}")
    return group, reference or names[0]


def in_order(groups: Iterable[str]) -> list[str]:
    """Groups sorted as numbers when all of them are (9 before 10), else as texts."""
    names = sorted(groups)
    return sorted(names, key=float) if all(re.fullmatch(r"-?\d+(\.\d+)?", name) for name in names) else names
