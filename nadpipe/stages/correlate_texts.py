"""Name pairs by their images: texts whose similarity to an image correlates with the pair's coefficient."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nadpipe.circuit import naming
from nadpipe.progress import track
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.kinds.texts import TEXT
from nadpipe.store.kinds.units import CORRELATIONS, DIRECTIONS
from nadpipe.store.shards import head_coefficients, join, open_shards
from nadpipe.store.tables import create_parquet

_PAIRS_AT_ONCE = 512  # pairs whose correlations with all texts are in memory at once


def correlate_texts(
    contributions: tuple[Path, ...],
    directions: Path,
    dictionary: Path,
    output: Path,
    nearest: int = 5,
) -> None:
    """Write the texts of each pair whose similarity to the discovery images correlates most with the pair's coefficient.

    The coefficient is taken along the pair's direction. Pairs that do not vary have no texts.

    Args:
        contributions: Contributions of all discovery shards.
        directions: Pair directions, for their signs.
        dictionary: Embedded dictionary.
        output: Parquet table, one row per pair and text.
        nearest: Number of texts per pair.
    """
    store = open_zarr(directions, DIRECTIONS["pair"])
    model = store.stamp
    stores, text_store = open_shards(contributions, CONTRIBUTIONS, model), open_zarr(dictionary, TEXT, model)
    text = text_store.tensor("embedding")
    text, text_names = naming.centre(text, text), pd.Index(text_store.texts(), dtype=object)
    embedding = torch.from_numpy(join(stores, "embedding"))
    embedding = naming.normalise(embedding - embedding.mean(0))
    count = min(nearest, len(text))
    with create_parquet(output, CORRELATIONS, model.made_by(__name__)) as add:
        for head in track(range(store["sign"].shape[0]), "correlating pairs", "head"):
            coefficient = head_coefficients(stores, head)
            coefficient *= torch.from_numpy(store.read("sign", head).astype(np.float32))
            varying = np.flatnonzero(store.read("std_norm", head) > 0)
            for neurons in np.array_split(varying, max(1, -(-len(varying) // _PAIRS_AT_ONCE))):
                correlation = naming.activity_correlations(coefficient[:, neurons], embedding, text)
                add(_rows(head, neurons, *correlation.topk(count, dim=1), text_names))


def _rows(
    head: int,
    neuron: Int[np.ndarray, " neuron"],
    correlation: Float[Tensor, "neuron rank"],
    text: Int[Tensor, "neuron rank"],
    text_names: pd.Index,
) -> pd.DataFrame:
    """Return one row per pair and text, best first."""
    count = text.shape[1]
    return pd.DataFrame(
        {
            "head": head,
            "neuron": np.repeat(neuron, count),
            "rank": np.tile(np.arange(1, count + 1), len(neuron)),
            "text": text_names[text.flatten().numpy()],
            "correlation": correlation.flatten().numpy(),
        }
    )
