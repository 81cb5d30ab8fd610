"""Measure power and false alarms of drift detectors on the demo: concepts and pairs, against tests on whole embeddings.

    python benchmarks/drift_detection.py

Each trial draws new images: a reference, and one set per drift strength. All detectors compare each set with the reference at
level 0.05. At strength 0 nothing drifts, so alarms are false; there, unequal numbers of images are compared as well. With
drift, fish and sand become more frequent, snail and sky less. Trials share no image, so they are independent.

- Kolmogorov-Smirnov: one test per feature of the embedding, Bonferroni (Rabanser et al., arXiv 1810.11953; KSDrift of
  alibi-detect).
- MMD: Gaussian kernel with the median distance as width, permutation test (Gretton et al. 2012; MMDDrift of alibi-detect).
- nadpipe, concepts: Mann-Whitney on each concept's projection, Benjamini-Hochberg. It names the concepts.
- nadpipe, pairs: Mann-Whitney on each pair's coefficient, Benjamini-Hochberg. It needs no concepts; the pairs' texts name the
  drift.
- pairs by Welch's test: the same with Welch's test in place of Mann-Whitney.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import add_work, demo_config, interval, make_parser, parse, report, run_workflow, welch_pairs, working_folder
from scipy import stats

from nadpipe.circuit import attention, shift
from nadpipe.circuit import readout as circuit
from nadpipe.demo.data import DRIFTS
from nadpipe.demo.world import CONCEPTS, Odds, draw_scene
from nadpipe.progress import track
from nadpipe.store.selection import SelectedPairs, read_selection
from nadpipe.towers.family import ImageTower
from nadpipe.towers.model import load_model

LEVEL = 0.05
STRENGTHS = [0.0, 0.125, 0.25, 0.5, 1.0]
EQUAL = (100, 100)  # new images and reference images
UNEQUAL = [(60, 420), (20, 580)]  # at strength 0 only
DEMO_CONCEPTS = ["fish", "snail", "sand", "sky", "star", "basket", "blue", "red", "striped", "dotted"]
NAMED = {"nadpipe, concepts": "concepts named", "nadpipe, pairs": "words of the 20 first pairs"}
NAMED["pairs by Welch's test"] = NAMED["nadpipe, pairs"]
_BATCH = 64  # images


@dataclasses.dataclass(frozen=True)
class Images:
    """Coefficients of all pairs, embeddings, and projections of the concepts, one row per image."""

    coefficient: torch.Tensor
    embedding: np.ndarray
    score: np.ndarray

    def first(self, count: int) -> "Images":
        """Return the first images."""
        return Images(self.coefficient[:count], self.embedding[:count], self.score[:count])


@dataclasses.dataclass(frozen=True)
class Program:
    """The demo's image tower, the pairs of the concepts, and `active_text` of all pairs."""

    tower: ImageTower
    concepts: SelectedPairs
    text: np.ndarray

    def draw(self, count: int, strength: float, seed: list[int]) -> Images:
        """Draw new images and decompose them."""
        weight = {word: 1 + strength * (last - 1) for word, (_, last) in DRIFTS.items()}
        side, pool = self.tower.preprocessing.image_size, self.tower.pool
        parts = []
        for start in range(0, count, _BATCH):
            numbers = range(start, min(count, start + _BATCH))
            scenes = [draw_scene(np.random.default_rng([*seed, number]), side, side, Odds(weight=weight)) for number in numbers]
            pixels = torch.from_numpy(np.stack([scene.image for scene in scenes]))
            with torch.inference_mode():
                z = self.tower.features(self.tower.preprocessing.normalise(pixels))["activation"]
                coefficient = circuit.coefficients(attention.trace(z, pool), pool.readout)
                embedding = circuit.sum_pairs(coefficient, pool.readout)
                selected = self.concepts
                _, score = shift.concept_scores(coefficient, embedding, selected.pairs, selected.query, pool.readout)
            parts.append((coefficient.flatten(1), embedding, score))
        coefficient, embedding, score = (torch.cat(columns) for columns in zip(*parts, strict=True))
        return Images(coefficient, embedding.double().numpy(), score.double().numpy())


def main() -> None:
    """Make the demo's pairs and concepts with the workflow, and run the trials."""
    parser = make_parser(__doc__)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS)
    add_work(parser)
    given = parse(parser, trials=2, strengths=[0.0, 1.0])
    equal, unequal = ((6, 8), [(4, 10), (2, 12)]) if given.tiny else (EQUAL, UNEQUAL)
    with working_folder(given.work):
        program = prepare(given.tiny)
        rows = [
            row
            for trial in track(range(given.trials), "running trials", "trial")
            for row in run_trial(program, trial, given.strengths, equal, unequal)
        ]
    title = (
        f"Share of {given.trials} trials with an alarm at level {LEVEL}, with its 95% interval, by strength of the drift (0: "
        f"false alarms). Numbers of images: {equal[0]} new / {equal[1]} reference, except where the column names others"
    )
    report(given, "drift_detection", title, summarise(pd.DataFrame(rows), equal))


