"""Measure power and false alarms of drift detectors on the demo: concepts and pairs, against tests on whole embeddings.

    python benchmarks/drift_detection.py

Images are drawn for a reference set and for one set per drift strength. Each trial samples images of both sets and runs every
detector at level 0.05. At strength 0 nothing drifts, so alarms are false. With drift, fish and sand become more frequent, snail
and sky less.

- Kolmogorov-Smirnov: one test per feature of the embedding, Bonferroni (Rabanser et al., arXiv 1810.11953; KSDrift of
  alibi-detect).
- MMD: Gaussian kernel with the median distance as width, permutation test (Gretton et al. 2012; MMDDrift of alibi-detect).
- nadpipe, concepts: Mann-Whitney on each concept's projection, Benjamini-Hochberg. It names the concepts.
- nadpipe, pairs: Welch on each pair's coefficient, Benjamini-Hochberg. It needs no concepts; the pairs' texts name the drift.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import add_work, demo_config, make_parser, parse, report, run_workflow, working_folder
from PIL import Image
from scipy import stats

from nadpipe.circuit import shift
from nadpipe.circuit.accumulators import GroupMoments
from nadpipe.demo.data import DRIFTS
from nadpipe.demo.world import CONCEPTS, Odds, draw_scene
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.pairs import open_pair_directions
from nadpipe.store.readout import read_readout
from nadpipe.store.selection import read_selection
from nadpipe.store.shards import join, open_shards

LEVEL = 0.05
STRENGTHS = [0.0, 0.125, 0.25, 0.5, 1.0]
DEMO_CONCEPTS = ["fish", "snail", "sand", "sky", "star", "basket", "blue", "red", "striped", "dotted"]
KS, MMD = "Kolmogorov-Smirnov on the embedding", "MMD on the embedding"
BY_CONCEPT, BY_PAIR = "nadpipe, concepts", "nadpipe, pairs"


def main() -> None:
    """Draw images, embed them with the workflow, and run the trials."""
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, default=600, help="images drawn for each strength")
    parser.add_argument("--sample", type=int, default=100, help="images of each side in a trial")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS)
    add_work(parser)
    given = parse(parser, images=12, sample=10, trials=2, strengths=[0.0, 1.0])
    with working_folder(given.work):
        write_images(given.images, given.strengths)
        data = embed(given.tiny)
        rows = [row for strength in given.strengths for row in run_trials(data, strength, given)]
    title = (
        f"Share of {given.trials} trials with an alarm at level {LEVEL}, {given.sample} reference against {given.sample} new "
        "demo images, by strength of the drift (0: false alarms)"
    )
    report(given, "drift_detection", title, pivot(rows, max(given.strengths)))


def pivot(rows: list[dict], strongest: float) -> list[dict]:
    """Return one row per detector with one column per strength."""
    table = pd.DataFrame(rows)
    wide = table.pivot(index="detector", columns="strength", values="alarms").loc[list(table["detector"].unique())]
    names = table[table["strength"] == strongest].set_index("detector")["names"]
    return [
        {
            "detector": name,
            **{f"strength {strength}": f"{value:.2f}" for strength, value in shares.items()},
            "named at full strength": names[name],
        }
        for name, shares in wide.iterrows()
    ]


def write_images(images: int, strengths: list[float]) -> None:
    """Draw a reference set and one set per strength, and write their table to pools.csv."""
    rows = []
    for pool_number, strength in enumerate((None, *strengths)):
        weight = {word: 1 + (strength or 0) * (last - 1) for word, (_, last) in DRIFTS.items()}
        folder = Path(f"images/{pool_number}")
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(images):
            scene = draw_scene(np.random.default_rng([17, pool_number, number]), 192, 192, Odds(weight=weight))
            Image.fromarray(scene.image).save(folder / f"{number}.jpg", quality=94, subsampling=0)
            rows.append({"path": str(folder / f"{number}.jpg"), "pool": "reference" if strength is None else str(strength)})
    pd.DataFrame(rows).to_csv("pools.csv", index=False)


def embed(tiny: bool) -> dict:
    """Return coefficients, embeddings and concept scores of all images, from a run of the workflow on pools.csv."""
    config = demo_config(tiny)
    config["datasets"]["monitoring"] = {
        "layout": "table",
        "path": str(Path("pools.csv").resolve()),
        "group_column": "pool",
        "label_column": None,
    }
    config["shift"]["concepts"] = DEMO_CONCEPTS
    run_workflow(config, "results/shift/scores.parquet", "results/pairs.parquet")
    artifacts = Path("results/artifacts")
    readout, model = read_readout(artifacts / "model/readout.zarr")
    stores = open_shards(list((artifacts / "monitoring/contributions").glob("*.zarr")), CONTRIBUTIONS, model)
    manifest = pd.read_parquet(artifacts / "monitoring/images.parquet")
    scores = pd.read_parquet("results/shift/scores.parquet").query("score == 'projection'")
    concepts = read_selection(artifacts / "selection/concepts.zarr", model).texts
    pairs = open_pair_directions(artifacts / "directions/pair.zarr", readout, model)
    return {
        "pool": manifest["group"].to_numpy(),
        "embedding": join(stores, "embedding").astype(float),
        "coefficient": join(stores, "coefficient"),
        "score": scores.pivot(index="image_id", columns="concept", values="value")[concepts].to_numpy(dtype=float),
        "concepts": concepts,
        "text": pd.read_parquet("results/pairs.parquet").sort_values(["head", "neuron"])["active_text"].astype(str).to_numpy(),
        "varies": pairs.norm("std_norm").ravel() > 0,
    }


def run_trials(data: dict, strength: float, given: argparse.Namespace) -> list[dict]:
    """Return the share of alarms of every detector, and the share of the words it names that really drift."""
    rng = np.random.default_rng([3, int(strength * 1000)])
    reference, new = (np.flatnonzero(data["pool"] == name) for name in ("reference", str(strength)))
    alarms: dict[str, list[bool]] = {name: [] for name in (KS, MMD, BY_CONCEPT, BY_PAIR)}
    precision: dict[str, list[float]] = {name: [] for name in (BY_CONCEPT, BY_PAIR)}
    for _ in range(given.trials):
        base, other = (rng.choice(pool, given.sample, replace=False) for pool in (reference, new))
        p = stats.ks_2samp(data["embedding"][other], data["embedding"][base], axis=0).pvalue
        alarms[KS].append(p.min() * len(p) < LEVEL)
        alarms[MMD].append(mmd(data["embedding"][base], data["embedding"][other], rng) < LEVEL)
        named = drifting_concepts(data, base, other)
        alarms[BY_CONCEPT].append(bool(named))
        precision[BY_CONCEPT].append(np.mean([name in DRIFTS for name in named]) if named else np.nan)
        q, words = drifting_pairs(data, base, other)
        alarms[BY_PAIR].append(bool(np.nanmin(q) < LEVEL))
        precision[BY_PAIR].append(np.mean([word in DRIFTS for word in words]) if words else np.nan)
    titles = {BY_CONCEPT: "concepts named", BY_PAIR: "words of the 20 first pairs"}
    names = dict.fromkeys(alarms, "nothing")
    for name, title in titles.items():
        if not np.isnan(precision[name]).all():
            names[name] = f"{np.nanmean(precision[name]):.0%} of the {title} drift"
    return [
        {"strength": strength, "detector": name, "alarms": float(np.mean(hits)), "names": names[name]}
        for name, hits in alarms.items()
    ]


def drifting_concepts(data: dict, base: np.ndarray, other: np.ndarray) -> list[str]:
    """Return the concepts whose scores differ between two samples of images."""
    q = shift.benjamini_hochberg(stats.mannwhitneyu(data["score"][other], data["score"][base], axis=0).pvalue)
    return [concept for concept, value in zip(data["concepts"], q, strict=True) if value < LEVEL]


def drifting_pairs(data: dict, base: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return q of every pair, and the words in the texts of the 20 pairs with the largest effect."""
    accumulator = GroupMoments()
    for name, sample in (("base", base), ("other", other)):
        accumulator.add(name, torch.from_numpy(data["coefficient"][sample]))
    moments = accumulator.result()
    _, effect, p = shift.compare_moments(moments["other"], moments["base"])
    q = shift.benjamini_hochberg(np.where(data["varies"], p.ravel(), np.nan))
    top = np.argsort(-np.nan_to_num(np.abs(effect.ravel())))[:20]
    return q, [word for text in data["text"][top] for word in text.split() if word in CONCEPTS]


def mmd(first: np.ndarray, second: np.ndarray, rng: np.random.Generator, permutations: int = 200) -> float:
    """Return p of the permutation test of the maximum mean discrepancy."""
    both = torch.from_numpy(np.concatenate([first, second]))
    distance = torch.cdist(both, both).square()
    kernel = torch.exp(-distance / distance[distance > 0].median()).numpy()
    count = len(first)

    def statistic(order: np.ndarray) -> float:
        sign = np.where(np.arange(len(order)) < count, 1 / count, -1 / (len(order) - count))
        return float(sign @ kernel[np.ix_(order, order)] @ sign)

    measured = statistic(np.arange(len(both)))
    permuted = [statistic(rng.permutation(len(both))) for _ in range(permutations)]
    return (1 + sum(value >= measured for value in permuted)) / (1 + permutations)


if __name__ == "__main__":
    main()
