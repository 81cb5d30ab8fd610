"""Measure how many directions a unit needs: zero-shot accuracy if each unit writes only its mean and its first directions.

Source: Bu & Gandelsman, arXiv 2509.19943, who find that one direction approximates a pair, but neither a neuron nor a head:
their reconstruct.py --pcs_paths (github.com/edmundbu/clip-neur-attn-decomposition, cc5abfd).
"""

from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from nadpipe.circuit import ablation
from nadpipe.circuit.readout import sum_pairs, write_vectors
from nadpipe.circuit.unit_kinds import UNITS
from nadpipe.data.labelled import Labelled, read_labelled
from nadpipe.progress import track
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.analyses import RECONSTRUCTION
from nadpipe.store.kinds.units import DIRECTIONS
from nadpipe.store.pairs import open_pair_directions
from nadpipe.store.readout import read_readout
from nadpipe.store.tables import write_csv


def measure_reconstruction(
    images: Path,
    contributions: tuple[Path, ...],
    labels: Path,
    pair_directions: Path,
    neuron_directions: Path,
    head_directions: Path,
    readout: Path,
    output: Path,
    dataset: str = "monitoring",
    most: int = 1000,
    confidence: float = 0.95,
) -> None:
    """Write zero-shot accuracy, average precision and error per kind of unit and number of directions, 0 to all fitted.

    Args:
        images: Manifest with labels.
        contributions: Contributions of all shards.
        labels: Embedded labels.
        pair_directions: Directions of the pairs, one each.
        neuron_directions: Directions of the neurons.
        head_directions: Directions of the heads.
        readout: Exported readout.
        output: CSV table, one row per kind of unit and number of directions.
        dataset: Name of the data set in the table.
        most: Largest number of images, evenly spaced.
        confidence: Confidence of the intervals.
    """
    weights, model = read_readout(readout)
    labelled = read_labelled(images, contributions, labels, model, most)
    pairs = open_pair_directions(pair_directions, weights, model)
    mean = pairs.store.tensor("coefficient_mean")
    neuron_direction = open_zarr(neuron_directions, DIRECTIONS["neuron"], model).tensor("direction")
    head_direction = open_zarr(head_directions, DIRECTIONS["head"], model).tensor("direction")
    base = sum_pairs(mean[None], weights)
    written = {
        "pair": torch.zeros(1, *labelled.embedding.shape),
        "head": torch.zeros(head_direction.shape[1], *labelled.embedding.shape),
    }
    coordinate = torch.zeros(len(labelled.label), *neuron_direction.shape[:2])
    for head in track(range(weights.heads), "rebuilding embeddings", "head"):
        centred = labelled.coefficient(head) - mean[head]
        write = write_vectors(weights, head)
        pair_direction = pairs.direction(head)[:, None]
        written["pair"] += ablation.decode(ablation.coordinates(centred, write, pair_direction), pair_direction)
        coordinate += ablation.coordinates(centred, write, neuron_direction)
        shared = head_direction[head].expand(weights.neurons, -1, -1)
        written["head"] += ablation.decode(ablation.coordinates(centred, write, shared), shared)
    written["neuron"] = ablation.decode(coordinate, neuron_direction)
    table = pd.DataFrame(_rows(labelled, base, written, confidence)).assign(dataset=dataset)
    write_csv(output, RECONSTRUCTION, table)


def _rows(
    labelled: Labelled,
    base: Float[Tensor, "1 embed"],
    written: dict[str, Float[Tensor, "component image embed"]],
    confidence: float,
) -> list[dict]:
    """Return one row per kind of unit and number of directions. With 0 directions, every unit writes only its mean."""
    rows = []
    for unit in UNITS:
        for components, deviation in enumerate([torch.zeros_like(written[unit][0]), *written[unit]]):
            rows.append({"unit": unit, "components": components} | labelled.fidelity(base + deviation, confidence))
    return rows
