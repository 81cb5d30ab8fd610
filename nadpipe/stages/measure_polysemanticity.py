"""How many things a unit stands for: how much its top images differ, pairs against their neurons.

Source: Bu & Gandelsman, arXiv 2509.19943, that some pairs, while polysemantic, stand for sub-concepts of their neurons;
their polysemanticity.py (github.com/edmundbu/clip-neur-attn-decomposition, 727c1a5) sums squared distances to the mean.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from nadpipe import attnpool, plots
from nadpipe.artifacts import open_zarr, read_parquet, whole, write_parquet
from nadpipe.errors import NadpipeError
from nadpipe.faithfulness import spread
from nadpipe.fingerprint import code_fingerprint
from nadpipe.inputs import open_shards, read_pool
from nadpipe.progress import track
from nadpipe.texts import unit

_UNITS = 512  # whose top images' embeddings are in memory at once


def measure_polysemanticity(
    contributions: tuple[Path, ...],
    pair_directions: Path,
    neuron_directions: Path,
    pairs: Path,
    neurons: Path,
    attnpool_store: Path,
    output: Path,
    output_plot: Path,
    top: int = 20,
) -> None:
    """Write the top images of every pair and neuron, how far apart they are, and a pair's share in its neuron's.

    Args:
        contributions: All shards of the discovery contributions.
        pair_directions: Directions of the pairs.
        neuron_directions: Directions of the neurons.
        pairs: Table of the pairs, for their texts.
        neurons: Table of the neurons.
        attnpool_store: Exported attention pool.
        output: Parquet table, one row a pair or neuron.
        output_plot: PNG.
        top: Images that go farthest along the unit's (first) direction.
    """
    pool, model = read_pool(attnpool_store)
    stores = open_shards(contributions, "contributions", model)
    embedding = torch.from_numpy(np.concatenate([store["embedding"][:] for store in stores]))
    image_id = np.concatenate([store["image_id"][:] for store in stores])
    if len(image_id) < 2 * top:
        raise NadpipeError(f"analyses.top: {top} top images of {len(image_id)}; use at most half of the discovery images")
    centred = unit(embedding - embedding.mean(0))
    store = open_zarr(pair_directions, "pair directions", model)
    of_neuron = torch.from_numpy(open_zarr(neuron_directions, "neuron directions", model)["direction"][:, 0])
    sign = torch.from_numpy(store["sign"][:].astype(np.float32))
    along = torch.zeros(len(image_id), pool.neurons)
    parts, kept = [], []
    for head in track(range(pool.heads), "ranking images", "head"):
        coefficient = torch.from_numpy(np.concatenate([part["coefficient"][:, head] for part in stores])).float()
        along += coefficient * (attnpool.write_vectors(pool, head) * of_neuron).sum(1)
        best = _top(coefficient * sign[head], top)
        kept.append(best)
        parts.append(_table(best, centred, image_id).assign(unit="pair", head=head))
    best = _top(along, top)
    neuron_table = _table(best, centred, image_id).assign(unit="neuron", head=None)
    for part, own in zip(parts, kept, strict=True):
        part["parent_spread"] = neuron_table["spread"]
        part["overlap"] = (own[:, :, None] == best[:, None]).any(2).float().mean(1).numpy()
    table = pd.concat([neuron_table, *parts], ignore_index=True).astype({"head": "Int32"})
    table = _named(table, read_parquet(pairs, "pairs", model), read_parquet(neurons, "neurons", model))
    write_parquet(output, "polysemanticity", table, dataclasses.replace(model, code=code_fingerprint(__name__)))
    with whole(output_plot) as partial:
        plots.save(plots.spread_plot(table), partial)


def _top(value: torch.Tensor, top: int) -> torch.Tensor:
    """Rows of the largest values of each column, (column, top)."""
    return value.topk(top, dim=0).indices.T


def _table(best: torch.Tensor, centred: torch.Tensor, image_id: np.ndarray) -> pd.DataFrame:
    """One row a neuron."""
    apart = torch.cat([spread(centred, some) for some in best.split(_UNITS)])
    images = list(image_id[best.numpy()])
    return pd.DataFrame({"neuron": range(len(best)), "spread": apart.numpy(), "images": images})


def _named(table: pd.DataFrame, pairs: pd.DataFrame, neurons: pd.DataFrame) -> pd.DataFrame:
    """The table with each unit's rank and text; units that do not vary have no top images."""
    wanted = ["contribution_rank", "std_norm", "nearest_text"]
    of_pairs = pairs[["head", "neuron", *wanted, "active_text"]]
    about = pd.concat([of_pairs, neurons[["neuron", *wanted]]]).astype({"head": "Int32"})
    about = about.astype({"nearest_text": object, "active_text": object})
    table = table.merge(about, on=["head", "neuron"], how="left")
    still = table["std_norm"] == 0
    table.loc[still, ["spread", "parent_spread", "overlap"]] = np.nan
    return table.drop(columns="std_norm")
