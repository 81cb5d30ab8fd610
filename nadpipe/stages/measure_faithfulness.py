"""Measure whether a concept depends on its pairs: how ablating them changes its score and those of the other concepts."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from sklearn.metrics import roc_auc_score
from torch import Tensor

from nadpipe.circuit import ablation
from nadpipe.progress import track
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.analyses import FAITHFULNESS
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.kinds.units import DIRECTIONS
from nadpipe.store.manifest import read_images
from nadpipe.store.readout import read_readout
from nadpipe.store.selection import SelectedPairs, read_selection
from nadpipe.store.shards import blocks, count_blocks, open_shards
from nadpipe.store.tables import write_csv

_HIGHEST = 0.1  # share of the images, those with the highest score, over which changes are measured
_INTACT = ""  # name of the run without ablation


def measure_faithfulness(
    images: Path,
    contributions: tuple[Path, ...],
    selection: Path,
    directions: Path,
    readout: Path,
    output: Path,
    dataset: str = "monitoring",
    draws: int = 5,
    seed: int = 0,
) -> None:
    """Write the change of every concept's score when the pairs of each concept are set to their mean.

    Args:
        images: Manifest. A 0/1 column named like a concept is its label.
        contributions: Contributions of all shards.
        selection: Selected pairs of the concepts.
        directions: Pair directions, for the pairs' means over the discovery images.
        readout: Exported readout.
        output: CSV table, one row per ablated and measured concept.
        dataset: Name of the data set in the table.
        draws: Number of random selections of as many pairs, as controls.
        seed: Seed of the random selections.
    """
    weights, model = read_readout(readout)
    selected = read_selection(selection, model)
    mean = open_zarr(directions, DIRECTIONS["pair"], model).tensor("coefficient_mean")
    kept = _kept_pairs(selected, draws, seed, mean.shape)
    stores = open_shards(contributions, CONTRIBUTIONS, model)
    batches: dict[str, list[Tensor]] = {name: [] for name in kept}
    image_ids = []
    views = blocks(stores, "coefficient", "embedding", "image_id")
    for coefficient, embedding, image_id in track(views, "ablating concepts", "block", count_blocks(stores, "coefficient")):
        for name, mask in kept.items():
            rebuilt = ablation.keep_pairs(coefficient.float(), mean, mask, weights)
            batches[name].append(rebuilt @ selected.query.T / embedding.norm(dim=1, keepdim=True))
        image_ids.append(image_id)
    manifest = read_images(images).set_index("image_id").loc[torch.cat(image_ids).numpy()]
    scores = {name: torch.cat(batch).numpy() for name, batch in batches.items()}
    rows = [
        {"dataset": dataset, "ablated": ablated, "measured": measured, "k": selected.pairs.head.shape[1]}
        | _effect(scores[_INTACT][:, concept], scores[ablated][:, concept], manifest.get(measured))
        for ablated in kept
        if ablated != _INTACT
        for concept, measured in enumerate(selected.texts)
    ]
    write_csv(output, FAITHFULNESS, pd.DataFrame(rows))


def _kept_pairs(selected: SelectedPairs, draws: int, seed: int, shape: torch.Size) -> dict[str, Bool[Tensor, "head neuron"]]:
    """Return masks of the pairs that are kept: all, all but each concept's, and all but as many random ones."""
    heads, neurons = shape
    rng = np.random.default_rng(seed)
    ablated = dict(zip(selected.texts, selected.pairs.head * neurons + selected.pairs.neuron, strict=True))
    count = selected.pairs.head.shape[1]
    ablated |= {f"random {draw}": torch.from_numpy(rng.permutation(heads * neurons)[:count]) for draw in range(1, draws + 1)}
    kept = {_INTACT: torch.ones(shape, dtype=torch.bool)}
    for name, pairs in ablated.items():
        kept[name] = torch.ones(heads * neurons, dtype=torch.bool).index_fill_(0, pairs, False).reshape(shape)
    return kept


def _effect(
    before: Float[np.ndarray, " image"], after: Float[np.ndarray, " image"], label: pd.Series | None
) -> dict[str, float]:
    """Measure the change of a score over the images where it is highest, and how well it separates labels."""
    highest = np.argsort(-before, kind="stable")[: max(1, round(_HIGHEST * len(before)))]
    spread = before.std() or np.nan
    return {
        "change": float((after - before)[highest].mean() / spread),
        "spread_kept": float(after.std() / spread),
        "auroc": _auroc(label, before),
        "auroc_ablated": _auroc(label, after),
        "images": len(before),
    }


def _auroc(label: pd.Series | None, score: Float[np.ndarray, " image"]) -> float:
    """Compute the AUROC of a score for a label; NaN without a label of two values."""
    if label is None or label.nunique() != 2:
        return float("nan")
    return float(roc_auc_score(label, score))
