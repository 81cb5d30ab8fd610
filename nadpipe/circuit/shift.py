"""Scores of concepts per image, and comparisons of groups of images.

A concept's score is the contribution of its pairs, selected by text, to the embedding (Bu & Gandelsman, arXiv 2509.19943).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from nadpipe.circuit.accumulators import Selection
from nadpipe.circuit.intervals import auroc_interval, correlation_interval, mean_interval, placements
from nadpipe.circuit.readout import Readout, pair_constants, pooled_values
from nadpipe.errors import NadpipeError


def concept_scores(
    coefficient: Float[Tensor, "view head neuron"],
    embedding: Float[Tensor, "view embed"],
    selection: Selection,
    text: Float[Tensor, "text embed"],
    readout: Readout,
) -> tuple[Float[Tensor, "view text"], Float[Tensor, "view text"]]:
    """Compute ‖R‖ / ‖y‖ and ⟨R, text⟩ / ‖y‖ per view and concept, where R is the summed contribution of the concept's pairs.

    R = sum over the pairs of s[h, n] w[h, n] + b[h] is computed in the heads' value spaces, without any write vector.
    """
    norm, projection = [], []
    length = embedding.norm(dim=1)
    constant = pair_constants(readout)[selection.head].sum(1)
    for concept in range(len(text)):
        selected = torch.zeros_like(coefficient[0])
        selected[selection.head[concept], selection.neuron[concept]] = 1
        value = pooled_values(coefficient * selected, readout).flatten(1)
        summed = value @ readout.joint_output.T + constant[concept]
        norm.append(summed.norm(dim=1) / length)
        projection.append(summed @ text[concept] / length)
    return torch.stack(norm, dim=1), torch.stack(projection, dim=1)


Test = Literal["mann_whitney", "welch", "ks"]


def compare_groups(
    scores: pd.DataFrame,
    labels: pd.DataFrame,
    references: Mapping[str, Sequence[str]],
    confidence: float,
    test: Test = "mann_whitney",
    small: int = 20,
) -> pd.DataFrame:
    """Return a table with one row per concept, score and group.

    scores: columns image_id, group, concept, score, value. labels: indexed by image_id, a 0/1 column per labelled concept.
    references: groups that each group is compared with, in order; empty for a reference itself.

    Columns per group: n, mean with interval (`mean_interval`), Cliff's delta against the reference (-1 to 1: the probability
    that a value of the group is larger minus the probability that it is smaller), two-sided p of the test, Benjamini-Hochberg q
    over the group's concepts and scores, and label rate. If the group or its reference has fewer than `small` images, it is
    marked as small and not tested. Columns over all images: trend (see `trend`) and agreement with the label (see
    `label_agreement`). Undefined values (one image, one class of label) are NaN.
    """
    rows = []
    for (concept, score), images in scores.groupby(["concept", "score"], sort=False):
        label = labels.loc[images["image_id"], concept] if concept in labels else None
        values = images["value"].to_numpy(dtype=float)
        overall = trend(values, images["group"].to_numpy(), list(references))
        overall |= label_agreement(values, None if label is None else label.to_numpy(), confidence)
        for group, compared in references.items():
            members = images[images["group"] == group]
            if members.empty:
                continue
            value = members["value"].to_numpy(dtype=float)
            base = images.loc[images["group"].isin(compared), "value"].to_numpy(dtype=float)
            low, high = mean_interval(value, confidence)
            is_small = len(value) < small or 0 < len(base) < small
            tested = len(base) > 0 and not is_small
            rows.append(
                {
                    "concept": concept,
                    "score": score,
                    "group": group,
                    "n": len(value),
                    "small": is_small,
                    "mean": value.mean(),
                    "mean_low": low,
                    "mean_high": high,
                    "reference": group_range(compared),
                    "effect": cliffs_delta(value, base) if len(base) else np.nan,
                    "test": test,
                    "p": p_value(value, base, test) if tested else np.nan,
                    "label_rate": np.nan if label is None else labels.loc[members["image_id"], concept].mean(),
                    **overall,
                }
            )
    table = pd.DataFrame(rows)
    table["q"] = adjust_by_group(table)
    first = ~table.duplicated(["concept", "score"])
    table.loc[first, "trend_q"] = benjamini_hochberg(table.loc[first, "trend_p"].to_numpy())
    table["trend_q"] = table.groupby(["concept", "score"], sort=False)["trend_q"].transform("first")
    return table


def group_range(groups: Sequence[str]) -> str | None:
    """Return the text for reference groups in tables, such as `2018 to 2020`; None for no group."""
    return None if not groups else groups[0] if len(groups) == 1 else f"{groups[0]} to {groups[-1]}"


def trend(value: Float[np.ndarray, " image"], group: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Compute Kendall's tau-b of the score and the group's position over all images, and its p (Mann-Kendall test with ties).

    NaN for fewer than three groups, and for groups that are neither numbers nor dates.
    """
    if len(names) < 3 or group_order(names) not in ("numbers", "dates"):
        return {"trend": np.nan, "trend_p": np.nan}
    position = {name: index for index, name in enumerate(names)}
    test = stats.kendalltau([position[name] for name in group], value)
    return {"trend": float(test.statistic), "trend_p": float(test.pvalue)}


