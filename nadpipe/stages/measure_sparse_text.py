"""Measure how much of the model its texts describe: zero-shot accuracy if each unit writes along its sparse text code.

Source: Bu & Gandelsman, arXiv 2509.19943, who interpret each pair by associating its direction with text, with neurons as the
baseline: their reconstruct.py --decomposition_save_path (github.com/edmundbu/clip-neur-attn-decomposition, cc5abfd).
"""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nadpipe.circuit import ablation, naming
from nadpipe.circuit.readout import sum_pairs, write_vectors
from nadpipe.circuit.unit_kinds import SUBSPACES, UNITS, UnitName
from nadpipe.data.labelled import Labelled, read_labelled
from nadpipe.errors import NadpipeError
from nadpipe.progress import track
from nadpipe.store.arrays import ZarrStore, open_zarr
from nadpipe.store.kinds.analyses import SPARSE_TEXT
from nadpipe.store.kinds.texts import TEXT
from nadpipe.store.kinds.units import ASSIGNMENTS, DIRECTIONS
from nadpipe.store.pairs import PairDirections
from nadpipe.store.readout import read_readout
from nadpipe.store.stamp import Stamp
from nadpipe.store.tables import read_parquet, write_csv

_UNITS_AT_ONCE = 256  # units whose atoms are in memory at once


def measure_sparse_text(
    images: Path,
    contributions: tuple[Path, ...],
    labels: Path,
    pair_directions: Path,
    neuron_directions: Path,
    head_directions: Path,
    pair_assignments: Path,
    neuron_assignments: Path,
    head_assignments: Path,
    dictionary: Path,
    readout: Path,
    output: Path,
    dataset: str = "monitoring",
    atoms: tuple[int, ...] = (1, 2, 4, 8, 16),
    most: int = 1000,
    confidence: float = 0.95,
) -> None:
    """Write zero-shot accuracy per kind of unit and number of texts.

    Each unit writes its mean and its part along its first direction, but the direction is replaced by the best combination of
    the first texts of its sparse code. Units without a code (assignments.sparse_share) stay at their mean. The column `coded`
    holds the share of energy of the units that have one.

    Args:
        images: Manifest with labels.
        contributions: Contributions of all shards.
        labels: Embedded labels.
        pair_directions: Directions of the pairs.
        neuron_directions: Directions of the neurons.
        head_directions: Directions of the heads.
        pair_assignments: Texts of the pairs.
        neuron_assignments: Texts of the neurons.
        head_assignments: Texts of the heads.
        dictionary: Embedded dictionary of the codes.
        readout: Exported readout.
        output: CSV table, one row per kind of unit and number of atoms.
        dataset: Name of the data set in the table.
        atoms: Numbers of texts. Numbers beyond the length of the codes are skipped.
        most: Largest number of images, evenly spaced.
        confidence: Confidence of the intervals.
    """
    weights, model = read_readout(readout)
    text_store = open_zarr(dictionary, TEXT, model)
    embedding = text_store.tensor("embedding")
    atom = naming.centre(embedding, embedding)
    row_of_text = pd.Series(range(len(embedding)), index=text_store.texts())
    directions: dict[UnitName, Path] = {"pair": pair_directions, "neuron": neuron_directions, "head": head_directions}
    assignments: dict[UnitName, Path] = {"pair": pair_assignments, "neuron": neuron_assignments, "head": head_assignments}
    stores = {unit: open_zarr(path, DIRECTIONS[unit], model) for unit, path in directions.items()}
    codes = {unit: _read_codes(path, unit, stores[unit], model, row_of_text) for unit, path in assignments.items()}
    counts = {unit: [count for count in sorted(atoms) if count <= code.shape[-1]] for unit, code in codes.items()}
    labelled = read_labelled(images, contributions, labels, model, most)
    first = {unit: stores[unit].tensor("direction", (slice(None), 0)) for unit in SUBSPACES}
    mean, pairs = stores["pair"].tensor("coefficient_mean"), PairDirections(stores["pair"], weights)
    written: dict[UnitName, Tensor] = {"pair": torch.zeros(len(counts["pair"]), *labelled.embedding.shape)}
    along = {unit: torch.zeros(len(labelled.label), len(direction)) for unit, direction in first.items()}
    for head in track(range(weights.heads), "rebuilding embeddings", "head"):
        centred = labelled.coefficient(head) - mean[head]
        write, direction = write_vectors(weights, head), pairs.direction(head)
        pair_along = ablation.coordinates(centred, write, direction[:, None])[..., 0]
        written["pair"] += _write_texts(pair_along, direction, codes["pair"][head], atom, counts["pair"])
        along["neuron"] += ablation.coordinates(centred, write, first["neuron"][:, None])[..., 0]
        along["head"][:, head] = centred @ (write @ first["head"][head])
    for unit, direction in first.items():
        written[unit] = _write_texts(along[unit], direction, codes[unit], atom, counts[unit])
    base = sum_pairs(mean[None], weights)
    rows = []
    for unit, by_count in written.items():
        coded = _coded_share(stores[unit].read("std_norm").astype(float), codes[unit])
        key = {"dataset": dataset, "unit": unit, "coded": coded}
        for count, deviation in [(0, torch.zeros_like(labelled.embedding)), *zip(counts[unit], by_count, strict=True)]:
            rows.append(key | {"atoms": count} | _fidelity(base + deviation, labelled, confidence))
    write_csv(output, SPARSE_TEXT, pd.DataFrame(rows))


