"""Name pairs by their images: the texts whose similarity to an image goes with the pair's coefficient."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from nadpipe import texts
from nadpipe.artifacts import create_parquet, open_zarr
from nadpipe.faithfulness import activity_correlations
from nadpipe.fingerprint import code_fingerprint
from nadpipe.inputs import open_shards, read_pool
from nadpipe.progress import track

_PAIRS = 512  # whose correlations with all texts are in memory at once


def correlate_texts(
    contributions: tuple[Path, ...],
    directions: Path,
    dictionary: Path,
    attnpool_store: Path,
    output: Path,
    nearest: int = 5,
) -> None:
    """Write the texts of each pair by correlation, over the discovery images, of its coefficient along its direction.

    Args:
        contributions: All shards of the discovery contributions.
        directions: Pair directions, for their signs.
        dictionary: Embedded dictionary.
        attnpool_store: Exported attention pool.
        output: Parquet table, one row a pair and text.
        nearest: Texts of each pair.
    """
    pool, model = read_pool(attnpool_store)
    stores = open_shards(contributions, "contributions", model)
    store, words = open_zarr(directions, "pair directions", model), open_zarr(dictionary, "text", model)
    text = torch.from_numpy(words["embedding"][:])
    text, names = texts.centre(text, text), pd.Index(words.texts(), dtype=object)
    embedding = torch.from_numpy(np.concatenate([part["embedding"][:] for part in stores]))
    embedding = texts.unit(embedding - embedding.mean(0))
    count = min(nearest, len(text))
    with create_parquet(output, "pair correlations", dataclasses.replace(model, code=code_fingerprint(__name__))) as add:
        for head in track(range(pool.heads), "correlating pairs", "head"):
            coefficient = torch.from_numpy(np.concatenate([part["coefficient"][:, head] for part in stores])).float()
            coefficient *= torch.from_numpy(store["sign"][head].astype(np.float32))
            alive = np.flatnonzero(store["std_norm"][head] > 0)
            for some in np.array_split(alive, max(1, -(-len(alive) // _PAIRS))):
                value, at = activity_correlations(coefficient[:, some], embedding, text).topk(count, dim=1)
                add(_rows(head, some, value, at, names))


def _rows(head: int, neuron: np.ndarray, value: torch.Tensor, at: torch.Tensor, names: pd.Index) -> pd.DataFrame:
    count = at.shape[1]
    return pd.DataFrame(
        {
            "head": head,
            "neuron": np.repeat(neuron, count),
            "rank": np.tile(np.arange(1, count + 1), len(neuron)),
            "text": names[at.flatten().numpy()],
            "correlation": value.flatten().numpy(),
        }
    )
