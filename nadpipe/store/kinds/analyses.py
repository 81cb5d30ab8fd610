"""Schemas of the paper's analyses."""

from nadpipe.store.kinds.units import AXIS_COLUMNS
from nadpipe.store.schema import Column, CsvKind, Final, TableKind

_FIDELITY = {
    "accuracy": "zero-shot accuracy of the rebuilt embeddings: share of images whose label's text has the largest cosine",
    "accuracy_low": "lower end of the Wilson interval",
    "accuracy_high": "upper end",
    "relative_error": "mean over images of ‖rebuilt - embedding‖ / ‖embedding‖",
    "explained": "share of the embeddings' variance over the images that is kept; 0 for their mean, can be negative",
    "average_precision": "mean over the attributes of the average precision of the images ranked by their cosine to the "
    "attribute's text; empty without attributes",
    "prevalence": "mean over the attributes of the share of images that have it: the average precision of a random ranking",
    "images": "labelled images",
    "classes": "labels to choose from",
    "attributes": "0/1 columns of the table that vary over the images",
}
LEDGER = CsvKind(
    "ledger",
    "results/ledger.csv",
    {
        "part": "pairs: neurons through heads; heads: the rest of what the heads of a block write; mlp: MLP of a block, not "
        "through heads; input: patch and positional embeddings; shift: bias of the last norm; constants: biases of the heads",
        "layer": "block of the heads or of the MLP; empty for a pool and for parts of no block",
        "energy": "mean over images of ⟨part, embedding⟩, divided by that of ‖embedding‖²; the shares sum to 1",
        "variance": "the same with means over images subtracted: share of the variance; the shares sum to 1",
        "images": "number of views measured",
    },
    Final(
        "measure_ledger",
        "Analyses",
        "Share of the embedding that pairs and every other path carry. A statement about pairs concerns only their share.",
    ),
)
RECONSTRUCTION = CsvKind(
    "reconstruction",
    "results/reconstruction.csv",
    {
        "dataset": "data set",
        "unit": "pair, neuron or head",
        "components": "directions that each unit writes along, in addition to its mean; 0 for only the mean",
        **_FIDELITY,
    },
    Final(
        "measure_reconstruction",
        "Analyses",
        "Zero-shot accuracy with each unit reduced to its mean and its first directions, for pairs, neurons and heads.",
        ("labels",),
    ),
)
NAMING = CsvKind(
    "naming",
    "results/naming.csv",
    {
        "dataset": "data set",
        "units": "pairs; or controls that mean nothing: random projections of the embedding (isotropic, or with the spectrum "
        "of the pairs' directions), and sums of random pairs",
        "rule": "nearest: text nearest to the direction; sparse: first atom; correlated: active_text of pairs.parquet",
        "share": "share of the units that vary, the largest: std_norm of pairs, standard deviation of projections and sums",
        "count": "number of units",
        "attributes": "0/1 columns of the table; each unit selects the one that correlates most with its coefficient",
        "selected": "attributes that at least one of the units selects; few make a high agreement easy",
        "agreement": "mean share of the words of a unit's text that are the attribute it selects; articles, prepositions and "
        "'and' do not count",
        "agreement_low": "lower end of the cluster-robust t interval, with attributes as clusters",
        "agreement_high": "upper end",
        "difference": "agreement of the pairs minus that of these controls, same rule and share",
        "difference_low": "lower end of its interval; the number shows nothing about pairs if it is not above 0",
        "difference_high": "upper end",
    },
    Final(
        "measure_naming",
        "Analyses",
        "Share of the words of a unit's text that are the attribute it selects, with its interval: pairs beside units that "
        "mean nothing. A number shows something about pairs only if the controls do not reach it.",
        ("attributes",),
    ),
)
FAITHFULNESS = CsvKind(
    "faithfulness",
    "results/faithfulness.csv",
    {
        "dataset": "data set",
        "rule": "how the ablated pairs are chosen. selected: those of shift.csv; write, direction: largest cosine of the write "
        "vector, or of the signed direction, to the text; magnitude: largest |cosine|; effect: largest share of the score's "
        "variance over the discovery images; neurons: whole neurons of largest effect; random",
        "ablated": "concept whose pairs are set to their mean over the discovery images; or a control: a random direction, or "
        "a random mixture of texts, in place of the concept's text, or random pairs",
        "measured": "concept, or the control itself, whose score is measured: ⟨embedding, text⟩ / ‖embedding before ablation‖",
        "k": "pairs ablated",
        "own": "images of `change`. label: those whose 0/1 column of the concept is 1; highest: no such column, those of "
        "`change_highest`",
        "change": "mean change of the score over the concept's own images, in standard deviations of the score",
        "change_highest": "the same over the tenth of the images where the score is highest before ablation",
        "spread_kept": "standard deviation of the score after ablation divided by the one before",
        "auroc": "AUROC of the score for the concept's 0/1 column, if the table has one",
        "auroc_ablated": "the same after ablation; 0.5: the score does not tell the concept apart, below: it does, reversed",
        "auroc_highest": "AUROC of the score after ablation for the tenth of the images where it was highest before",
        "images": "images measured",
    },
    Final(
        "measure_faithfulness",
        "Analyses",
        "Change of each concept's score when pairs are set to their mean: its selected pairs, random pairs, and the same for "
        "random directions and mixtures of texts; AUROC over numbers of pairs, by the rule that ranks them. An AUROC near 1 "
        "means that the score still tells the concept apart.",
        ("analyses", "concepts"),
    ),
    text=("dataset", "ablated", "measured"),
)
SPARSITY = CsvKind(
    "sparsity",
    "results/sparsity.csv",
    {
        "dataset": "data set",
        "unit": "pair or neuron: the units that are kept or ablated",
        "kept": "top: units of largest std_norm; bottom: of smallest; random",
        "draw": "number of the random choice, 0 for top and bottom",
        "share": "share of the units that is kept, after rounding to whole units; the others are set to their mean over the "
        "discovery images",
        "pairs": "pairs kept; for a neuron, its pairs with all heads",
        "energy": "share of the summed std_norm² of all units in the kept units",
        **_FIDELITY,
    },
    Final(
        "measure_sparsity",
        "Analyses",
        "Zero-shot accuracy, mean average precision of the 0/1 columns and share of variance when a share of the units is kept "
        "and the others are set to their mean: the largest units, and as controls the smallest and random ones.",
        ("labels",),
    ),
)
SPARSE_TEXT = CsvKind(
    "sparse_text",
    "results/sparse_text.csv",
    {
        "dataset": "data set",
        "unit": "pair, neuron or head: the units that write along their (first) direction",
        "dictionary": "texts; random: as a control, as many random atoms with the mean and covariance of the texts",
        "draw": "number of the random atoms, 0 for texts",
        "units": "units that write along their code: all that have one, or the largest (analyses.control_units)",
        "coded": "share of the energy (std_norm²) of these units; the others are set to their mean",
        "atoms": "atoms of its sparse code that replace each direction; 0 for the mean alone",
        **_FIDELITY,
    },
    Final(
        "measure_sparse_text",
        "Analyses",
        "Zero-shot accuracy, mean average precision of the 0/1 columns and share of variance with directions replaced by their "
        "sparse codes, by number of atoms: texts, and as a control random atoms with the mean and covariance of the texts.",
        ("labels",),
    ),
)
POLYSEMANTICITY = TableKind(
    "polysemanticity",
    "results/polysemanticity.parquet",
    {
        "unit": Column("text", "pair or neuron"),
        **AXIS_COLUMNS,
        "spread": Column(
            "float32", "mean cosine distance of its top images: 0 if all are equal, about 1 if random; null if it does not vary"
        ),
        "parent_spread": Column("float32", "pairs: spread of their neuron"),
        "overlap": Column("float32", "pairs: share of its top images that are top images of its neuron"),
        "contribution_rank": Column("int32", "1 for the unit of its kind with the largest std_norm"),
        "nearest_text": Column("text", "dictionary text nearest to the direction"),
        "active_text": Column("text", "pairs: text whose similarity to the images correlates most with the coefficient"),
        "images": Column("list<int64>", "image_id of the top images, farthest along the direction first"),
    },
    Final(
        "measure_polysemanticity",
        "Analyses",
        "Mean distance between the top images of a pair, and between those of its neuron.",
    ),
)
