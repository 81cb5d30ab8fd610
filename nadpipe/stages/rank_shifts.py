"""Rank all pairs by how far their coefficients moved between groups, without any concept named."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from nadpipe.artifacts import open_zarr, read_parquet, write_parquet
from nadpipe.fingerprint import code_fingerprint
from nadpipe.inputs import blocks, count_blocks, open_shards
from nadpipe.progress import track
from nadpipe.shift import GroupMoments, benjamini_hochberg, groups_of, in_order


def rank_shifts(
    images: Path,
    contributions: tuple[Path, ...],
    pairs: Path,
    attnpool_store: Path,
    output: Path,
    reference: str | None = None,
) -> None:
    """Write every pair's shift of each group against the reference, largest effect first.

    Args:
        images: Manifest with groups.
        contributions: All shards of the data set's contributions.
        pairs: Table of the pairs, for their names and norms.
        attnpool_store: Exported attention pool.
        output: Parquet table, one row a pair and group.
        reference: Group that the others are compared with; the first in order unless given.
    """
    model = open_zarr(attnpool_store, "attention pool").stamp
    manifest = read_parquet(images, "images").set_index("image_id")
    group, reference = groups_of(manifest["group"], reference, str(images))
    stores = open_shards(contributions, "contributions", model)
    moments = GroupMoments()
    for coefficient, image_id in track(
        blocks(stores, "coefficient", "image_id"), "comparing pairs", "block", count_blocks(stores, "coefficient")
    ):
        of_view = group.loc[image_id.numpy()].to_numpy()
        for name in np.unique(of_view):
            moments.add(name, coefficient[of_view == name])
    named = read_parquet(pairs, "pairs", model).sort_values(["head", "neuron"], ignore_index=True)
    parts = []
    for name in in_order(set(moments.count) - {reference}):
        difference, effect, p = moments.against(name, reference)
        part = named[["head", "neuron", "nearest_text"]].assign(group=name, reference=reference)
        part["difference"], part["effect"], part["p"] = difference.ravel(), effect.ravel(), p.ravel()
        part["contribution"] = part["difference"] * named["write_norm"]
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    table["q"] = benjamini_hochberg(table["p"].to_numpy())
    order = table["effect"].abs().sort_values(ascending=False, kind="stable").index
    stamp = dataclasses.replace(model, code=code_fingerprint(__name__))
    write_parquet(output, "shift_pairs", table.loc[order], stamp)
