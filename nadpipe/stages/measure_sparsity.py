"""How few pairs, and how few neurons, carry what the model knows: zero-shot accuracy with all others at their mean.

Source: Bu & Gandelsman, arXiv 2509.19943, that only a sparse set of pairs contributes significantly to the output; their
get_masks.py and ablation.py (github.com/edmundbu/clip-neur-attn-decomposition, cc5abfd), which rank by the mean norm of the
top images (`top_norm`), where this ranks by the root mean square over all images (`std_norm`).
"""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from nadpipe import ablation, plots
from nadpipe.artifacts import open_zarr, whole, write_csv
from nadpipe.inputs import read_pool
from nadpipe.labelled import read_labelled
from nadpipe.progress import track


def measure_sparsity(
    images: Path,
    contributions: tuple[Path, ...],
    labels: Path,
    pair_directions: Path,
    neuron_directions: Path,
    attnpool_store: Path,
    output: Path,
    output_plot: Path,
    dataset: str = "monitoring",
    shares: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0),
    draws: int = 5,
    most: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> None:
    """Write zero-shot accuracy against the share of pairs, or of neurons, that is kept: the largest by contribution, random
    ones, the smallest.

    Args:
        images: Manifest with labels.
        contributions: All shards of the data set's contributions.
        labels: Embedded labels.
        pair_directions: Directions of the pairs, for their means and norms over the discovery images.
        neuron_directions: Directions of the neurons, for their norms.
        attnpool_store: Exported attention pool.
        output: CSV table, one row a unit, share and way of choosing.
        output_plot: PNG.
        dataset: Name of the data set in the table.
        shares: Shares of the units to keep, 0 to 1.
        draws: Random choices of each share.
        most: Images to measure on, evenly spread.
        confidence: Of the intervals.
        seed: Of the random choices.
    """
    pool, model = read_pool(attnpool_store)
    pairs, neurons = (
        open_zarr(pair_directions, "pair directions", model),
        open_zarr(neuron_directions, "neuron directions", model),
    )
    mean = torch.from_numpy(pairs["coefficient_mean"][:])
    norms = {unit: store["std_norm"][:].astype(float) for unit, store in (("pair", pairs), ("neuron", neurons))}
    kept = {}
    for unit, norm in norms.items():
        rng = np.random.default_rng(seed)
        order = ablation.rank_units(norm)
        orders = {("top", 0): order, ("bottom", 0): order[::-1]}
        orders |= {("random", draw): rng.permutation(order) for draw in range(1, draws + 1)}
        for (way, draw), ranked in orders.items():
            for share in sorted(shares):
                count = max(1, round(share * norm.size))
                kept[unit, way, draw, share] = ablation.chosen_units(ranked, count, norm.shape)
    seen = read_labelled(images, contributions, labels, model, most)
    rebuilt: dict[tuple, list[torch.Tensor]] = {key: [] for key in kept}
    for block in track(seen.blocks(), "ablating pairs", "block"):
        for key, mask in kept.items():
            rebuilt[key].append(ablation.keep_pairs(block, mean, mask.expand(mean.shape), pool))
    rows = []
    for (unit, way, draw, share), mask in kept.items():
        found = ablation.fidelity(torch.cat(rebuilt[unit, way, draw, share]), seen.embedding, seen.text, seen.label, confidence)
        norm = norms[unit]
        about = {
            "dataset": dataset,
            "unit": unit,
            "kept": way,
            "draw": draw,
            "share": share,
            "pairs": int(mask.expand(mean.shape).sum()),
            "energy": float((norm[mask.numpy()] ** 2).sum() / (norm**2).sum()),
        }
        rows.append(about | dataclasses.asdict(found) | {"images": len(seen.label), "classes": len(seen.text)})
    table = pd.DataFrame(rows)
    write_csv(output, "sparsity", table)
    with whole(output_plot) as partial:
        named = table.assign(kept=table["kept"] + " " + table["unit"] + "s")
        plots.save(plots.accuracy_curves(named, "share", "kept", "share of units kept, others at their mean"), partial)
