"""Measure whether a concept depends on some of its pairs: how ablating them changes its score and those of other concepts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nadpipe.circuit import ablation, naming
from nadpipe.circuit.controls import random_directions
from nadpipe.circuit.readout import Readout, write_vectors
from nadpipe.errors import NadpipeError
from nadpipe.progress import track
from nadpipe.store.arrays import ZarrStore, open_zarr
from nadpipe.store.kinds.analyses import FAITHFULNESS
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.kinds.texts import TEXT
from nadpipe.store.kinds.units import SELECTION
from nadpipe.store.manifest import read_images
from nadpipe.store.pairs import PairDirections, open_pair_directions
from nadpipe.store.readout import read_readout
from nadpipe.store.shards import head_coefficients, join, open_shards
from nadpipe.store.tables import write_csv

_HIGHEST = 0.1  # share of the images, those with the highest score


def measure_faithfulness(
    images: Path,
    contributions: tuple[Path, ...],
    discovery: tuple[Path, ...],
    selection: Path,
    dictionary: Path,
    directions: Path,
    readout: Path,
    output: Path,
    dataset: str = "monitoring",
    shares: tuple[float, ...] = (0.01, 0.1, 0.5),
    draws: int = 5,
    seed: int = 0,
) -> None:
    """Write the change of every concept's score when some pairs are set to their mean, with controls.

    Args:
        images: Manifest. A 0/1 column named like a concept is its label.
        contributions: Contributions of all shards.
        discovery: Contributions of all discovery shards, which rank the pairs by effect.
        selection: Selected pairs of the concepts.
        dictionary: Embedded dictionary, for random mixtures of texts.
        directions: Pair directions, for the pairs' means over the discovery images.
        readout: Exported readout.
        output: CSV table, one row per ablated and measured concept, rule and number of pairs.
        dataset: Name of the data set in the table.
        shares: Shares of all pairs to ablate by each rule.
        draws: Number of random directions, of random mixtures of texts and of random selections of pairs.
        seed: Seed of the controls.
    """
    weights, model = read_readout(readout)
    pairs = open_pair_directions(directions, weights, model)
    stores, discovered = (open_shards(paths, CONTRIBUTIONS, model) for paths in (contributions, discovery))
    selected, text = open_zarr(selection, SELECTION, model), open_zarr(dictionary, TEXT, model).tensor("embedding")
    concepts = selected.texts()
    controls = _controls(naming.centre(text, text), draws, seed)
    names, query = [*concepts, *controls], torch.cat([selected.tensor("query"), *controls.values()])
    along = torch.stack([write_vectors(weights, head) @ query.T for head in range(weights.heads)])
    ranks = _ranks(pairs, discovered, names, query, along) | _random_ranks(weights, draws, seed)
    selection_rule, k = selected.attributes["select_by"], selected["head"].shape[1]
    plan = _plan(ranks, concepts, selection_rule, k, shares, weights)
    measured = torch.tensor([names.index(name) for name in plan["measured"]])  # row of `query`
    embedding = torch.from_numpy(join(stores, "embedding")).float()
    norm = embedding.norm(dim=1, keepdim=True)
    before = (embedding @ query.T / norm)[:, measured]
    after = before - _removed(stores, pairs, along, measured, ranks, plan) / norm
    labels = _labels(images, join(stores, "image_id"), concepts)
    rows = [
        {"dataset": dataset} | row | _effect(before[:, index].numpy(), after[:, index].numpy(), labels.get(row["measured"]))
        for index, row in enumerate(plan.drop(columns="ranked").to_dict("records"))
    ]
    write_csv(output, FAITHFULNESS, pd.DataFrame(rows))


Ranks = dict[tuple[str, str], Int[np.ndarray, " pair"]]  # by rule and by what is ablated


def _controls(text: Float[Tensor, "text embed"], draws: int, seed: int) -> dict[str, Float[Tensor, "1 embed"]]:
    """Draw directions that mean nothing: isotropic ones, and random mixtures of texts."""
    kinds = {"random direction": torch.eye(text.shape[1]), "random mixture": text.T @ text}
    drawn = {kind: random_directions(draws, covariance, seed) for kind, covariance in kinds.items()}
    return {f"{kind} {draw + 1}": direction[draw, None] for kind, direction in drawn.items() for draw in range(draws)}


def _ranks(
    pairs: PairDirections,
    discovered: Sequence[ZarrStore],
    names: Sequence[str],
    query: Float[Tensor, "text embed"],
    along: Float[Tensor, "head neuron text"],
) -> Ranks:
    """Rank the pairs for every text by every rule."""
    score = torch.from_numpy(join(discovered, "embedding")).float() @ query.T
    heads = track(range(len(along)), "ranking pairs", "head")
    effect = np.stack([ablation.effects(head_coefficients(discovered, head), along[head], score).numpy() for head in heads])
    norm = pairs.norm("write_norm")[..., None]
    cosine = np.divide(along.numpy(), norm, out=np.zeros_like(effect), where=norm > 0)
    sign = pairs.store.read("sign")
    ranked = {name: ablation.rank_for_text(cosine[..., i], sign, effect[..., i]) for i, name in enumerate(names)}
    return {(rule, name): rank for name, rules in ranked.items() for rule, rank in rules.items()}


def _random_ranks(weights: Readout, draws: int, seed: int) -> Ranks:
    """Rank the pairs at random."""
    rng = np.random.default_rng(seed)
    return {("random", f"random pairs {draw}"): rng.permutation(weights.pairs) for draw in range(1, draws + 1)}


def _plan(
    ranks: Ranks, concepts: Sequence[str], selection_rule: str, k: int, shares: Sequence[float], weights: Readout
) -> pd.DataFrame:
    """Return one row per ablation and measured score. Column ranked: position in `ranks`.

    The score of a concept, or of a control, is measured after its own ablation by every rule and number of pairs. All concepts
    are measured after the ablation of random pairs, and after that of the pairs selected for each concept.
    """
    rows = []
    for ranked, (rule, ablated) in enumerate(ranks):
        step = weights.heads if rule == "neurons" else 1  # whole neurons
        counts = {max(1, round(share * weights.pairs / step)) * step for share in shares}
        own = concepts if rule == "random" else [ablated]
        rows += [(rule, ablated, measured, count, ranked) for count in sorted(counts) for measured in own]
        if rule in (selection_rule, "random"):
            every = concepts if ablated in concepts else own
            rows += [("selected", ablated, measured, k, ranked) for measured in every]
    return pd.DataFrame(rows, columns=["rule", "ablated", "measured", "k", "ranked"])


def _removed(
    stores: Sequence[ZarrStore],
    pairs: PairDirections,
    along: Float[Tensor, "head neuron text"],
    measured: Int[Tensor, " ablation"],
    ranks: Ranks,
    plan: pd.DataFrame,
) -> Float[Tensor, "image ablation"]:
    """Compute what each measured score loses by each ablation, head by head. measured: text of each ablation's score."""
    mean = torch.from_numpy(pairs.norm("coefficient_mean")).float()
    rank = torch.from_numpy(np.stack(list(ranks.values()))).unflatten(1, mean.shape)
    ranked, count = (torch.tensor(plan[name].to_numpy()) for name in ("ranked", "k"))
    removed = torch.zeros(1)
    for head in track(range(len(mean)), "ablating pairs", "head"):
        centred = head_coefficients(stores, head) - mean[head]
        removed = removed + ablation.removed_scores(centred, along[head][:, measured], rank[ranked, head].T, count)
    return removed


