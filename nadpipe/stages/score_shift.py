"""Score concepts on every image and compare groups of images.

Source: Bu & Gandelsman, arXiv 2509.19943, who monitor distribution shifts by the contributions of pairs.
Their distribution_shift.py (github.com/edmundbu/clip-neur-attn-decomposition, 727c1a5) computes the score `norm`.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from nadpipe.circuit.readout import Readout
from nadpipe.circuit.shift import Test, compare_groups, concept_scores, group_order, groups_of
from nadpipe.data.labels import is_binary
from nadpipe.errors import NadpipeError
from nadpipe.progress import track
from nadpipe.store.arrays import ZarrStore
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.kinds.images import IMAGES
from nadpipe.store.kinds.shift import SHIFT, SHIFT_SCORES
from nadpipe.store.manifest import read_images
from nadpipe.store.readout import read_readout
from nadpipe.store.selection import SelectedPairs, read_selection
from nadpipe.store.shards import blocks, count_blocks, open_shards
from nadpipe.store.tables import write_csv, write_parquet


def score_shift(
    images: Path,
    contributions: tuple[Path, ...],
    selection: Path,
    readout: Path,
    output: Path,
    output_scores: Path,
    dataset: str = "monitoring",
    reference: str | None = None,
    confidence: float = 0.95,
    test: Test = "mann_whitney",
    small_group: int = 20,
) -> None:
    """Write the scores of each image, and a table of their mean, interval, effect and test per concept and group.

    Args:
        images: Manifest with groups. A 0/1 column named like a concept is its label.
        contributions: Contributions of all shards.
        selection: Selected pairs of the concepts.
        readout: Exported readout.
        output: CSV table, one row per concept, score and group.
        output_scores: Parquet table, one row per image, concept and score.
        dataset: Name of the data set in the table.
        reference: Group to compare the others with (default: the first), or rolling:<n> for the n groups before each.
        confidence: Confidence of the intervals.
        test: mann_whitney, welch or ks (Kolmogorov-Smirnov).
        small_group: Groups and references with fewer images are marked as small and not tested.
    """
    weights, model = read_readout(readout)
    manifest = read_images(images).set_index("image_id")
    references = groups_of(manifest["group"], reference, str(images))
    selected = read_selection(selection, model)
    scores = image_scores(open_shards(contributions, CONTRIBUTIONS, model), selected, weights)
    scores["group"] = manifest["group"].loc[scores["image_id"]].to_numpy()
    labels = label_columns(manifest, selected.texts, images)
    table = compare_groups(scores, labels, references, confidence, test, small_group)
    order = group_order(manifest["group"].unique().tolist())
    write_csv(output, SHIFT, table.assign(dataset=dataset, k=selected.pairs.head.shape[1], order=order))
    write_parquet(output_scores, SHIFT_SCORES, scores, model.made_by(__name__))


def image_scores(stores: Sequence[ZarrStore], selected: SelectedPairs, readout: Readout) -> pd.DataFrame:
    """Compute both scores of every image and concept: one row per image, score and concept.

    Columns: image_id, score (norm or projection), concept, value.
    """
    tables = []
    total = count_blocks(stores, "coefficient")
    batches = blocks(stores, "coefficient", "embedding", "image_id")
    for coefficient, embedding, image_id in track(batches, "scoring concepts", "block", total):
        scores = concept_scores(coefficient.float(), embedding, selected.pairs, selected.query, readout)
        for score, values in zip(("norm", "projection"), scores, strict=True):
            for concept, value in zip(selected.texts, values.T.numpy(), strict=True):
                columns = {"image_id": image_id.numpy(), "score": score, "concept": concept, "value": value}
                tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def label_columns(manifest: pd.DataFrame, concepts: Sequence[str], source: Path) -> pd.DataFrame:
    """Return the 0/1 columns of the source named like concepts. Raises NadpipeError for a column with other values."""
    labels = manifest[[concept for concept in concepts if concept in manifest and concept not in IMAGES.columns]]
    for concept in labels:
        if not is_binary(labels[concept]):
            raise NadpipeError(f"{source}: column {concept} is the label of a concept; it may contain only 0 and 1")
    return labels
