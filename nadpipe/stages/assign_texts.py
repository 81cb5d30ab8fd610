"""Name units with texts: the nearest ones, and a sparse code of each direction."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nadpipe import texts
from nadpipe.artifacts import ZarrStore, open_zarr, write_parquet
from nadpipe.fingerprint import code_fingerprint
from nadpipe.inputs import read_pool
from nadpipe.progress import track

_SIGNALS_AT_ONCE = 256


def assign_texts(
    unit: Literal["pair", "neuron", "head"],
    directions: Path,
    dictionary: Path,
    attnpool_store: Path,
    output: Path,
    nearest: int = 5,
    atoms: int = 64,
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
    """
    _, model = read_pool(attnpool_store)
    store = open_zarr(directions, f"{unit} directions", model)
    words = open_zarr(dictionary, "text", model)
    names = np.array(words.texts(), dtype=object)
    embedding = torch.from_numpy(words["embedding"][:])
    atom = texts.centre(embedding, embedding)
    parts = []
    for index, direction in _signals(unit, store):
        cosine, at = texts.nearest(direction, atom, nearest)
        code = texts.matching_pursuit(direction, atom, atoms)
        parts += [
            _rows(index, "nearest", at, cosine, cosine.square(), names),
            _rows(index, "sparse", code.atom, code.weight, code.explained, names),
        ]
    stamp = dataclasses.replace(model, code=code_fingerprint(__name__))
    table = pd.concat(parts).sort_values([*index, "kind", "rank"], kind="stable", ignore_index=True)
    write_parquet(output, f"{unit} assignments", table, stamp)


def _signals(unit: str, store: ZarrStore) -> Iterator[tuple[dict[str, np.ndarray], Tensor]]:
    """Directions that are not zero, some at a time, with the indices of their units."""
    direction = store["direction"]
    if unit == "pair":
        heads, neurons, _ = direction.shape
        for head in track(range(heads), "naming pairs", "head"):
            of_head = torch.from_numpy(direction[head])
            alive = of_head.norm(dim=1) > 0
            numbers = torch.arange(neurons)[alive]
            for part in range(0, len(numbers), _SIGNALS_AT_ONCE):
                chosen = numbers[part : part + _SIGNALS_AT_ONCE]
                yield {"head": np.full(len(chosen), head), "neuron": chosen.numpy()}, of_head[chosen]
        return
    for start in track(range(0, direction.shape[0], _SIGNALS_AT_ONCE), f"naming {unit}s", "part"):
        first = torch.from_numpy(direction[start : start + _SIGNALS_AT_ONCE, 0])
        alive = first.norm(dim=1) > 0
        yield {unit: start + torch.arange(len(first))[alive].numpy()}, first[alive]


def _rows(
    index: dict[str, np.ndarray], kind: str, at: Tensor, weight: Tensor, explained: Tensor, names: np.ndarray
) -> pd.DataFrame:
    units, ranks = at.shape
    table = pd.DataFrame(
        {
            **{name: np.repeat(values, ranks) for name, values in index.items()},
            "kind": kind,
            "rank": np.tile(np.arange(1, ranks + 1), units),
            "text": names[at.flatten().numpy()],
            "weight": weight.flatten().numpy(),
            "explained": explained.flatten().numpy(),
        }
    )
    return table[at.flatten().numpy() >= 0]
