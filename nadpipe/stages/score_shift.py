"""Score concepts on every image and compare groups of images."""

import dataclasses
from pathlib import Path

import pandas as pd
import torch

from nadpipe.artifacts import read_parquet, write_csv, write_parquet
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint
from nadpipe.inputs import blocks, count_blocks, open_shards, read_pool, read_selection
from nadpipe.progress import track
from nadpipe.shift import compare_groups, concept_scores, groups_of


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
        reference: Group that the others are compared with; the first in order unless given.
        resamples: Resamples of the bootstrap.
        confidence: Confidence of the intervals.
        seed: Seed of the bootstrap.
    """
    pool, model = read_pool(attnpool_store)
    manifest = read_parquet(images, "images").set_index("image_id")
    group, reference = groups_of(manifest["group"], reference, str(images))
    chosen = read_selection(selection, model)
    stores = open_shards(contributions, "contributions", model)
    parts = []
    names = ("coefficient", "embedding", "image_id")
    for coefficient, embedding, image_id in track(
        blocks(stores, *names), "scoring concepts", "block", count_blocks(stores, "coefficient")
    ):
        scores = concept_scores(coefficient.float(), embedding, chosen.pairs, chosen.query, pool)
        for score, value in zip(("norm", "projection"), scores, strict=True):
            for concept, column in zip(chosen.texts, value.T.numpy(), strict=True):
                parts.append(pd.DataFrame({"image_id": image_id.numpy(), "score": score, "concept": concept, "value": column}))
    table = pd.concat(parts, ignore_index=True)
    table["group"] = group.loc[table["image_id"]].to_numpy()
    labels = manifest[[concept for concept in chosen.texts if concept in manifest]]
    for concept in labels:
        if not labels[concept].isin([0, 1]).all():
            raise NadpipeError(f"{images}: column {concept} is the label of a concept and must hold 0 and 1 alone")
    compared = compare_groups(table, labels, reference, resamples, confidence, seed)
    stamp = dataclasses.replace(model, code=code_fingerprint(__name__))
    write_csv(output, "shift", compared.assign(dataset=dataset, k=torch.numel(chosen.pairs.head[0])))
    write_parquet(output_scores, "shift_scores", table, stamp)
