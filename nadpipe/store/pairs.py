"""Directions of pairs, computed from stored signs and the readout."""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from nadpipe.circuit.directions import pair_directions
from nadpipe.circuit.readout import Readout
from nadpipe.store.arrays import ZarrStore, open_zarr
from nadpipe.store.kinds.units import DIRECTIONS
from nadpipe.store.stamp import Stamp


@dataclasses.dataclass(frozen=True)
class PairDirections:
    """Directions of all pairs: signs and norms from the store, write vectors from the readout."""

    store: ZarrStore
    readout: Readout

    def direction(self, head: int) -> Float[Tensor, "neuron embed"]:
        """Compute sign · w / ‖w‖ for the pairs of one head."""
        return pair_directions(self.readout, head, self.sign(head))

    def sign(self, head: int) -> Int[Tensor, " neuron"]:
        """Read the signs of the pairs of one head."""
        return self.store.tensor("sign", head)

    def norm(self, name: str) -> Float[np.ndarray, "head neuron"]:
        """Read one of the norms or moments of all pairs."""
        return np.asarray(self.store.read(name))


def open_pair_directions(path: Path, readout: Readout, model: Stamp) -> PairDirections:
    """Open the directions of pairs. Raises NadpipeError if they belong to another model."""
    return PairDirections(open_zarr(path, DIRECTIONS["pair"], model), readout)