def p_value(value: Float[np.ndarray, " image"], base: Float[np.ndarray, " other"], test: Test) -> float:
    """Compute the two-sided p of the Mann-Whitney, Welch or two-sample Kolmogorov-Smirnov test; NaN for too few images."""
    if test == "mann_whitney":
        return float(stats.mannwhitneyu(value, base, alternative="two-sided").pvalue)
    if test == "ks":
        return float(stats.ks_2samp(value, base).pvalue)
    if min(len(value), len(base)) < 2:
        return float("nan")
    return float(stats.ttest_ind(value, base, equal_var=False).pvalue)


def cliffs_delta(value: Float[np.ndarray, " image"], base: Float[np.ndarray, " other"]) -> float:
    """Compute Cliff's delta: the probability that a value is larger than the base minus the probability that it is smaller."""
    return float(2 * stats.mannwhitneyu(value, base).statistic / (len(value) * len(base)) - 1)


def benjamini_hochberg(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Compute Benjamini-Hochberg q values over the tests with a p. NaN stays NaN."""
    q = np.full(len(p), np.nan)
    tested = ~np.isnan(p)
    if tested.any():
        q[tested] = stats.false_discovery_control(p[tested], method="bh")
    return q


def adjust_by_group(table: pd.DataFrame) -> pd.Series:
    """Return the Benjamini-Hochberg q of column p within each group. A shift of one group changes no other group's q."""
    return table.groupby("group", sort=False)["p"].transform(lambda p: benjamini_hochberg(p.to_numpy()))


def label_agreement(value: Float[np.ndarray, " image"], label: np.ndarray | None, confidence: float) -> dict[str, float]:
    """Measure how well a score follows its 0/1 label over all images.

    Returns the point-biserial correlation and the AUROC with their intervals (`correlation_interval`, `auroc_interval`). NaN
    without a label of two values.
    """
    names = [f"{name}{end}" for name in ("correlation", "auroc") for end in ("", "_low", "_high")]
    if label is None or len(np.unique(label)) < 2 or np.ptp(value) == 0:
        return dict.fromkeys(names, np.nan)
    labelled = label == 1
    inside, outside = value[labelled], value[~labelled]
    correlation = float(np.corrcoef(value, label)[0, 1])
    area = float(placements(inside, outside)[0].mean())
    numbers = (
        correlation,
        *correlation_interval(value, labelled, confidence),
        area,
        *auroc_interval(inside, outside, confidence),
    )
    return dict(zip(names, numbers, strict=True))


def compare_pairs(
    group: Float[Tensor, "image pair"], reference: Float[Tensor, "other pair"]
) -> tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]:
    """Compute Cliff's delta and the two-sided p of the Mann-Whitney test of every pair's coefficient.

    p is the normal approximation with corrections for ties and for continuity, as in `scipy.stats.mannwhitneyu`. It depends on
    ranks alone, so it keeps its level for skewed coefficients and unequal groups, where Welch's test does not. A pair that is
    constant in both samples but differs between them has effect 1 or -1 and a p like any other pair. A pair that is the same in
    all images, within rounding, has effect 0 and no p (NaN).
    """
    step = max(1, _BLOCK // (len(group) + len(reference)))
    blocks = zip(group.split(step, dim=1), reference.split(step, dim=1), strict=True)
    effect, p = zip(*(_rank_test(*block) for block in blocks), strict=True)
    return np.concatenate(effect), np.concatenate(p)


_BLOCK = 2**18  # coefficients that are ranked together; larger blocks are slower and take more memory


def _rank_test(
    group: Float[Tensor, "image pair"], reference: Float[Tensor, "other pair"]
) -> tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]:
    both = torch.cat([group, reference])
    varies = ((both.amax(0) - both.amin(0)) > 4 * torch.finfo(both.dtype).eps * both.abs().amax(0)).numpy()
    value, base = group.double().numpy(), reference.double().numpy()  # scipy would sum ranks in float32
    with np.errstate(divide="ignore"):  # pairs that never vary
        test = stats.mannwhitneyu(value, base, axis=0, method="asymptotic")
    effect = 2 * test.statistic / (len(value) * len(base)) - 1
    return np.where(varies, effect, 0), np.where(varies, test.pvalue, np.nan)


