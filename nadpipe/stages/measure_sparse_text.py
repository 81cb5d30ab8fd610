"""Measure how much of the model its texts describe: accuracy if each unit writes along its sparse text code.

Source: Bu & Gandelsman, arXiv 2509.19943, who interpret each pair by associating its direction with text, with neurons as the
baseline: their reconstruct.py --decomposition_save_path (github.com/edmundbu/clip-neur-attn-decomposition, cc5abfd).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nadpipe.circuit import ablation, naming
from nadpipe.circuit.pursuit import Strongest, matching_pursuit, random_atoms
from nadpipe.circuit.readout import sum_pairs, write_vectors
from nadpipe.circuit.unit_kinds import SUBSPACES, UNITS, UnitName
from nadpipe.data.labelled import read_labelled
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
_SIGNALS_AT_ONCE = 512  # directions per call of matching pursuit


@dataclasses.dataclass(frozen=True)
class _Codes:
    """Sparse codes of the units of one kind over one dictionary."""

    unit: UnitName
    dictionary: str  # texts or random
    draw: int  # number of the random dictionary, 0 for texts
    atom: Float[Tensor, "atom embed"]
    code: Int[np.ndarray, "*unit rank"]  # rows of `atom` in the order chosen; -1 after the end of a code

    @property
    def coded(self) -> Bool[np.ndarray, "*unit"]:
        """Return a mask of the units that have a code."""
        return self.code[..., 0] >= 0

    def counts(self, atoms: Sequence[int]) -> list[int]:
        """Return the numbers of atoms that do not exceed the length of the codes."""
        return [count for count in sorted(atoms) if count <= self.code.shape[-1]]

    def only(self, kept: Bool[np.ndarray, "*unit"]) -> "_Codes":
        """Return the codes of some of the units; the others have none."""
        return dataclasses.replace(self, code=np.where(kept[..., None], self.code, -1))


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
    control_units: int = 10_000,
    draws: int = 5,
    most: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> None:
    """Write zero-shot accuracy and average precision per kind of unit, dictionary and number of atoms.

    Each unit writes its mean and its part along its first direction, but the direction is replaced by the best combination of
    the first texts of its sparse code. Units without a code (assignments.sparse_share) stay at their mean. As a control, the
    same units get codes over random atoms; if more than `control_units` have a code, the table compares the largest of them.

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
        output: CSV table, one row per kind of unit, dictionary, draw and number of atoms.
        dataset: Name of the data set in the table.
        atoms: Numbers of atoms. Numbers beyond the length of the codes are skipped.
        control_units: Largest number of units of a kind that get codes over random atoms.
        draws: Number of random dictionaries.
        most: Largest number of images, evenly spaced.
        confidence: Confidence of the intervals.
        seed: Seed of the random atoms.
    """
    weights, model = read_readout(readout)
    text_store = open_zarr(dictionary, TEXT, model)
    embedding = text_store.tensor("embedding")
    atom = naming.centre(embedding, embedding)
    row_of_text = pd.Series(range(len(embedding)), index=text_store.texts())
    generator = torch.Generator().manual_seed(seed)
    drawn = [random_atoms(atom, generator) for _ in range(draws)]
    directions: dict[UnitName, Path] = {"pair": pair_directions, "neuron": neuron_directions, "head": head_directions}
    assignments: dict[UnitName, Path] = {"pair": pair_assignments, "neuron": neuron_assignments, "head": head_assignments}
    stores = {unit: open_zarr(path, DIRECTIONS[unit], model) for unit, path in directions.items()}
    pairs = PairDirections(stores["pair"], weights)
    first = {unit: stores[unit].tensor("direction", (slice(None), 0)) for unit in SUBSPACES}
    codes: list[_Codes] = []
    for unit, path in track(list(assignments.items()), "coding over random atoms", "kind of unit"):
        texts = _Codes(unit, "texts", 0, atom, _read_codes(path, unit, stores[unit], model, row_of_text, max(atoms)))
        compared = _largest(stores[unit].read("std_norm").astype(float), texts.coded, control_units)
        fewer = [texts.only(compared)] if compared.sum() < texts.coded.sum() else []
        signal = first[unit][torch.from_numpy(compared)] if unit in first else _pair_signals(pairs, compared)
        codes += [texts, *fewer, *(_pursue(signal, compared, texts, random, draw) for draw, random in enumerate(drawn, 1))]
    labelled = read_labelled(images, contributions, labels, model, most)
    mean = stores["pair"].tensor("coefficient_mean")
    written = [torch.zeros(len(code.counts(atoms)), *labelled.embedding.shape) for code in codes]
    along = {unit: torch.zeros(len(labelled.label), len(direction)) for unit, direction in first.items()}
    for head in track(range(weights.heads), "rebuilding embeddings", "head"):
        centred = labelled.coefficient(head) - mean[head]
        write, direction = write_vectors(weights, head), pairs.direction(head)
        pair_along = ablation.coordinates(centred, write, direction[:, None])[..., 0]
        for code, total in zip(codes, written, strict=True):
            if code.unit == "pair":
                total += _write_texts(pair_along, direction, code.code[head], code.atom, code.counts(atoms))
        along["neuron"] += ablation.coordinates(centred, write, first["neuron"][:, None])[..., 0]
        along["head"][:, head] = centred @ (write @ first["head"][head])
    for code, total in zip(codes, written, strict=True):
        if code.unit != "pair":
            total += _write_texts(along[code.unit], first[code.unit], code.code, code.atom, code.counts(atoms))
    base = sum_pairs(mean[None], weights)
    rows = []
    for code, by_count in zip(codes, written, strict=True):
        energy = stores[code.unit].read("std_norm").astype(float) ** 2
        share = float(energy[code.coded].sum() / energy.sum())
        key = {"dataset": dataset, "unit": code.unit, "dictionary": code.dictionary, "draw": code.draw}
        key |= {"units": int(code.coded.sum()), "coded": share}
        for count, deviation in zip([0, *code.counts(atoms)], [torch.zeros_like(by_count[0]), *by_count], strict=True):
            rows.append(key | {"atoms": count} | labelled.fidelity(base + deviation, confidence))
    write_csv(output, SPARSE_TEXT, pd.DataFrame(rows))


def _read_codes(
    path: Path, unit: UnitName, store: ZarrStore, model: Stamp, row_of_text: pd.Series, most: int
) -> Int[np.ndarray, "*unit rank"]:
    """Read the first atoms of each unit's code in the order chosen, as rows of the dictionary; -1 after the end of a code.

    most: number of atoms per unit. Raises NadpipeError if no unit has a code.
    """
    table = read_parquet(path, ASSIGNMENTS[unit], model, filters=[("kind", "==", "sparse"), ("rank", "<=", most)])
    if table.empty:
        raise NadpipeError(f"{path}: no {unit} has a sparse code; raise assignments.sparse_share")
    code = np.full((*store["std_norm"].shape, int(table["rank"].max())), -1)
    code[(*(table[name] for name in UNITS[unit].axes), table["rank"] - 1)] = row_of_text.loc[table["text"].astype(str)]
    return code


def _largest(norm: Float[np.ndarray, "*unit"], coded: Bool[np.ndarray, "*unit"], most: int) -> Bool[np.ndarray, "*unit"]:
    """Return a mask of the largest coded units, at most `most`."""
    order = ablation.rank_units(np.where(coded, norm, -1))
    return ablation.select_units(order, min(most, int(coded.sum())), norm.shape).numpy()


def _pair_signals(pairs: PairDirections, compared: Bool[np.ndarray, "head neuron"]) -> Float[Tensor, "compared embed"]:
    """Return the directions of some pairs, in the order of head and neuron."""
    return torch.cat([pairs.direction(head)[torch.from_numpy(kept)] for head, kept in enumerate(compared)])


def _pursue(
    signal: Float[Tensor, "compared embed"],
    compared: Bool[np.ndarray, "*unit"],
    texts: _Codes,
    atom: Float[Tensor, "atom embed"],
    draw: int,
) -> _Codes:
    """Return codes of some units over random atoms, as long as those over texts."""
    strongest, rank = Strongest(atom), texts.code.shape[-1]
    found = [matching_pursuit(batch, atom, rank, strongest).atom for batch in signal.split(_SIGNALS_AT_ONCE)]
    code = np.full(texts.code.shape, -1)
    code[compared] = torch.cat(found).numpy()
    return _Codes(texts.unit, "random", draw, atom, code)


def _write_texts(
    along: Float[Tensor, "image unit"],
    direction: Float[Tensor, "unit embed"],
    code: Int[np.ndarray, "unit rank"],
    atom: Float[Tensor, "atom embed"],
    counts: list[int],
) -> Float[Tensor, "count image embed"]:
    """Compute what units write if their directions are replaced by the first atoms of their codes."""
    written = torch.zeros(len(counts), len(along), direction.shape[1])
    coded = np.flatnonzero(code[:, 0] >= 0)
    for units in np.split(coded, range(_UNITS_AT_ONCE, len(coded), _UNITS_AT_ONCE)):
        index = torch.from_numpy(code[units])
        unit_atoms = torch.where((index >= 0)[..., None], atom[index.clamp(min=0)], 0)
        written += torch.einsum("vn,ano->avo", along[:, units], ablation.recode(direction[units], unit_atoms, counts))
    return written
