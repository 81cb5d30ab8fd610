"""Rank all pairs by how far their coefficients moved between groups; no concept is needed.

Source: Bu & Gandelsman, arXiv 2509.19943, who monitor distribution shifts by the contributions of pairs.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from nadpipe.circuit.accumulators import Examples, GroupMoments, pool_groups
from nadpipe.circuit.shift import benjamini_hochberg, compare_moments, group_range, groups_of
from nadpipe.progress import track
from nadpipe.store.arrays import ZarrStore
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.kinds.shift import DISCOVERED
from nadpipe.store.kinds.units import UNIT_TABLES
from nadpipe.store.manifest import read_images
from nadpipe.store.shards import blocks, count_blocks, open_shards
from nadpipe.store.tables import read_parquet, write_parquet


def rank_shifts(
    images: Path,
    contributions: tuple[Path, ...],
    pairs: Path,
    output: Path,
    reference: str | None = None,
    examples: int = 4,
    small_group: int = 20,
) -> None:
    """Write every pair's shift of each group against its reference, largest effect first.

    Args:
        images: Manifest with groups.
        contributions: Contributions of all shards.
        pairs: Table of the pairs, for their names and norms.
        output: Parquet table, one row per pair and group.
        reference: Group to compare the others with (default: the first), or rolling:<n> for the n groups before each.
        examples: Number of images per pair that show the shift most.
        small_group: Groups and references with fewer images are marked.
    """
    stores = open_shards(contributions, CONTRIBUTIONS)
    model = stores[0].stamp
    group = read_images(images).set_index("image_id")["group"]
    references = {name: compared for name, compared in groups_of(group, reference, str(images)).items() if compared}
    accumulator = GroupMoments()
    for name, coefficient, _ in _by_group(stores, group, "comparing pairs"):
        accumulator.add(name, coefficient)
    moments = accumulator.result()
    pooled = {name: pool_groups(moments, compared) for name, compared in references.items()}
    shifts = {name: compare_moments(moments[name], pooled[name]) for name in references}
    top = {name: Examples(examples) for name in references}
    for name, coefficient, image_id in _by_group(stores, group, "finding examples"):
        if name in top:
            difference, _, _ = shifts[name]
            top[name].add(coefficient.float() * np.sign(difference).astype(np.float32), image_id)
    units = read_parquet(pairs, UNIT_TABLES["pair"], model).sort_values(["head", "neuron"], ignore_index=True)
    tables = []
    for name, compared in references.items():
        difference, effect, p = shifts[name]
        columns = ["head", "neuron", "nearest_text", "active_text"]
        table = units[columns].assign(group=name, reference=group_range(compared))
        table["n"], table["n_reference"] = moments[name].views, pooled[name].views
        table["small"] = table[["n", "n_reference"]].min(axis=1) < small_group
        table["difference"], table["effect"], table["p"] = difference.ravel(), effect.ravel(), p.ravel()
        table["contribution"] = table["difference"] * units["write_norm"]
        table["images"] = list(top[name].result().flatten(1).T.numpy())
        tables.append(table)
    discovered = pd.concat(tables, ignore_index=True)
    discovered["q"] = benjamini_hochberg(discovered["p"].to_numpy())
    order = discovered["effect"].abs().sort_values(ascending=False, kind="stable").index
    write_parquet(output, DISCOVERED, discovered.loc[order], model.made_by(__name__))


def _by_group(stores: Sequence[ZarrStore], group: pd.Series, label: str) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield group, coefficients and image ids, block by block and group by group."""
    total = count_blocks(stores, "coefficient")
    for coefficient, image_id in track(blocks(stores, "coefficient", "image_id"), label, "block", total):
        group_of_view = group.loc[image_id.numpy()].to_numpy()
        for name in np.unique(group_of_view):
            members = torch.from_numpy(group_of_view == name)
            yield name, coefficient[members], image_id[members]
