"""Whether the pairs that a concept names carry it: what taking them away does to that concept and to the others."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from nadpipe import ablation, plots
from nadpipe.artifacts import open_zarr, read_images, whole, write_csv
from nadpipe.inputs import Chosen, blocks, count_blocks, open_shards, read_pool, read_selection
from nadpipe.progress import track

_HIGHEST = 0.1  # share of the images, those with the highest score, that a change is measured on


def measure_faithfulness(
    images: Path,
    contributions: tuple[Path, ...],
    selection: Path,
    directions: Path,
    attnpool_store: Path,
    output: Path,
    output_plot: Path,
    dataset: str = "monitoring",
    draws: int = 5,
    seed: int = 0,
) -> None:
    """Write, for every two concepts, what the second one's score loses when the first one's pairs are at their mean.

    Args:
        images: Manifest; a 0/1 column named as a concept is its label.
        contributions: All shards of the data set's contributions.
        selection: Selected pairs of the concepts.
        directions: Pair directions, for the pairs' means over the discovery images.
        attnpool_store: Exported attention pool.
        output: CSV table, one row an ablated and a measured concept.
        output_plot: PNG, the matrix.
        dataset: Name of the data set in the table.
        draws: Random choices of as many pairs, as a control.
        seed: Of the random choices.
    """
    pool, model = read_pool(attnpool_store)
    chosen = read_selection(selection, model)
    mean = torch.from_numpy(open_zarr(directions, "pair directions", model)["coefficient_mean"][:])
    kept = _without(chosen, draws, seed, mean.shape)
    stores = open_shards(contributions, "contributions", model)
    scores: dict[str, list[torch.Tensor]] = {name: [] for name in kept}
    image_id = []
    names = ("coefficient", "embedding", "image_id")
    for coefficient, embedding, ids in track(
        blocks(stores, *names), "ablating concepts", "block", count_blocks(stores, "coefficient")
    ):
        for name, mask in kept.items():
            rebuilt = ablation.keep_pairs(coefficient.float(), mean, mask, pool)
            scores[name].append(rebuilt @ chosen.query.T / embedding.norm(dim=1, keepdim=True))
        image_id.append(ids)
    manifest = read_images(images).set_index("image_id").loc[torch.cat(image_id).numpy()]
    found = {name: torch.cat(parts).numpy() for name, parts in scores.items()}
    rows = [
        {"dataset": dataset, "ablated": ablated, "measured": measured, "k": chosen.pairs.head.shape[1]}
        | _effect(found[_NONE][:, at], found[ablated][:, at], manifest.get(measured))
        for ablated in kept
        if ablated != _NONE
        for at, measured in enumerate(chosen.texts)
    ]
    table = pd.DataFrame(rows)
    write_csv(output, "faithfulness", table)
    with whole(output_plot) as partial:
        plots.save(plots.ablation_matrix(table), partial)


_NONE = ""  # nothing is taken away


def _without(chosen: Chosen, draws: int, seed: int, shape: torch.Size) -> dict[str, torch.Tensor]:
    """Masks of the pairs that stay: all of them, without each concept's, without as many random ones."""
    heads, neurons = shape
    rng = np.random.default_rng(seed)
    gone = dict(zip(chosen.texts, chosen.pairs.head * neurons + chosen.pairs.neuron, strict=True))
    count = chosen.pairs.head.shape[1]
    gone |= {f"random {draw}": torch.from_numpy(rng.permutation(heads * neurons)[:count]) for draw in range(1, draws + 1)}
    kept = {_NONE: torch.ones(shape, dtype=torch.bool)}
    for name, pairs in gone.items():
        kept[name] = torch.ones(heads * neurons, dtype=torch.bool).index_fill_(0, pairs, False).reshape(shape)
    return kept


def _effect(before: np.ndarray, after: np.ndarray, label: pd.Series | None) -> dict[str, float]:
    """What a concept's score loses over its own images, and how well it still tells them apart."""
    own = np.argsort(-before, kind="stable")[: max(1, round(_HIGHEST * len(before)))]
    spread = before.std() or np.nan
    return {
        "change": float((after - before)[own].mean() / spread),
        "spread_kept": float(after.std() / spread),
        "auroc": _auroc(label, before),
        "auroc_ablated": _auroc(label, after),
        "images": len(before),
    }


def _auroc(label: pd.Series | None, score: np.ndarray) -> float:
    """How well a score tells images with the label from those without; NaN where there is no label or only one value."""
    if label is None or label.nunique() != 2:
        return float("nan")
    return float(roc_auc_score(label, score))
