"""How many directions a unit needs: zero-shot accuracy when each unit writes its mean and its first directions alone.

Source: Bu & Gandelsman, arXiv 2509.19943, that a pair, unlike a neuron or a head, is approximated by a single direction;
their reconstruct.py --pcs_paths (github.com/edmundbu/clip-neur-attn-decomposition, cc5abfd).
"""

import dataclasses
from pathlib import Path

import pandas as pd
import torch

from nadpipe import ablation, attnpool, plots
from nadpipe.artifacts import open_zarr, whole, write_csv
from nadpipe.inputs import read_pool
from nadpipe.labelled import Labelled, read_labelled
from nadpipe.progress import track


def measure_reconstruction(
    images: Path,
    contributions: tuple[Path, ...],
    labels: Path,
    pair_directions: Path,
    neuron_directions: Path,
    head_directions: Path,
    attnpool_store: Path,
    output: Path,
    output_plot: Path,
    dataset: str = "monitoring",
    most: int = 1000,
    confidence: float = 0.95,
) -> None:
    """Write zero-shot accuracy and error by unit (pair, neuron, head) and number of directions, 0 to all that were fitted.

    Args:
        images: Manifest with labels.
        contributions: All shards of the data set's contributions.
        labels: Embedded labels.
        pair_directions: Directions of the pairs, one each.
        neuron_directions: Directions of the neurons.
        head_directions: Directions of the heads.
        attnpool_store: Exported attention pool.
        output: CSV table, one row a unit and number of directions.
        output_plot: PNG.
        dataset: Name of the data set in the table.
        most: Images to measure on, evenly spread.
        confidence: Of the intervals.
    """
    pool, model = read_pool(attnpool_store)
    seen = read_labelled(images, contributions, labels, model, most)
    pairs = open_zarr(pair_directions, "pair directions", model)
    mean = torch.from_numpy(pairs["coefficient_mean"][:])
    of_neuron = torch.from_numpy(open_zarr(neuron_directions, "neuron directions", model)["direction"][:])
    of_head = torch.from_numpy(open_zarr(head_directions, "head directions", model)["direction"][:])
    base = attnpool.sum_pairs(mean[None], pool)
    added = {"pair": torch.zeros(1, *seen.embedding.shape), "head": torch.zeros(of_head.shape[1], *seen.embedding.shape)}
    coordinate = torch.zeros(len(seen.label), *of_neuron.shape[:2])
    for head in track(range(pool.heads), "rebuilding embeddings", "head"):
        centred = seen.coefficient(head) - mean[head]
        write = attnpool.write_vectors(pool, head)
        own = torch.from_numpy(pairs["direction"][head])[:, None]
        added["pair"] += ablation.decode(ablation.coordinates(centred, write, own), own)
        coordinate += ablation.coordinates(centred, write, of_neuron)
        shared = of_head[head].expand(pool.neurons, -1, -1)
        added["head"] += ablation.decode(ablation.coordinates(centred, write, shared), shared)
    added["neuron"] = ablation.decode(coordinate, of_neuron)
    table = pd.DataFrame(_rows(seen, base, added, confidence)).assign(dataset=dataset)
    write_csv(output, "reconstruction", table)
    with whole(output_plot) as partial:
        shown = table[table["components"] > 0]
        plots.save(plots.accuracy_curves(shown, "components", "unit", "directions kept of each unit", log=False), partial)


def _rows(seen: Labelled, base: torch.Tensor, added: dict[str, torch.Tensor], confidence: float) -> list[dict]:
    """One row a unit and number of directions; none at all is the mean alone."""
    rows = []
    for unit in ("pair", "neuron", "head"):
        for components, part in enumerate([torch.zeros_like(added[unit][0]), *added[unit]]):
            found = ablation.fidelity(base + part, seen.embedding, seen.text, seen.label, confidence)
            about = {"unit": unit, "components": components, "images": len(seen.label), "classes": len(seen.text)}
            rows.append(about | dataclasses.asdict(found))
    return rows