def _read_codes(
    path: Path, unit: UnitName, store: ZarrStore, model: Stamp, row_of_text: pd.Series
) -> Int[np.ndarray, "*unit rank"]:
    """Read the atoms of each unit's code in the order chosen, as rows of the dictionary; -1 after the end of a code.

    Raises NadpipeError if no unit has a code.
    """
    table = read_parquet(path, ASSIGNMENTS[unit], model, filters=[("kind", "==", "sparse")])
    if table.empty:
        raise NadpipeError(f"{path}: no {unit} has a sparse code; raise assignments.sparse_share")
    code = np.full((*store["std_norm"].shape, int(table["rank"].max())), -1)
    code[(*(table[name] for name in UNITS[unit].axes), table["rank"] - 1)] = row_of_text.loc[table["text"].astype(str)]
    return code


def _write_texts(
    along: Float[Tensor, "image unit"],
    direction: Float[Tensor, "unit embed"],
    code: Int[np.ndarray, "unit rank"],
    atom: Float[Tensor, "text embed"],
    counts: list[int],
) -> Float[Tensor, "count image embed"]:
    """Compute what units write if their directions are replaced by the first atoms of their codes."""
    written = torch.zeros(len(counts), len(along), direction.shape[1])
    coded = np.flatnonzero((code >= 0).any(1))
    for units in np.split(coded, range(_UNITS_AT_ONCE, len(coded), _UNITS_AT_ONCE)):
        index = torch.from_numpy(code[units])
        unit_atoms = torch.where((index >= 0)[..., None], atom[index.clamp(min=0)], 0)
        written += torch.einsum("vn,ano->avo", along[:, units], ablation.recode(direction[units], unit_atoms, counts))
    return written


def _coded_share(norm: Float[np.ndarray, "*unit"], code: Int[np.ndarray, "*unit rank"]) -> float:
    """Return the share of energy of the units that have a code."""
    return float((norm[(code >= 0).any(-1)] ** 2).sum() / (norm**2).sum())


def _fidelity(rebuilt: Float[Tensor, "image embed"], labelled: Labelled, confidence: float) -> dict[str, float]:
    fidelity = ablation.fidelity(rebuilt, labelled.embedding, labelled.text, labelled.label, confidence)
    return dataclasses.asdict(fidelity) | {"images": len(labelled.label), "classes": len(labelled.text)}
