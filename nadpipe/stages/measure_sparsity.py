"""Measure sparsity: accuracy and precision if only some pairs, or some neurons, are kept and the others are set to their mean.

Source: Bu & Gandelsman, arXiv 2509.19943, who find that only a sparse set of pairs contributes significantly to the output.
Their get_masks.py and ablation.py (github.com/edmundbu/clip-neur-attn-decomposition, cc5abfd) rank units by the mean norm of
the top images (`top_norm`). This stage ranks them by the root mean square over all images (`std_norm`).
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from nadpipe.circuit import ablation
from nadpipe.data.labelled import read_labelled
from nadpipe.progress import track
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.analyses import SPARSITY
from nadpipe.store.kinds.units import DIRECTIONS
from nadpipe.store.readout import read_readout
from nadpipe.store.tables import write_csv


def measure_sparsity(
    images: Path,
    contributions: tuple[Path, ...],
    labels: Path,
    pair_directions: Path,
    neuron_directions: Path,
    readout: Path,
    output: Path,
    dataset: str = "monitoring",
    shares: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0),
    draws: int = 5,
    most: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> None:
    """Write zero-shot accuracy and average precision by the share of pairs, or of neurons, that is kept.

    The largest, the smallest and random units are kept. Shares that keep the same number of units have one row.

    Args:
        images: Manifest with labels.
        contributions: Contributions of all shards.
        labels: Embedded labels.
        pair_directions: Directions of the pairs, for their means and norms over the discovery images.
        neuron_directions: Directions of the neurons, for their norms.
        readout: Exported readout.
        output: CSV table, one row per kind of unit, share and order.
        dataset: Name of the data set in the table.
        shares: Shares of the units to keep, 0 to 1.
        draws: Number of random selections per share.
        most: Largest number of images, evenly spaced.
        confidence: Confidence of the intervals.
        seed: Seed of the random selections.
    """
    weights, model = read_readout(readout)
    pairs = open_zarr(pair_directions, DIRECTIONS["pair"], model)
    neurons = open_zarr(neuron_directions, DIRECTIONS["neuron"], model)
    mean = pairs.tensor("coefficient_mean")
    norms = {unit: store.read("std_norm").astype(float) for unit, store in (("pair", pairs), ("neuron", neurons))}
    kept = {}
    for unit, norm in norms.items():
        rng = np.random.default_rng(seed)
        order = ablation.rank_units(norm)
        counts = sorted({max(1, round(share * norm.size)) for share in shares})
        orders = {("top", 0): order, ("bottom", 0): order[::-1]}
        orders |= {("random", draw): rng.permutation(order) for draw in range(1, draws + 1)}
        for (kept_by, draw), ranked in orders.items():
            for count in counts:
                kept[unit, kept_by, draw, count] = ablation.select_units(ranked, count, norm.shape)
    labelled = read_labelled(images, contributions, labels, model, most)
    rebuilt: dict[tuple, list[torch.Tensor]] = {key: [] for key in kept}
    for block in track(labelled.blocks(), "ablating pairs", "block"):
        for key, mask in kept.items():
            rebuilt[key].append(ablation.keep_pairs(block, mean, mask.expand(mean.shape), weights))
    rows = []
    for (unit, kept_by, draw, count), mask in kept.items():
        norm = norms[unit]
        columns = {
            "dataset": dataset,
            "unit": unit,
            "kept": kept_by,
            "draw": draw,
            "share": count / norm.size,
            "pairs": int(mask.expand(mean.shape).sum()),
            "energy": float((norm[mask.numpy()] ** 2).sum() / (norm**2).sum()),
        }
        rows.append(columns | labelled.fidelity(torch.cat(rebuilt[unit, kept_by, draw, count]), confidence))
    write_csv(output, SPARSITY, pd.DataFrame(rows))
