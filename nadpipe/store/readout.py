"""The exported readout: all that stages need of a model once features are recorded."""

from pathlib import Path

from nadpipe.circuit.readout import Readout
from nadpipe.store.arrays import ZarrStore, open_zarr
from nadpipe.store.kinds.model import READOUT
from nadpipe.store.stamp import Stamp


def read_readout(path: Path) -> tuple[Readout, Stamp]:
    """Read a readout and the stamp of its model."""
    store = open_zarr(path, READOUT)
    return load_readout(store), store.stamp


def load_readout(store: ZarrStore) -> Readout:
    """Load the weights of an open store."""
    output = store.tensor("output").transpose(0, 1).contiguous()  # W_O side by side, so that joint_output is a view
    return Readout(
        value=store.tensor("value"),
        value_bias=store.tensor("value_bias"),
        output=output.transpose(0, 1),
        output_bias=store.tensor("output_bias"),
        layer=store.tensor("layer"),
    )
