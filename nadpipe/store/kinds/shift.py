"""Schemas of shift monitoring."""

from nadpipe.store.kinds.units import AXIS_COLUMNS
from nadpipe.store.schema import Column, CsvKind, Final, TableKind

SHIFT_SCORES = TableKind(
    "shift_scores",
    "results/shift/scores.parquet",
    {
        "image_id": Column("int64", "row of images.parquet"),
        "group": Column("text", "group of the image"),
        "concept": Column("text", "concept"),
        "score": Column(
            "text", "norm: ‖R‖ / ‖y‖; projection: ⟨R, text⟩ / ‖y‖; R is the summed contribution of the concept's pairs"
        ),
        "value": Column("float32", "the score"),
    },
    Final(
        "score_shift",
        "Shift",
        "Score of each concept for every image.",
        ("groups", "concepts"),
    ),
)
DISCOVERED = TableKind(
    "discovered",
    "results/shift/discovered.parquet",
    {
        **AXIS_COLUMNS,
        "group": Column("text", "group compared"),
        "reference": Column("text", "group, or groups, compared with"),
        "n": Column("int32", "images of the group"),
        "n_reference": Column("int32", "images of the reference"),
        "small": Column(
            "bool", "whether the group or its reference has fewer than shift.small_group images; if so, it is not tested"
        ),
        "difference": Column("float32", "difference of mean coefficients"),
        "effect": Column(
            "float32", "Cliff's delta of the coefficients against the reference, -1 to 1; 0 if the pair never varies"
        ),
        "p": Column("float64", "Mann-Whitney test, two-sided; empty for small groups and pairs that never vary"),
        "q": Column("float64", "Benjamini-Hochberg over the group's pairs; rows are sorted by q, then by |effect|"),
        "contribution": Column("float32", "difference · ‖w[h, n]‖: how far the pair moved the embedding"),
        "nearest_text": Column("text", "dictionary text nearest to the pair's direction"),
        "active_text": Column("text", "text whose similarity to the discovery images correlates most with the coefficient"),
        "images": Column(
            "list<int64>", "image_id of the group's images with the most extreme coefficients in the direction of effect"
        ),
        "reference_images": Column(
            "list<int64>",
            "image_id of the reference's images with the most extreme coefficients against the direction of effect",
        ),
    },
    Final(
        "rank_shifts",
        "Shift",
        "Pairs ranked by how far their coefficients moved between groups.",
        ("groups",),
    ),
)
SHIFT = CsvKind(
    "shift",
    "results/shift.csv",
    {
        "dataset": "data set",
        "concept": "concept, as in the config",
        "score": "norm (published) or projection (signed)",
        "group": "group of images",
        "n": "images in the group",
        "small": "whether the group or its reference has fewer than shift.small_group images; if so, it is not tested",
        "mean": "mean score",
        "mean_low": "lower end of the interval of the mean (Student's t, corrected for skewness)",
        "mean_high": "upper end",
        "reference": "group, or groups, compared with; empty for a reference itself",
        "order": "how the groups are sorted: as numbers, as dates, by their appearance in the order of the images, or by names",
        "effect": "Cliff's delta against the reference, -1 to 1",
        "test": "mann_whitney, welch or ks",
        "p": "two-sided p of the test; empty for small groups",
        "q": "Benjamini-Hochberg over the group's concepts and scores",
        "trend": "Kendall's tau-b of score and order of the groups over all images; empty for groups without an order",
        "trend_p": "p of the trend: the Mann-Kendall test",
        "trend_q": "Benjamini-Hochberg over all concepts and scores",
        "label_rate": "share of the group's images whose label for the concept is 1",
        "correlation": "point-biserial correlation of score and label over all images",
        "correlation_low": "lower end of its interval (the wider of Fisher's and the jackknife's)",
        "correlation_high": "upper end",
        "auroc": "area under the ROC curve of the score for the label over all images",
        "auroc_low": "lower end of its interval (the wider of DeLong's and Newcombe's)",
        "auroc_high": "upper end",
        "k": "pairs selected per concept",
    },
    Final(
        "score_shift",
        "Shift",
        "Mean score of each concept in each group with its interval, effect against the reference, test, trend and correlation "
        "with labels.",
        ("groups", "concepts"),
    ),
    text=("dataset", "concept", "group", "reference"),
)
