"""The exported readout: the only weights of an image tower that stages need once features are stored."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nadpipe.circuit.readout import Readout
from nadpipe.store.arrays import ZarrStore, create_zarr, open_zarr
from nadpipe.store.kinds.model import READOUT
from nadpipe.store.stamp import Stamp

_ARRAYS = ("value", "value_bias", "output", "output_bias", "layer")


def write_readout(
    path: Path, readout: Readout, stamp: Stamp, attributes: Mapping[str, Any], attention: Mapping[str, Tensor] | None = None
) -> None:
    """Write a readout. `attention`: weights of the attention, for towers whose attention follows from the activations."""
    arrays = {name: getattr(readout, name) for name in _ARRAYS} | dict(attention or {})
    if readout.write is not None:
        arrays["write"] = readout.write
    sizes: dict[str, int] = {}
    for name, values in arrays.items():
        sizes |= dict(zip(READOUT.arrays[name].axes, values.shape, strict=True))
    omitted = [name for name in READOUT.arrays if name not in arrays]
    attributes = {**attributes, "scaled": readout.scaled}
    with create_zarr(path, READOUT, stamp, sizes, attributes=attributes, omit=omitted) as store:
        for name, values in arrays.items():
            store.write(name, values)


def read_readout(path: Path) -> tuple[Readout, Stamp]:
    """Read a readout and the stamp of its model."""
    store = open_zarr(path, READOUT)
    return load_readout(store), store.stamp


def load_readout(store: ZarrStore) -> Readout:
    """Load the weights of an open store."""
    output = store.tensor("output").transpose(0, 1).contiguous()  # the layout of W_O, so that joint_output copies nothing
    return Readout(
        value=store.tensor("value"),
        value_bias=store.tensor("value_bias"),
        output=output.transpose(0, 1),
        output_bias=store.tensor("output_bias"),
        layer=store.tensor("layer"),
        write=store.tensor("write") if "write" in store else None,
        scaled=bool(store.attributes["scaled"]),
    )