def _labels(images: Path, image_id: np.ndarray, concepts: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the 0/1 columns named like concepts that have both values."""
    manifest = read_images(images).set_index("image_id").loc[image_id]
    labels = {concept: manifest[concept].to_numpy() for concept in concepts if concept in manifest}
    for concept, label in labels.items():
        if not np.isin(label, (0, 1)).all():
            raise NadpipeError(f"{images}: column {concept} has other values than 0 and 1; rename it or the concept")
    return {concept: label.astype(bool) for concept, label in labels.items() if len(np.unique(label)) == 2}


def _effect(
    before: Float[np.ndarray, " image"], after: Float[np.ndarray, " image"], label: Bool[np.ndarray, " image"] | None
) -> dict[str, float | str]:
    """Measure the change of a score over its own images, and how well it tells them apart."""
    highest = np.zeros(len(before), dtype=bool)
    highest[np.argsort(-before, kind="stable")[: max(1, round(_HIGHEST * len(before)))]] = True
    own, spread, change = highest if label is None else label, before.std() or np.nan, after - before
    return {
        "own": "highest" if label is None else "label",
        "change": float(change[own].mean() / spread),
        "change_highest": float(change[highest].mean() / spread),
        "spread_kept": float(after.std() / spread),
        "auroc": np.nan if label is None else ablation.auroc(before, label),
        "auroc_ablated": np.nan if label is None else ablation.auroc(after, label),
        "auroc_highest": ablation.auroc(after, highest),
        "images": len(before),
    }
