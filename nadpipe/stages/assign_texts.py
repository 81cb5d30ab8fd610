"""Name units with texts: the nearest ones, and a sparse code of each direction."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nadpipe import texts
from nadpipe.artifacts import ZarrStore, create_parquet, open_zarr
from nadpipe.devices import find_device
from nadpipe.fingerprint import code_fingerprint
from nadpipe.inputs import read_pool
from nadpipe.progress import track

_SIGNALS_AT_ONCE = 512


def assign_texts(
    unit: Literal["pair", "neuron", "head"],
    directions: Path,
    dictionary: Path,
    attnpool_store: Path,
    output: Path,
    nearest: int = 5,
    atoms: int = 64,
    sparse_share: float = 1.0,
    device: str = "cpu",
) -> None:
    """Write the texts of each unit's (first) direction; a unit with a zero direction has none.

    Args:
        unit: pair, neuron or head.
        directions: Directions of the units.
        dictionary: Embedded dictionary.
        attnpool_store: Exported attention pool.
        output: Parquet table.
        nearest: Texts by cosine.
        atoms: Texts of the sparse code.
        sparse_share: Share of the units that get a sparse code, those of largest std_norm; 1 for all.
        device: cpu, auto, cuda, cuda:1, ….
    """
    _, model = read_pool(attnpool_store)
    store = open_zarr(directions, f"{unit} directions", model)
    words = open_zarr(dictionary, "text", model)
    names = pd.Index(words.texts(), dtype=object)
    where = find_device(device)
    embedding = torch.from_numpy(words["embedding"][:]).to(where)
    atom = texts.centre(embedding, embedding)
    strongest = texts.Strongest(atom)
    coded = _largest(store["std_norm"][:], sparse_share)
    stamp = dataclasses.replace(model, code=code_fingerprint(__name__))
    with create_parquet(output, f"{unit} assignments", stamp) as add:
        for index, direction in _signals(unit, store):
            direction = direction.to(where)
            cosine, at = texts.nearest(direction, atom, nearest)
            parts = [_rows(index, "nearest", at, cosine, cosine.square(), names)]
            sparse = coded[tuple(index.values())]
            if sparse.any():
                code = texts.matching_pursuit(direction[torch.from_numpy(sparse).to(where)], atom, atoms, strongest)
                of_coded = {name: values[sparse] for name, values in index.items()}
                parts.append(_rows(of_coded, "sparse", code.atom, code.weight, code.explained, names))
            rows = pd.concat(parts).sort_values([*index, "kind", "rank"], kind="stable", ignore_index=True)
            add(rows.assign(text=rows["text"].cat.remove_unused_categories()))


def _largest(norm: np.ndarray, share: float) -> np.ndarray:
    """Whether each unit is among this share of the units of largest norm; of equal ones the first."""
    order = np.argsort(-norm, axis=None, kind="stable")[: math.ceil(share * norm.size)]
    chosen = np.zeros(norm.size, dtype=bool)
    chosen[order] = True
    return chosen.reshape(norm.shape)


def _signals(unit: str, store: ZarrStore) -> Iterator[tuple[dict[str, np.ndarray], Tensor]]:
    """Directions that are not zero, some at a time, with the indices of their units; at least one, perhaps empty, batch."""
    direction = store["direction"]
    if unit == "pair":
        heads, neurons, _ = direction.shape
        for head in track(range(heads), "naming pairs", "head"):
            of_head = torch.from_numpy(direction[head])
            for start in range(0, neurons, _SIGNALS_AT_ONCE):
                part = of_head[start : start + _SIGNALS_AT_ONCE]
                alive = part.norm(dim=1) > 0
                neuron = start + torch.arange(len(part))[alive].numpy()
                yield {"head": np.full(len(neuron), head), "neuron": neuron}, part[alive]
        return
    for start in track(range(0, direction.shape[0], _SIGNALS_AT_ONCE), f"naming {unit}s", "part"):
        first = torch.from_numpy(direction[start : start + _SIGNALS_AT_ONCE, 0])
        alive = first.norm(dim=1) > 0
        yield {unit: start + torch.arange(len(first))[alive].numpy()}, first[alive]


def _rows(
    index: dict[str, np.ndarray], kind: str, at: Tensor, weight: Tensor, explained: Tensor, names: pd.Index
) -> pd.DataFrame:
    units, ranks = at.shape
    text = at.flatten().cpu().numpy()
    table = pd.DataFrame(
        {
            **{name: np.repeat(values, ranks) for name, values in index.items()},
            "kind": pd.Categorical.from_codes(np.full(units * ranks, _KINDS.index(kind)), _KINDS),
            "rank": np.tile(np.arange(1, ranks + 1), units),
            "text": pd.Categorical.from_codes(text, names),
            "weight": weight.flatten().cpu().numpy(),
            "explained": explained.flatten().cpu().numpy(),
        }
    )
    return table[text >= 0]


_KINDS = ["nearest", "sparse"]
