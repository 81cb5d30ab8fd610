"""Name units with texts: the nearest ones, and a sparse code of each direction."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nadpipe.circuit import naming
from nadpipe.circuit.pursuit import Strongest, matching_pursuit
from nadpipe.circuit.unit_kinds import UNITS, UnitName
from nadpipe.progress import track
from nadpipe.store.arrays import ZarrStore, open_zarr
from nadpipe.store.kinds.texts import TEXT
from nadpipe.store.kinds.units import ASSIGNMENTS, DIRECTIONS
from nadpipe.store.pairs import PairDirections
from nadpipe.store.readout import read_readout
from nadpipe.store.tables import create_parquet
from nadpipe.towers.devices import find_device

_SIGNALS_AT_ONCE = 512
_RULES = ["nearest", "sparse"]


def assign_texts(
    unit: UnitName,
    directions: Path,
    dictionary: Path,
    readout: Path,
    output: Path,
    nearest: int = 5,
    atoms: int = 64,
    sparse_share: float = 1.0,
    device: str = "cpu",
) -> None:
    """Write the texts of each unit's (first) direction. A unit with a zero direction has none.

    Args:
        unit: Kind of unit.
        directions: Directions of the units.
        dictionary: Embedded dictionary.
        readout: Exported readout.
        output: Parquet table.
        nearest: Number of texts by cosine.
        atoms: Number of texts of the sparse code.
        sparse_share: Share of the units that get a sparse code, those with the largest std_norm; 1 for all.
        device: cpu, auto, cuda, cuda:1, ….
    """
    weights, model = read_readout(readout)
    store = open_zarr(directions, DIRECTIONS[unit], model)
    text_store = open_zarr(dictionary, TEXT, model)
    text_names = pd.Index(text_store.texts(), dtype=object)
    torch_device = find_device(device)
    embedding = text_store.tensor("embedding").to(torch_device)
    atom = naming.centre(embedding, embedding)
    strongest = Strongest(atom)
    coded = _largest(store.read("std_norm"), sparse_share)
    batches = _pair_signals(PairDirections(store, weights)) if UNITS[unit].rank_one else _subspace_signals(unit, store)
    with create_parquet(output, ASSIGNMENTS[unit], model.made_by(__name__)) as add:
        for index, signal in batches:
            signal = signal.to(torch_device)
            cosine, text = naming.nearest(signal, atom, nearest)
            tables = [_rows(index, "nearest", text, cosine, cosine.square(), text_names)]
            has_code = coded[tuple(index.values())]
            if has_code.any():
                code = matching_pursuit(signal[torch.from_numpy(has_code).to(torch_device)], atom, atoms, strongest)
                coded_index = {name: values[has_code] for name, values in index.items()}
                tables.append(_rows(coded_index, "sparse", code.atom, code.weight, code.explained, text_names))
            rows = pd.concat(tables).sort_values([*index, "kind", "rank"], kind="stable", ignore_index=True)
            add(rows.assign(text=rows["text"].cat.remove_unused_categories()))


def _largest(norm: Float[np.ndarray, "*unit"], share: float) -> Bool[np.ndarray, "*unit"]:
    """Return a mask of the given share of the units, those with the largest norm. Of equal units, the first is included."""
    order = np.argsort(-norm, axis=None, kind="stable")[: math.ceil(share * norm.size)]
    mask = np.zeros(norm.size, dtype=bool)
    mask[order] = True
    return mask.reshape(norm.shape)


Signals = Iterator[tuple[dict[str, np.ndarray], Tensor]]


def _pair_signals(pairs: PairDirections) -> Signals:
    """Yield nonzero directions of pairs in batches, possibly empty, with their heads and neurons."""
    for head in track(range(pairs.readout.heads), "naming pairs", "head"):
        for start, signals in _split(pairs.direction(head)):
            nonzero = signals.norm(dim=1) > 0
            neuron = start + torch.arange(len(signals))[nonzero].numpy()
            yield {"head": np.full(len(neuron), head), "neuron": neuron}, signals[nonzero]


def _subspace_signals(unit: UnitName, store: ZarrStore) -> Signals:
    """Yield nonzero first directions of neurons or heads in batches, possibly empty, with their indices."""
    first = store.tensor("direction", (slice(None), 0))
    for start, signals in track(list(_split(first)), f"naming {unit}s", "batch"):
        nonzero = signals.norm(dim=1) > 0
        yield {unit: start + torch.arange(len(signals))[nonzero].numpy()}, signals[nonzero]


def _split(signals: Float[Tensor, "unit embed"]) -> Iterator[tuple[int, Float[Tensor, "batch embed"]]]:
    for start in range(0, len(signals), _SIGNALS_AT_ONCE):
        yield start, signals[start : start + _SIGNALS_AT_ONCE]


def _rows(
    index: dict[str, np.ndarray],
    rule: str,
    text: Int[Tensor, "unit rank"],
    weight: Float[Tensor, "unit rank"],
    explained: Float[Tensor, "unit rank"],
    text_names: pd.Index,
) -> pd.DataFrame:
    """Return one row per unit and text; texts with a negative index are missing."""
    units, ranks = text.shape
    flat = text.flatten().cpu().numpy()
    table = pd.DataFrame(
        {
            **{name: np.repeat(values, ranks) for name, values in index.items()},
            "kind": pd.Categorical.from_codes(np.full(units * ranks, _RULES.index(rule)), _RULES),
            "rank": np.tile(np.arange(1, ranks + 1), units),
            "text": pd.Categorical.from_codes(flat, text_names),
            "weight": weight.flatten().cpu().numpy(),
            "explained": explained.flatten().cpu().numpy(),
        }
    )
    return table[flat >= 0]
