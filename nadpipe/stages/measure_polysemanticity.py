"""Measure polysemanticity: how much the top images of pairs and neurons differ.

Source: Bu & Gandelsman, arXiv 2509.19943, who find that some pairs, although polysemantic, represent sub-concepts of their
neurons. Their polysemanticity.py (github.com/edmundbu/clip-neur-attn-decomposition, 727c1a5) sums squared distances to the
mean.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nadpipe.circuit.naming import normalise, spread
from nadpipe.circuit.readout import write_vectors
from nadpipe.errors import NadpipeError
from nadpipe.progress import track
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.analyses import POLYSEMANTICITY
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.kinds.units import DIRECTIONS, LAYER_COLUMNS, UNIT_TABLES
from nadpipe.store.readout import read_readout
from nadpipe.store.shards import head_coefficients, join, open_shards
from nadpipe.store.tables import read_parquet, write_parquet

_UNITS_AT_ONCE = 512  # units whose top images' embeddings are in memory at once


def measure_polysemanticity(
    contributions: tuple[Path, ...],
    pair_directions: Path,
    neuron_directions: Path,
    pairs: Path,
    neurons: Path,
    readout: Path,
    output: Path,
    top: int = 20,
) -> None:
    """Write the top images of every pair and neuron, their spread, and the overlap of a pair's top images with its neuron's.

    Args:
        contributions: Contributions of all discovery shards.
        pair_directions: Directions of the pairs.
        neuron_directions: Directions of the neurons.
        pairs: Table of the pairs, for their texts.
        neurons: Table of the neurons.
        readout: Exported readout.
        output: Parquet table, one row per pair or neuron.
        top: Number of images farthest along the unit's (first) direction, at most half of all images.
    """
    weights, model = read_readout(readout)
    stores = open_shards(contributions, CONTRIBUTIONS, model)
    embedding = torch.from_numpy(join(stores, "embedding"))
    image_id = join(stores, "image_id")
    if len(image_id) < 4:
        raise NadpipeError(f"datasets.discovery: {len(image_id)} images are too few for top images; give at least 4")
    if len(image_id) < 2 * top:
        top = len(image_id) // 2
        print(f"{top} top images per unit, half of the discovery images, because analyses.top is larger", file=sys.stderr)
    centred = normalise(embedding - embedding.mean(0))
    sign = open_zarr(pair_directions, DIRECTIONS["pair"], model).tensor("sign").float()
    neuron_direction = open_zarr(neuron_directions, DIRECTIONS["neuron"], model).tensor("direction", (slice(None), 0))
    neuron_value = torch.zeros(len(image_id), weights.neurons)
    tables, pair_tops = [], []
    for head in track(range(weights.heads), "ranking images", "head"):
        coefficient = head_coefficients(stores, head)
        neuron_value += coefficient * (write_vectors(weights, head) * neuron_direction).sum(1)
        pair_tops.append(_top_images(coefficient * sign[head], top))
        tables.append(_table(pair_tops[-1], centred, image_id).assign(unit="pair", head=head))
    neuron_top = _top_images(neuron_value, top)
    neuron_table = _table(neuron_top, centred, image_id).assign(unit="neuron", head=None)
    for table, pair_top in zip(tables, pair_tops, strict=True):
        table["parent_spread"] = neuron_table["spread"]
        table["overlap"] = (pair_top[:, :, None] == neuron_top[:, None]).any(2).float().mean(1).numpy()
    units = pd.concat([neuron_table, *tables], ignore_index=True).astype({"head": "Int32"})
    pair_names = read_parquet(pairs, UNIT_TABLES["pair"], model)
    neuron_names = read_parquet(neurons, UNIT_TABLES["neuron"], model)
    table = _add_names(units, pair_names, neuron_names)
    layered = {name: column for name, column in LAYER_COLUMNS.items() if name in pair_names}
    if layered:
        heads = pair_names[["head", *layered]].drop_duplicates().astype("Int32")
        table = table.merge(heads, on="head", how="left")
    write_parquet(output, POLYSEMANTICITY, table, model.made_by(__name__), layered)


def _top_images(value: Float[Tensor, "image unit"], top: int) -> Int[Tensor, "unit top"]:
    """Return the rows of the largest values per unit."""
    return value.topk(top, dim=0).indices.T


def _table(
    top: Int[Tensor, "neuron top"], embedding: Float[Tensor, "image embed"], image_id: Int[np.ndarray, " image"]
) -> pd.DataFrame:
    """Return one row per neuron with the spread and ids of its top images."""
    spreads = torch.cat([spread(embedding, rows) for rows in top.split(_UNITS_AT_ONCE)])
    return pd.DataFrame({"neuron": range(len(top)), "spread": spreads.numpy(), "images": list(image_id[top.numpy()])})


def _add_names(units: pd.DataFrame, pairs: pd.DataFrame, neurons: pd.DataFrame) -> pd.DataFrame:
    """Add the rank and texts of each unit. Units that do not vary get no spread."""
    columns = ["contribution_rank", "std_norm", "nearest_text"]
    names = pd.concat([pairs[["head", "neuron", *columns, "active_text"]], neurons[["neuron", *columns]]])
    names = names.astype({"head": "Int32", "nearest_text": object, "active_text": object})
    table = units.merge(names, on=["head", "neuron"], how="left")
    constant = table["std_norm"] == 0
    table.loc[constant, ["spread", "parent_spread", "overlap"]] = np.nan
    return table.drop(columns="std_norm")
