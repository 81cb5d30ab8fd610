"""Rank all pairs by how far their coefficients moved between groups, without any concept named.

Source: Bu & Gandelsman, arXiv 2509.19943, where contributions of pairs monitor distribution shifts (its second application).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from nadpipe.artifacts import ZarrStore, open_zarr, read_images, read_parquet, write_parquet
from nadpipe.fingerprint import code_fingerprint
from nadpipe.inputs import blocks, count_blocks, open_shards
from nadpipe.progress import track
from nadpipe.shift import Examples, GroupMoments, benjamini_hochberg, groups_of, named


def rank_shifts(
    images: Path,
    contributions: tuple[Path, ...],
    pairs: Path,
    attnpool_store: Path,
    output: Path,
    reference: str | None = None,
    examples: int = 4,
    small_group: int = 20,
) -> None:
    """Write every pair's shift of each group against its reference, largest effect first.

    Args:
        images: Manifest with groups.
        contributions: All shards of the data set's contributions.
        pairs: Table of the pairs, for their names and norms.
        attnpool_store: Exported attention pool.
        output: Parquet table, one row a pair and group.
        reference: Group that the others are compared with, the first in order unless given; or rolling:<n> for the n groups
            before each.
        examples: Images of the group that show the shift most, for each pair.
        small_group: Groups of fewer images, and comparisons with fewer, are marked.
    """
    model = open_zarr(attnpool_store, "attention pool").stamp
    group = read_images(images).set_index("image_id")["group"]
    references = {name: base for name, base in groups_of(group, reference, str(images)).items() if base}
    stores = open_shards(contributions, "contributions", model)
    moments = GroupMoments()
    for name, coefficient, _ in _by_group(stores, group, "comparing pairs"):
        moments.add(name, coefficient)
    found = {name: moments.against(name, base) for name, base in references.items()}
    shown = {name: Examples(examples) for name in references}
    for name, coefficient, image_id in _by_group(stores, group, "finding examples"):
        if name in shown:
            difference, _, _ = found[name]
            shown[name].add(coefficient.float() * np.sign(difference).astype(np.float32), image_id)
    about = read_parquet(pairs, "pairs", model).sort_values(["head", "neuron"], ignore_index=True)
    parts = []
    for name, base in references.items():
        difference, effect, p = found[name]
        part = about[["head", "neuron", "nearest_text", "active_text"]].assign(group=name, reference=named(base))
        part["n"], part["n_reference"] = moments.count[name], sum(moments.count[one] for one in base)
        part["small"] = part[["n", "n_reference"]].min(axis=1) < small_group
        part["difference"], part["effect"], part["p"] = difference.ravel(), effect.ravel(), p.ravel()
        part["contribution"] = part["difference"] * about["write_norm"]
        part["images"] = list(shown[name].image.flatten(1).T.numpy())
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    table["q"] = benjamini_hochberg(table["p"].to_numpy())
    order = table["effect"].abs().sort_values(ascending=False, kind="stable").index
    stamp = dataclasses.replace(model, code=code_fingerprint(__name__))
    write_parquet(output, "discovered", table.loc[order], stamp)


def _by_group(stores: Sequence[ZarrStore], group: pd.Series, label: str) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Coefficients and image ids block by block, each group of a block apart."""
    total = count_blocks(stores, "coefficient")
    for coefficient, image_id in track(blocks(stores, "coefficient", "image_id"), label, "block", total):
        of_view = group.loc[image_id.numpy()].to_numpy()
        for name in np.unique(of_view):
            some = torch.from_numpy(of_view == name)
            yield name, coefficient[some], image_id[some]
