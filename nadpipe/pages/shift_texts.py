"""Sentences and rows of the report about shifts between groups, made from tables of tests."""

from collections.abc import Sequence

import pandas as pd

from nadpipe.circuit.shift import group_order

LEVEL = 0.05  # q below which a difference counts as significant


_ORDERS = {
    "numbers": "sorted as numbers",
    "dates": "sorted by date",
    "appearance": "in the order of the images, because their names are not all numbers or dates",
    "names": "sorted by name, because their names are not all numbers or dates",
}


def describe_order(groups: Sequence[str], order: Sequence[str]) -> str:
    """Return a sentence on the order of the groups. groups: in the order of the images. order: sorted."""
    return f"The {len(order)} groups are {_ORDERS[group_order(groups)]}: the first is {order[0]}, the last is {order[-1]}."


def group_by_text(discovered: pd.DataFrame, sign: pd.Series, order: Sequence[str]) -> pd.DataFrame:
    """Return one row per text (by correlation) of the pairs with a significant shift; the texts of most pairs come first.

    discovered: one row per pair and group (`DISCOVERED`). sign: sign of each pair's direction, indexed by head and neuron.
    order: the groups, sorted.

    Columns: text, direction (more or less of the text, or both with their numbers of pairs), pairs, low and high (range of the
    significant effects along the pairs' directions), first (first significant group), groups (number of significant groups),
    and those of the row with the largest effect: head, neuron, group, reference, reference_images, images.
    """
    rows = discovered[discovered["q"] < LEVEL]
    places = {group: place for place, group in enumerate(order)}
    along = sign.loc[pd.MultiIndex.from_frame(rows[["head", "neuron"]])].to_numpy() * rows["effect"]
    rows = rows.assign(along=along, place=rows["group"].map(places).astype(int))
    texts = []
    for text, members in rows.groupby(rows["active_text"].astype(str), sort=False):
        strongest = members.loc[members["along"].abs().idxmax()]
        first = members.loc[members["place"].idxmin()]
        texts.append(
            {
                "text": text,
                "direction": _direction(members),
                "pairs": len(members[["head", "neuron"]].drop_duplicates()),
                "low": members["along"].min(),
                "high": members["along"].max(),
                "first": first["group"],
                "groups": members["group"].nunique(),
                **strongest[["head", "neuron", "group", "reference", "reference_images", "images"]],
            }
        )
    table = pd.DataFrame(texts)
    return table if table.empty else table.sort_values("pairs", ascending=False, kind="stable", ignore_index=True)


def _direction(members: pd.DataFrame) -> str:
    """Return "more" or "less" if the pairs of a text agree, otherwise the number of pairs for each."""
    by_pair = members.groupby(["head", "neuron"])["along"].sum()
    grown, fallen = int((by_pair > 0).sum()), int((by_pair < 0).sum())
    return "more" if not fallen else "less" if not grown else f"more ({grown}), less ({fallen})"


def describe_pairs(discovered: pd.DataFrame, order: Sequence[str]) -> str:
    """Return a sentence on the groups in which pairs differ from the reference. order: the groups, sorted."""
    tested = [group for group in order if discovered.loc[discovered["group"] == group, "p"].notna().any()]
    counts = discovered.loc[discovered["q"] < LEVEL, "group"].value_counts()
    if not tested:
        return "No group was tested."
    if counts.sum() == 0:
        return f"No pair differs from the reference: q is at least {LEVEL} for all pairs {_in_groups(tested)}."
    differing = ", ".join(f"{group} ({counts[group]:,})" for group in tested if counts.get(group, 0))
    none = [group for group in tested if not counts.get(group, 0)]
    rest = f" No pair differs in {_listed(none)}." if none else ""
    return f"Pairs that differ from the reference (q < {LEVEL}) by group: {differing}.{rest}"


def describe_concepts(table: pd.DataFrame) -> str:
    """Return a sentence on the concepts that differ from the reference. table: rows of `SHIFT` of one score, in group order."""
    compared = table[table["reference"].notna()]
    significant = compared[compared["q"] < LEVEL]
    if compared["p"].isna().all():
        return "No group was tested."
    if significant.empty:
        tested = compared.loc[compared["p"].notna(), "group"].unique().tolist()
        return f"No concept differs from the reference: q is at least {LEVEL} for all concepts {_in_groups(tested)}."
    parts = []
    for concept, rows in significant.groupby("concept", sort=False, observed=True):
        by_direction = {"more": rows.loc[rows["effect"] > 0, "group"], "less": rows.loc[rows["effect"] < 0, "group"]}
        changes = [f"{word} in {_listed(groups.tolist())}" for word, groups in by_direction.items() if len(groups)]
        parts.append(f"{concept} ({', '.join(changes)})")
    others = [str(concept) for concept in compared["concept"].unique() if concept not in set(significant["concept"])]
    rest = f" No difference: {_listed(others)}." if others else ""
    return f"Concepts that differ from the reference (q < {LEVEL}): {'; '.join(parts)}.{rest}"


def describe_trends(table: pd.DataFrame) -> str:
    """Return a sentence on the concepts with a trend over the groups, or nothing for groups without an order."""
    concepts = table.drop_duplicates("concept")
    if concepts["trend"].isna().all():
        return ""
    trends = concepts[concepts["trend_q"] < LEVEL]
    if trends.empty:
        return f"No concept has a trend over the groups: q of the trend is at least {LEVEL} for all concepts."
    parts = [f"{row.concept} ({'more' if row.trend > 0 else 'less'})" for row in trends.itertuples()]
    return f"Concepts with a trend over the groups (q < {LEVEL}): {', '.join(parts)}."


def describe_untested(table: pd.DataFrame, small_group: int, order: Sequence[str]) -> str:
    """Return a sentence on the groups without a test and the reason, or nothing if all groups were tested.

    table: one row per test with group, reference, n, small and p. order: the groups, sorted.
    """
    compared = table[table["reference"].notna()]
    untested = compared[compared["p"].isna().groupby(compared["group"], observed=True).transform("all")]
    by_group = untested.drop_duplicates("group").set_index("group")
    small, alike = [], []
    for group in [group for group in order if group in by_group.index]:
        row = by_group.loc[group]
        if not row["small"]:
            alike.append(group)
        elif row["n"] < small_group:
            small.append(f"{group} ({row['n']} {'image' if row['n'] == 1 else 'images'})")
        else:
            small.append(f"{group} (few images in its reference, {row['reference']})")
    sentences = []
    if small:
        sentences.append(
            f"Not tested, because the group or its reference has fewer than {small_group} images: {', '.join(small)}."
        )
    if alike:
        sentences.append(f"Not tested, because all values are equal: {', '.join(alike)}.")
    return " ".join(sentences)


def _in_groups(groups: Sequence[str]) -> str:
    return f"in group {groups[0]}" if len(groups) == 1 else f"in the {len(groups)} groups that were tested"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
