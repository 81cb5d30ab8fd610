"""Sentences and rows of the report about shifts."""

import pandas as pd
import pytest

from nadpipe.circuit.shift import sort_groups
from nadpipe.pages.shift_texts import (
    describe_concepts,
    describe_order,
    describe_pairs,
    describe_trends,
    describe_untested,
    group_by_text,
)

NAN = float("nan")
ORDER = ["8", "9", "10", "a", "b", "c"]
COLUMNS = ["head", "neuron", "group", "reference", "n", "small", "effect", "p", "q", "active_text"]


def discovered(*rows):
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["images"] = [[100 + row, 200 + row] for row in range(len(table))]
    table["reference_images"] = [[300 + row] for row in range(len(table))]
    return table


SIGNS = pd.Series({(0, 1): 1, (0, 2): -1, (1, 1): 1, (1, 2): 1}).rename_axis(["head", "neuron"])


def test_pairs_are_grouped_by_text_along_their_directions():
    table = discovered(
        (0, 1, "10", "8", 40, False, -0.5, 1e-6, 1e-3, "sky"),
        (0, 2, "9", "8", 40, False, 0.7, 1e-5, 1e-2, "sky"),  # against its write vector: less sky
        (1, 1, "10", "8", 40, False, 0.4, 1e-4, 2e-2, "fish"),
        (1, 1, "9", "8", 40, False, 0.9, 1e-2, 6e-2, "fish"),  # not significant
        (1, 2, "10", "8", 40, False, 0.6, 1e-3, 4e-2, "leaf"),
        (0, 1, "9", "8", 40, False, -0.2, 0.5, 0.9, "sky"),
    )
    rows = group_by_text(table, SIGNS, ORDER)
    assert rows["text"].tolist() == ["sky", "fish", "leaf"]  # most pairs first
    sky = rows.iloc[0]
    assert sky[["direction", "pairs", "low", "high", "first", "groups"]].tolist() == ["less", 2, -0.7, -0.5, "9", 2]
    assert sky[["head", "neuron", "group", "images", "reference_images"]].tolist() == [0, 2, "9", [101, 201], [301]]
    assert rows.iloc[1][["direction", "pairs", "low", "high", "first"]].tolist() == ["more", 1, 0.4, 0.4, "10"]


def test_a_text_whose_pairs_disagree_is_said_to_go_both_ways():
    table = discovered(
        (0, 1, "b", "a", 40, False, 0.5, 1e-6, 1e-3, "sky"),
        (1, 1, "b", "a", 40, False, -0.5, 1e-6, 1e-3, "sky"),
        (1, 2, "b", "a", 40, False, -0.4, 1e-6, 1e-3, "sky"),
    )
    [row] = group_by_text(table, SIGNS, ORDER).to_dict("records")
    assert (row["direction"], row["low"], row["high"]) == ("more (1), less (2)", -0.5, 0.5)


def test_sentences_about_pairs_follow_the_data():
    none = discovered((0, 1, "b", "a", 40, False, 0.1, 0.5, 0.9, "sky"), (0, 1, "c", "a", 40, False, 0.1, 0.5, 0.9, "sky"))
    assert (
        describe_pairs(none, ORDER)
        == "No pair differs from the reference: q is at least 0.05 for all pairs in the 2 groups that were tested."
    )
    assert group_by_text(none, SIGNS, ORDER).empty
    some = pd.concat([none, discovered((1, 1, "c", "a", 40, False, 0.8, 1e-9, 1e-6, "sky"))])
    assert (
        describe_pairs(some, ORDER) == "Pairs that differ from the reference (q < 0.05) by group: c (1). No pair differs in b."
    )
    assert describe_untested(some, 20, ORDER) == ""
    small = discovered((0, 1, "b", "a", 3, True, 0.9, NAN, NAN, "sky"), (0, 1, "c", "a", 1, True, 0.9, NAN, NAN, "sky"))
    assert describe_pairs(small, ORDER) == "No group was tested."
    assert describe_untested(small, 20, ORDER) == (
        "Not tested, because the group or its reference has fewer than 20 images: b (3 images), c (1 image)."
    )


@pytest.mark.parametrize(
    ("n", "small", "sentence"),
    [
        (50, True, "fewer than 20 images: c (few images in its reference, a)."),
        (50, False, "Not tested, because all values are equal: c."),
    ],
)
def test_the_reason_of_a_missing_test_is_given(n, small, sentence):
    tested = (0, 1, "b", "a", 40, False, 0.1, 0.5, 0.9, "sky")
    assert describe_untested(discovered(tested, (0, 1, "c", "a", n, small, 0.9, NAN, NAN, "sky")), 20, ORDER).endswith(sentence)


def concepts(**values):
    """Return a table of two concepts in a reference and two groups; values: q and effect of each, and q of the trend."""
    rows = []
    for concept, (q, effects, trend, trend_q) in values.items():
        for group, q_of_group, effect in zip("abc", [NAN, *q], [NAN, *effects], strict=True):
            row = {"concept": concept, "group": group, "reference": None if group == "a" else "a", "n": 40, "small": False}
            rows.append(row | {"effect": effect, "p": q_of_group, "q": q_of_group, "trend": trend, "trend_q": trend_q})
    return pd.DataFrame(rows)


def test_sentences_about_concepts_follow_the_data():
    none = concepts(fish=([0.3, 0.4], [0.1, 0.1], 0.1, 0.6), sky=([0.9, 0.5], [0.1, -0.1], 0.1, 0.6))
    assert describe_concepts(none) == (
        "No concept differs from the reference: q is at least 0.05 for all concepts in the 2 groups that were tested."
    )
    assert describe_trends(none).startswith("No concept has a trend")
    some = concepts(fish=([0.01, 0.01], [0.5, -0.5], 0.2, 0.01), sky=([0.9, 0.5], [0.1, -0.1], -0.2, 0.04))
    assert describe_concepts(some) == (
        "Concepts that differ from the reference (q < 0.05): fish (more in b, less in c). No difference: sky."
    )
    assert describe_trends(some) == "Concepts with a trend over the groups (q < 0.05): fish (more), sky (less)."
    untested = concepts(fish=([NAN, NAN], [0.5, 0.5], NAN, NAN))
    assert describe_concepts(untested) == "No group was tested."
    assert describe_trends(untested) == ""
    one = concepts(fish=([NAN, 0.5], [0.5, 0.1], 0.1, 0.5))
    assert describe_concepts(one).endswith("for all concepts in group c.")


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (["april", "march"], ["sorted by date", "first is march", "last is april"]),
        (["10", "9"], ["sorted as numbers", "first is 9", "last is 10"]),
        (["low", "high"], ["in the order of the images, because", "first is low", "last is high"]),
        (["b10", "b9"], ["sorted by name, because", "first is b9", "last is b10"]),
    ],
)
def test_the_order_of_the_groups_is_said(groups, words):
    sentence = describe_order(groups, sort_groups(groups))
    assert sentence.startswith("The 2 groups are ")
    assert [word for word in words if word not in sentence] == []
