"""Rank all pairs by how clearly their coefficients moved between groups; no concept is needed.

Source: Bu & Gandelsman, arXiv 2509.19943, who monitor distribution shifts by the contributions of pairs.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from nadpipe.circuit.shift import adjust_by_group, compare_pairs, group_range, groups_of
from nadpipe.progress import track
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.kinds.shift import DISCOVERED
from nadpipe.store.kinds.units import UNIT_TABLES
from nadpipe.store.manifest import read_images
from nadpipe.store.shards import head_coefficients, join, open_shards
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
    """Write every pair's shift of each group against its reference, smallest q first.

    Args:
        images: Manifest with groups.
        contributions: Contributions of all shards.
        pairs: Table of the pairs, for their names and norms.
        output: Parquet table, one row per pair and group.
        reference: Group to compare the others with (default: the first), or rolling:<n> for the n groups before each.
        examples: Number of images per pair that show the shift most.
        small_group: Groups and references with fewer images are marked as small and not tested.
    """
    stores = open_shards(contributions, CONTRIBUTIONS)
    model = stores[0].stamp
    group = read_images(images).set_index("image_id")["group"]
    references = {name: compared for name, compared in groups_of(group, reference, str(images)).items() if compared}
    image_id = join(stores, "image_id")
    group_of_view = group.loc[image_id].to_numpy()
    tables = []
    for head in track(range(stores[0]["coefficient"].shape[1]), "comparing pairs", "head"):
        coefficient = head_coefficients(stores, head)
        for name, compared in references.items():
            members, base = (np.flatnonzero(np.isin(group_of_view, names)) for names in ([name], compared))
            table = _compare(coefficient[members], coefficient[base], image_id[members], image_id[base], examples)
            tables.append(table.assign(head=head, group=name, reference=group_range(compared)))
    discovered = pd.concat(tables, ignore_index=True)
    discovered["small"] = discovered[["n", "n_reference"]].min(axis=1) < small_group
    discovered["p"] = discovered["p"].mask(discovered["small"])
    discovered["q"] = adjust_by_group(discovered)
    units = read_parquet(pairs, UNIT_TABLES["pair"], model)[["head", "neuron", "write_norm", "nearest_text", "active_text"]]
    discovered = discovered.merge(units, on=["head", "neuron"], validate="many_to_one")
    discovered["contribution"] = discovered["difference"] * discovered["write_norm"]
    write_parquet(output, DISCOVERED, _clearest_first(discovered), model.made_by(__name__))


def _compare(
    group: torch.Tensor, reference: torch.Tensor, image_id: np.ndarray, reference_id: np.ndarray, examples: int
) -> pd.DataFrame:
    """Return a table of one head's pairs, given the coefficients (image, neuron) of a group and of its reference."""
    effect, p = compare_pairs(group, reference)
    toward = torch.from_numpy(np.where(effect < 0, -1, 1))
    shown = (group * toward).topk(min(examples, len(group)), dim=0).indices
    opposite = (reference * toward).topk(min(examples, len(reference)), dim=0, largest=False).indices
    columns = {
        "neuron": np.arange(group.shape[1]),
        "n": len(group),
        "n_reference": len(reference),
        "difference": (group.double().mean(0) - reference.double().mean(0)).numpy(),
        "effect": effect,
        "p": p,
        "images": list(image_id[shown.numpy()].T),
        "reference_images": list(reference_id[opposite.numpy()].T),
    }
    return pd.DataFrame(columns)


def _clearest_first(table: pd.DataFrame) -> pd.DataFrame:
    """Sort by q, then by the size of the effect, then by the size of the contribution. Rows without q come last.

    Large effects alone do not come first: chance makes larger ones in small groups.
    """
    keys = pd.DataFrame({"q": table["q"], "effect": -table["effect"].abs(), "contribution": -table["contribution"].abs()})
    return table.loc[keys.sort_values(list(keys), kind="stable").index]
