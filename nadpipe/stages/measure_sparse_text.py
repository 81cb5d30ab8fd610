"""How much of the model its texts describe: zero-shot accuracy when each unit writes along its sparse text code.

Source: Bu & Gandelsman, arXiv 2509.19943, where each pair is interpreted by associating its direction with text, with neurons
as the baseline; their reconstruct.py --decomposition_save_path (github.com/edmundbu/clip-neur-attn-decomposition, cc5abfd).
"""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nadpipe import ablation, attnpool, plots, texts
from nadpipe.artifacts import Stamp, ZarrStore, open_zarr, read_parquet, whole, write_csv
from nadpipe.errors import NadpipeError
from nadpipe.inputs import read_pool
from nadpipe.labelled import read_labelled
from nadpipe.progress import track

_UNITS = 256  # whose atoms are in memory at once


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
    attnpool_store: Path,
    output: Path,
    output_plot: Path,
    dataset: str = "monitoring",
    atoms: tuple[int, ...] = (1, 2, 4, 8, 16),
    most: int = 1000,
    confidence: float = 0.95,
) -> None:
    """Write zero-shot accuracy when every unit writes its mean and what it has along its first direction, with that direction
    as the best combination of the first texts of its sparse code; by unit (pair, neuron, head).

    Units without a code (assignments.sparse_share) stay at their mean; `coded` says how much of the energy the others have.

    Args:
        images: Manifest with labels.
        contributions: All shards of the data set's contributions.
        labels: Embedded labels.
        pair_directions: Directions of the pairs.
        neuron_directions: Directions of the neurons.
        head_directions: Directions of the heads.
        pair_assignments: Texts of the pairs.
        neuron_assignments: Texts of the neurons.
        head_assignments: Texts of the heads.
        dictionary: Embedded dictionary, that the codes are made of.
        attnpool_store: Exported attention pool.
        output: CSV table, one row a unit and number of atoms.
        output_plot: PNG.
        dataset: Name of the data set in the table.
        atoms: Numbers of texts; those beyond the length of the codes are left out.
        most: Images to measure on, evenly spread.
        confidence: Of the intervals.
    """
    pool, model = read_pool(attnpool_store)
    words = open_zarr(dictionary, "text", model)
    embedding = torch.from_numpy(words["embedding"][:])
    atom = texts.centre(embedding, embedding)
    position = pd.Series(range(len(embedding)), index=words.texts())
    files = {
        "pair": (pair_directions, pair_assignments),
        "neuron": (neuron_directions, neuron_assignments),
        "head": (head_directions, head_assignments),
    }
    stores = {unit: open_zarr(path, f"{unit} directions", model) for unit, (path, _) in files.items()}
    codes = {unit: _read_codes(path, unit, stores[unit], model, position) for unit, (_, path) in files.items()}
    counts = {unit: [count for count in sorted(atoms) if count <= code.shape[-1]] for unit, code in codes.items()}
    seen = read_labelled(images, contributions, labels, model, most)
    first = {unit: torch.from_numpy(stores[unit]["direction"][:, 0]) for unit in ("neuron", "head")}
    mean = torch.from_numpy(stores["pair"]["coefficient_mean"][:])
    added = {"pair": torch.zeros(len(counts["pair"]), *seen.embedding.shape)}
    along = {unit: torch.zeros(len(seen.label), len(direction)) for unit, direction in first.items()}
    for head in track(range(pool.heads), "rebuilding embeddings", "head"):
        centred = seen.coefficient(head) - mean[head]
        write = attnpool.write_vectors(pool, head)
        own = torch.from_numpy(stores["pair"]["direction"][head])
        of_pair = ablation.coordinates(centred, write, own[:, None])[..., 0]
        added["pair"] += _described(of_pair, own, codes["pair"][head], atom, counts["pair"])
        along["neuron"] += ablation.coordinates(centred, write, first["neuron"][:, None])[..., 0]
        along["head"][:, head] = centred @ (write @ first["head"][head])
    for unit, direction in first.items():
        added[unit] = _described(along[unit], direction, codes[unit], atom, counts[unit])
    base = attnpool.sum_pairs(mean[None], pool)
    rows = []
    for unit, parts in added.items():
        norm = stores[unit]["std_norm"][:].astype(float)
        coded = float((norm[(codes[unit] >= 0).any(-1)] ** 2).sum() / (norm**2).sum())
        for count, part in [(0, torch.zeros_like(seen.embedding)), *zip(counts[unit], parts, strict=True)]:
            found = ablation.fidelity(base + part, seen.embedding, seen.text, seen.label, confidence)
            about = {"dataset": dataset, "unit": unit, "atoms": count, "coded": coded}
            rows.append(about | dataclasses.asdict(found) | {"images": len(seen.label), "classes": len(seen.text)})
    table = pd.DataFrame(rows)
    write_csv(output, "sparse_text", table)
    with whole(output_plot) as partial:
        shown = table[table["atoms"] > 0]
        plots.save(plots.accuracy_curves(shown, "atoms", "unit", "texts in the code of each unit"), partial)


def _read_codes(path: Path, unit: str, store: ZarrStore, model: Stamp, position: pd.Series) -> Int[np.ndarray, "*unit rank"]:
    """The atoms of each unit's code in the order chosen, as positions in the dictionary; -1 behind its end."""
    code = read_parquet(path, f"{unit} assignments", model, filters=[("kind", "==", "sparse")])
    if code.empty:
        raise NadpipeError(f"{path}: no {unit} has a sparse code; raise assignments.sparse_share")
    own = np.full((*store["std_norm"].shape, int(code["rank"].max())), -1)
    axes = ("head", "neuron") if unit == "pair" else (unit,)
    own[(*(code[name] for name in axes), code["rank"] - 1)] = position.loc[code["text"].astype(str)]
    return own


def _described(
    along: Float[Tensor, "image unit"],
    direction: Float[Tensor, "unit embed"],
    code: Int[np.ndarray, "unit rank"],
    atom: Float[Tensor, "text embed"],
    counts: list[int],
) -> Float[Tensor, "count image embed"]:
    """What units write along their directions when these are made of the first atoms of their codes."""
    written = torch.zeros(len(counts), len(along), direction.shape[1])
    coded = np.flatnonzero((code >= 0).any(1))
    for part in np.split(coded, range(_UNITS, len(coded), _UNITS)):
        index = torch.from_numpy(code[part])
        own = torch.where((index >= 0)[..., None], atom[index.clamp(min=0)], 0)
        written += torch.einsum("vn,ano->avo", along[:, part], ablation.recode(direction[part], own, counts))
    return written
