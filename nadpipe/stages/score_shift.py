"""Score concepts on every image and compare groups of images.

Source: Bu & Gandelsman, arXiv 2509.19943, where contributions of pairs monitor distribution shifts (its second application);
their distribution_shift.py (github.com/edmundbu/clip-neur-attn-decomposition, 727c1a5) has the score `norm`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from nadpipe.artifacts import ZarrStore, read_images, write_csv, write_parquet
from nadpipe.attnpool import AttentionPool
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint
from nadpipe.inputs import Chosen, blocks, count_blocks, open_shards, read_pool, read_selection
from nadpipe.progress import track
from nadpipe.shift import Test, compare_groups, concept_scores, groups_of


def score_shift(
    images: Path,
    contributions: tuple[Path, ...],
    selection: Path,
    attnpool_store: Path,
    output: Path,
    output_scores: Path,
    dataset: str = "monitoring",
    reference: str | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    test: Test = "mann_whitney",
    small_group: int = 20,
) -> None:
    """Write the scores of each image, and per concept and group their mean, interval, effect and test.

    Args:
        images: Manifest with groups; a 0/1 column named as a concept is its label.
        contributions: All shards of the data set's contributions.
        selection: Selected pairs of the concepts.
        attnpool_store: Exported attention pool.
        output: CSV table, one row a concept, score and group.
        output_scores: Parquet table, one row an image, concept and score.
        dataset: Name of the data set in the table.
        reference: Group that the others are compared with, the first in order unless given; or rolling:<n> for the n groups
            before each.
        resamples: Resamples of the bootstrap.
        confidence: Confidence of the intervals.
        seed: Seed of the bootstrap.
        test: mann_whitney, welch or ks (Kolmogorov-Smirnov).
        small_group: Groups of fewer images, and comparisons with fewer, are marked.
    """
    pool, model = read_pool(attnpool_store)
    manifest = read_images(images).set_index("image_id")
    references = groups_of(manifest["group"], reference, str(images))
    chosen = read_selection(selection, model)
    table = image_scores(open_shards(contributions, "contributions", model), chosen, pool)
    table["group"] = manifest["group"].loc[table["image_id"]].to_numpy()
    labels = label_columns(manifest, chosen.texts, images)
    compared = compare_groups(table, labels, references, resamples, confidence, seed, test, small_group)
    stamp = dataclasses.replace(model, code=code_fingerprint(__name__))
    write_csv(output, "shift", compared.assign(dataset=dataset, k=chosen.pairs.head.shape[1]))
    write_parquet(output_scores, "shift_scores", table, stamp)


def image_scores(stores: Sequence[ZarrStore], chosen: Chosen, pool: AttentionPool) -> pd.DataFrame:
    """Both scores of every image and concept."""
    parts = []
    names = ("coefficient", "embedding", "image_id")
    for coefficient, embedding, image_id in track(
        blocks(stores, *names), "scoring concepts", "block", count_blocks(stores, "coefficient")
    ):
        scores = concept_scores(coefficient.float(), embedding, chosen.pairs, chosen.query, pool)
        for score, value in zip(("norm", "projection"), scores, strict=True):
            for concept, column in zip(chosen.texts, value.T.numpy(), strict=True):
                parts.append(pd.DataFrame({"image_id": image_id.numpy(), "score": score, "concept": concept, "value": column}))
    return pd.concat(parts, ignore_index=True)


def label_columns(manifest: pd.DataFrame, concepts: Sequence[str], source: Path) -> pd.DataFrame:
    """The 0/1 columns that are named as concepts. Raises NadpipeError for one that holds anything else."""
    labels = manifest[[concept for concept in concepts if concept in manifest]]
    for concept in labels:
        if not labels[concept].isin([0, 1]).all():
            raise NadpipeError(f"{source}: column {concept} is the label of a concept and must hold 0 and 1 alone")
    return labels
