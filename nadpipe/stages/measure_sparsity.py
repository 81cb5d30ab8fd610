"""How few pairs carry what the model knows: zero-shot accuracy with all others at their mean.

Source: Bu & Gandelsman, arXiv 2509.19943, that only a sparse set of pairs contributes significantly to the output.
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
    directions: Path,
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
    """Write zero-shot accuracy against the share of pairs that is kept: the largest by contribution, random ones, the smallest.

    Args:
        images: Manifest with labels.
        contributions: All shards of the data set's contributions.
        labels: Embedded labels.
        directions: Pair directions, for the pairs' means and norms over the discovery images.
        attnpool_store: Exported attention pool.
        output: CSV table, one row a share and way of choosing.
        output_plot: PNG.
        dataset: Name of the data set in the table.
        shares: Shares of the pairs to keep, 0 to 1.
        draws: Random choices of each share.
        most: Images to measure on, evenly spread.
        confidence: Of the intervals.
        seed: Of the random choices.
    """
    pool, model = read_pool(attnpool_store)
    store = open_zarr(directions, "pair directions", model)
    mean, norm = torch.from_numpy(store["coefficient_mean"][:]), store["std_norm"][:].astype(float)
    order = ablation.rank_pairs(norm)
    rng = np.random.default_rng(seed)
    orders = {("top", 0): order, ("bottom", 0): order[::-1]}
    orders |= {("random", draw): rng.permutation(order) for draw in range(1, draws + 1)}
    counts = {share: max(1, round(share * norm.size)) for share in sorted(shares)}
    kept = {
        (way, draw, share): ablation.chosen_pairs(ranked, count, norm.shape)
        for (way, draw), ranked in orders.items()
        for share, count in counts.items()
    }
    seen = read_labelled(images, contributions, labels, model, most)
    rebuilt: dict[tuple, list[torch.Tensor]] = {key: [] for key in kept}
    for block in track(seen.blocks(), "ablating pairs", "block"):
        for key, mask in kept.items():
            rebuilt[key].append(ablation.keep_pairs(block, mean, mask, pool))
    rows = []
    for (way, draw, share), mask in kept.items():
        found = ablation.fidelity(torch.cat(rebuilt[way, draw, share]), seen.embedding, seen.text, seen.label, confidence)
        energy = float((norm[mask.numpy()] ** 2).sum() / (norm**2).sum())
        about = {"dataset": dataset, "kept": way, "draw": draw, "share": share, "pairs": int(mask.sum()), "energy": energy}
        rows.append(about | dataclasses.asdict(found) | {"images": len(seen.label), "classes": len(seen.text)})
    table = pd.DataFrame(rows)
    write_csv(output, "sparsity", table)
    with whole(output_plot) as partial:
        plots.save(plots.accuracy_curves(table, "share", "kept", "share of pairs kept, others at their mean"), partial)
