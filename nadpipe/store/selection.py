"""Pairs selected by text."""

import dataclasses
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from nadpipe.circuit.accumulators import Selection
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.units import SELECTION
from nadpipe.store.stamp import Stamp


@dataclasses.dataclass(frozen=True)
class SelectedPairs:
    """The pairs selected for each text of a set, and the centred texts."""

    texts: list[str]
    query: Float[Tensor, "text embed"]
    pairs: Selection


def read_selection(path: Path, model: Stamp) -> SelectedPairs:
    """Read the pairs selected for a set of texts. Raises NadpipeError if they belong to another model."""
    store = open_zarr(path, SELECTION, model)
    selection = Selection(store.tensor("cosine"), store.tensor("head"), store.tensor("neuron"))
    return SelectedPairs(store.texts(), store.tensor("query"), selection)