def groups_of(group: pd.Series, reference: str | None, source: str) -> dict[str, list[str]]:
    """Return the groups in order (see `sort_groups`), each with the groups it is compared with.

    group: group of each image, in the order of the images. reference: one group (default: the first), or rolling:<n> for the n
    groups before each. Raises NadpipeError if an image has no group, for a single group, and for an unknown reference.
    """
    if group.isna().any():
        raise NadpipeError(
            f"{source}: image {group.isna().idxmax()} has no group; set group_column to a column without empty cells"
        )
    names = sort_groups(group.unique())
    if len(names) < 2:
        raise NadpipeError(f"{source}: all images are in group {names[0]}; a shift needs at least two groups")
    rolling = ROLLING.fullmatch(reference or "")
    if rolling:
        return {name: names[max(0, index - int(rolling[1])) : index] for index, name in enumerate(names)}
    if reference is not None and reference not in names:
        raise NadpipeError(f"shift.reference: unknown group {reference}; {source} has {', '.join(names[:10])}")
    base = reference or names[0]
    return {name: [] if name == base else [base] for name in names}


ROLLING = re.compile(r"rolling:([1-9]\d*)")


Order = Literal["numbers", "dates", "appearance", "names"]  # how groups are sorted


def sort_groups(groups: Iterable[str]) -> list[str]:
    """Sort different groups, given in the order of the images (see `group_order`).

    numbers, dates: by value. appearance: as given. names: as text, with numbers in them by value (batch 9 before batch 10).
    """
    names = list(groups)
    match group_order(names):
        case "numbers":
            return sorted(names, key=lambda name: (float(name), name))
        case "dates":
            return sorted(names, key=lambda name: (_date(name), name))
        case "names":
            return sorted(names, key=_natural)
    return names


def group_order(groups: Sequence[str]) -> Order:
    """Return how groups are sorted: as numbers or as dates if all are, otherwise as given.

    groups: different groups in the order of the images. Those of a folder are in the order of text, which says nothing about
    them, so groups in this order are sorted by name.

    A date is a year, quarter, month, week or day, such as 2018, 2018-Q3, Q3 2018, 2018-9, Sep 2018, September, 2018-W39,
    2018-9-30, 30 Sep 2018. Months and days need no padding. Either all dates have a year or none has, and either all are weeks
    or none is.
    """
    if all(_NUMBER.fullmatch(name) for name in groups):
        return "numbers"
    dates = [_date(name) for name in groups]
    if None not in dates and len({(year > 0, kind) for year, kind, *_ in filter(None, dates)}) == 1:
        return "dates"
    return "names" if sorted(groups) == list(groups) else "appearance"


def _date(name: str) -> tuple[int, str, int, int, str] | None:
    """Return year, "week" or "month", its number, day and time of a date, with 0 for what is missing. None for other names."""
    match = next(filter(None, (pattern.fullmatch(name.strip()) for pattern in _DATES)), None)
    if match is None:
        return None
    parts = {key: value for key, value in match.groupdict().items() if value is not None}
    number = int(parts.get("week") or parts.get("month") or 0)
    if "quarter" in parts:
        number = 3 * int(parts["quarter"]) - 2
    if "name" in parts:
        number = next(index for index, names in enumerate(_MONTHS, start=1) if parts["name"].lower() in names)
    kind = "week" if "week" in parts else "month"
    return int(parts.get("year", 0)), kind, number, int(parts.get("day", 0)), parts.get("time", "")


def _natural(name: str) -> tuple[list[str | int], str]:
    """Return a key that sorts numbers in a name by value."""
    return [int(part) if part.isdecimal() else part.casefold() for part in re.split(r"(\d+)", name)], name


_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_MONTHS = [
    ("january", "jan"),
    ("february", "feb"),
    ("march", "mar"),
    ("april", "apr"),
    ("may",),
    ("june", "jun"),
    ("july", "jul"),
    ("august", "aug"),
    ("september", "sept", "sep"),
    ("october", "oct"),
    ("november", "nov"),
    ("december", "dec"),
]


def _date_patterns() -> list[re.Pattern[str]]:
    """Return the forms of a date. Their groups are year, month, name (of a month), quarter, week, day and time."""
    year, gap = r"(?P<year>\d{4})", "[-_/ ]"
    month, day = "(?P<month>0?[1-9]|1[0-2])", r"(?P<day>0?[1-9]|[12]\d|3[01])"
    name = rf"(?P<name>{'|'.join(name for names in _MONTHS for name in names)})\.?"
    quarter, week = "q(?P<quarter>[1-4])", r"w(?P<week>0?[1-9]|[1-4]\d|5[0-3])"
    time = r"[T ](?P<time>\d{2}:\d{2}(:\d{2}(\.\d+)?)?)"
    forms = [
        rf"{year}(-{month}(-{day}({time})?)?)?",
        rf"{year}/{month}(/{day})?",
        rf"{day}\.{month}\.{year}",
        rf"({day}\.?{gap})?{name}({gap}{year})?",
        rf"{year}{gap}{name}({gap}{day})?",
        rf"{name} {day}, ?{year}",
        *(form for part in (quarter, week) for form in (rf"{year}{gap}?{part}", rf"{part}({gap}?{year})?")),
    ]
    return [re.compile(form, re.IGNORECASE) for form in forms]


_DATES = _date_patterns()