def prepare(tiny: bool) -> Program:
    """Run the workflow and return what the trials use of its results."""
    config = demo_config(tiny)
    config["shift"]["concepts"] = DEMO_CONCEPTS
    run_workflow(config, "results/artifacts/selection/concepts.zarr", "results/pairs.parquet")
    model = load_model(config["model"]["architecture"], config["model"]["pretrained"], "cpu")
    concepts = read_selection(Path("results/artifacts/selection/concepts.zarr"), model.stamp)
    text = pd.read_parquet("results/pairs.parquet").sort_values(["head", "neuron"])["active_text"].astype(str).to_numpy()
    return Program(model.image_tower().without_reference(), concepts, text)


def run_trial(
    program: Program, trial: int, strengths: list[float], equal: tuple[int, int], unequal: list[tuple[int, int]]
) -> list[dict]:
    """Return one row per detector and comparison: whether it raises an alarm, and the share of words it names that drift."""
    rows = []
    reference = program.draw(max(count for _, count in [equal, *unequal]), 0, [17, trial, 0])
    for number, strength in enumerate(strengths):
        sizes = [equal, *unequal] if strength == 0 else [equal]
        new = program.draw(max(count for count, _ in sizes), strength, [17, trial, 1 + number])
        for images, reference_images in sizes:
            base, other = reference.first(reference_images), new.first(images)
            rng = np.random.default_rng([3, trial, number, images])
            for detector, (alarm, words) in detect(program, base, other, rng).items():
                right = np.mean([word in DRIFTS for word in words]) if words else np.nan
                row = {"detector": detector, "strength": strength, "images": images, "reference": reference_images}
                rows.append({**row, "alarm": alarm, "right": right})
    return rows


def detect(program: Program, base: Images, other: Images, rng: np.random.Generator) -> dict[str, tuple[bool, list[str]]]:
    """Return for each detector True if it raises an alarm, and the words that it names."""
    p = stats.ks_2samp(other.embedding, base.embedding, axis=0).pvalue
    q = shift.benjamini_hochberg(stats.mannwhitneyu(other.score, base.score, axis=0).pvalue)
    concepts = [concept for concept, value in zip(program.concepts.texts, q, strict=True) if value < LEVEL]
    found = {
        "Kolmogorov-Smirnov on the embedding": (p.min() * len(p) < LEVEL, []),
        "MMD on the embedding": (mmd(base.embedding, other.embedding, rng) < LEVEL, []),
        "nadpipe, concepts": (bool(concepts), concepts),
    }
    tests: dict[str, Callable] = {"nadpipe, pairs": shift.compare_pairs, "pairs by Welch's test": welch_pairs}
    for name, test in tests.items():
        _, p = test(other.coefficient, base.coefficient)
        words = [word for text in program.text[np.argsort(p)[:20]] for word in text.split() if word in CONCEPTS]
        found[name] = (bool(np.nanmin(shift.benjamini_hochberg(p)) < LEVEL), words)
    return found


def summarise(table: pd.DataFrame, equal: tuple[int, int]) -> list[dict]:
    """Return one row per detector with one column per comparison."""
    rows = []
    for detector, trials in table.groupby("detector", sort=False):
        row = {"detector": detector}
        for (strength, images, reference), group in trials.groupby(["strength", "images", "reference"], sort=False):
            sizes = "" if (images, reference) == equal else f", {images} / {reference}"
            row[f"strength {strength}{sizes}"] = interval(int(group["alarm"].sum()), len(group))
        right = trials.loc[trials["strength"] == table["strength"].max(), "right"].mean()
        named = f"{right:.0%} of the {NAMED[detector]} drift" if detector in NAMED and not np.isnan(right) else "nothing"
        rows.append({**row, "named at full strength": named})
    return rows


def mmd(first: np.ndarray, second: np.ndarray, rng: np.random.Generator, permutations: int = 200) -> float:
    """Return p of the permutation test of the maximum mean discrepancy."""
    both = torch.from_numpy(np.concatenate([first, second]))
    distance = torch.cdist(both, both).square()
    kernel = torch.exp(-distance / distance[distance > 0].median()).numpy()
    sign = np.repeat([1 / len(first), -1 / len(second)], [len(first), len(second)])
    signs = np.stack([sign, *(rng.permutation(sign) for _ in range(permutations))])
    measured, *permuted = ((signs @ kernel) * signs).sum(1)
    return (1 + sum(value >= measured for value in permuted)) / (1 + permutations)


if __name__ == "__main__":
    main()
