"""Power and false alarms of drift detection on the demo: scores of concepts and pairs against tests on whole embeddings.

    python benchmarks/drift_detection.py

A reference set and, for each drift strength, a set of new images are drawn; each trial takes some of both and asks
every detector at level 0.05. Strength 0 is no drift: alarms there are false. What drifts is known (fish and sand come,
snail and sky go).

- Kolmogorov-Smirnov: one test a feature of the embedding, Bonferroni (Rabanser et al., arXiv 1810.11953;
  KSDrift of alibi-detect).
- MMD: Gaussian kernel with the median distance as width, permutation test (Gretton et al. 2012; alibi-detect's MMDDrift).
- nadpipe, concepts: Mann-Whitney on each concept's projection, Benjamini-Hochberg; it names the concepts.
- nadpipe, pairs: Welch on each pair's coefficient, Benjamini-Hochberg; no concept is given, the pairs' texts name what drifts.
"""

import argparse
import contextlib
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import ROOT, report, run_command
from scipy import stats

from nadpipe.circuit import shift
from nadpipe.demo.data import DRIFTS
from nadpipe.demo.world import CONCEPTS, Odds, draw_scene
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.kinds.units import DIRECTIONS
from nadpipe.store.pool import read_pool
from nadpipe.store.selection import read_selection
from nadpipe.store.shards import open_shards

LEVEL = 0.05
STRENGTHS = (0.0, 0.125, 0.25, 0.5, 1.0)
_CONCEPTS = ("fish", "snail", "sand", "sky", "star", "basket", "blue", "red", "striped", "dotted")


def main() -> None:
    """Draw, embed with the workflow, and run the trials."""
    options = argparse.ArgumentParser()
    options.add_argument("--images", type=int, default=600, help="in the pool of each strength")
    options.add_argument("--sample", type=int, default=100, help="images of each side in a trial")
    options.add_argument("--trials", type=int, default=100)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        data = embed(given.images)
        rows = [row for strength in STRENGTHS for row in trials(data, strength, given)]
    about = (
        f"Share of {given.trials} trials with an alarm at level {LEVEL}, {given.sample} reference against {given.sample} new "
        "demo images, by strength of the drift (0: false alarms)"
    )
    report("drift_detection", about, pivot(rows))


def pivot(rows: list[dict]) -> list[dict]:
    """One row a detector, one column a strength."""
    table = pd.DataFrame(rows)
    wide = table.pivot(index="detector", columns="strength", values="alarms").loc[list(table["detector"].unique())]
    told = table[table["strength"] == max(STRENGTHS)].set_index("detector")
    return [
        {
            "detector": name,
            **{f"strength {strength}": f"{value:.2f}" for strength, value in line.items()},
            "at full strength, what it names": told.loc[name, "names"],
        }
        for name, line in wide.iterrows()
    ]


def embed(images: int) -> dict:
    """Coefficients, embeddings and concept scores of a reference pool and of one pool for each strength."""
    from PIL import Image

    rows = []
    for pool_number, strength in enumerate((None, *STRENGTHS)):
        weight = {word: 1 + (strength or 0) * (last - 1) for word, (_, last) in DRIFTS.items()}
        for number in range(images):
            rng = np.random.default_rng([17, pool_number, number])
            scene = draw_scene(rng, 192, 192, Odds(weight=weight))
            path = Path(f"images/{pool_number}/{number}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(scene.image).save(path, quality=94, subsampling=0)
            rows.append({"path": str(path), "pool": "reference" if strength is None else str(strength)})
    pd.DataFrame(rows).to_csv("pools.csv", index=False)
    import yaml

    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    config["datasets"]["monitoring"] = {
        "layout": "table",
        "path": str(Path("pools.csv").resolve()),
        "group_column": "pool",
        "label_column": None,
    }
    config["shift"]["concepts"] = list(_CONCEPTS)
    Path("config.yaml").write_text(yaml.safe_dump(config))
    made = ["results/shift/scores.parquet", "results/pairs.parquet"]
    where = ("--directory", Path.cwd(), "--configfile", Path.cwd() / "config.yaml")
    run_command("snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "all", *made, *where)
    artifacts = Path("results/artifacts")
    _, model = read_pool(artifacts / "model/readout.zarr")
    stores = open_shards(list((artifacts / "monitoring/contributions").iterdir()), CONTRIBUTIONS, model)
    manifest = pd.read_parquet(artifacts / "monitoring/images.parquet")
    scores = pd.read_parquet("results/shift/scores.parquet").query("score == 'projection'")
    chosen = read_selection(artifacts / "selection/concepts.zarr", model)
    std = open_zarr(artifacts / "directions/pair.zarr", DIRECTIONS["pair"], model)["std_norm"][:]
    return {
        "pool": manifest["group"].to_numpy(),
        "embedding": np.concatenate([store["embedding"][:] for store in stores]).astype(float),
        "coefficient": np.concatenate([store["coefficient"][:] for store in stores]),
        "score": scores.pivot(index="image_id", columns="concept", values="value")[chosen.texts].to_numpy(dtype=float),
        "concepts": chosen.texts,
        "text": pd.read_parquet("results/pairs.parquet").sort_values(["head", "neuron"])["active_text"].astype(str).to_numpy(),
        "alive": std.ravel() > 0,
    }


def trials(data: dict, strength: float, given: argparse.Namespace) -> list[dict]:
    """Alarms of every detector over the trials."""
    rng = np.random.default_rng([3, int(strength * 1000)])
    base, new = (np.flatnonzero(data["pool"] == name) for name in ("reference", str(strength)))
    alarms: dict[str, list[bool]] = {}
    right: dict[str, list[float]] = {}
    for _ in range(given.trials):
        sides = [rng.choice(pool, given.sample, replace=False) for pool in (base, new)]
        first, second = (data["embedding"][side] for side in sides)
        p = stats.ks_2samp(second, first, axis=0).pvalue
        alarms.setdefault("Kolmogorov-Smirnov on the embedding", []).append(p.min() * len(p) < LEVEL)
        alarms.setdefault("MMD on the embedding", []).append(mmd(first, second, rng) < LEVEL)
        one, other = (data["score"][side] for side in sides)
        q = shift.benjamini_hochberg(stats.mannwhitneyu(other, one, axis=0).pvalue)
        found = [concept for concept, value in zip(data["concepts"], q, strict=True) if value < LEVEL]
        alarms.setdefault("nadpipe, concepts", []).append(bool(found))
        right.setdefault("nadpipe, concepts", []).append(np.mean([name in DRIFTS for name in found]) if found else np.nan)
        moments = shift.GroupMoments()
        for name, side in zip(("base", "new"), sides, strict=True):
            moments.add(name, torch.from_numpy(data["coefficient"][side]))
        _, effect, p = moments.against("new", ["base"])
        p = np.where(data["alive"], p.ravel(), np.nan)
        q = shift.benjamini_hochberg(p)
        alarms.setdefault("nadpipe, pairs", []).append(bool(np.nanmin(q) < LEVEL))
        top = np.argsort(-np.nan_to_num(np.abs(effect.ravel())))[:20]
        words = [word for text in data["text"][top] for word in text.split() if word in CONCEPTS]
        right.setdefault("nadpipe, pairs", []).append(np.mean([word in DRIFTS for word in words]))
    what = {
        "nadpipe, concepts": "of the concepts named, drift:",
        "nadpipe, pairs": "of the words of the 20 first pairs, drift:",
    }
    return [
        {
            "strength": strength,
            "detector": name,
            "alarms": float(np.mean(hits)),
            "names": f"{what[name]} {np.nanmean(right[name]):.0%}" if name in right else "nothing",
        }
        for name, hits in alarms.items()
    ]


def mmd(first: np.ndarray, second: np.ndarray, rng: np.random.Generator, permutations: int = 200) -> float:
    """p of the permutation test of the maximum mean discrepancy."""
    both = torch.from_numpy(np.concatenate([first, second]))
    distance = torch.cdist(both, both).square()
    kernel = torch.exp(-distance / distance[distance > 0].median()).numpy()
    count = len(first)

    def statistic(order: np.ndarray) -> float:
        sign = np.where(np.arange(len(order)) < count, 1 / count, -1 / (len(order) - count))
        return float(sign @ kernel[np.ix_(order, order)] @ sign)

    own = statistic(np.arange(len(both)))
    drawn = [statistic(rng.permutation(len(both))) for _ in range(permutations)]
    return (1 + sum(value >= own for value in drawn)) / (1 + permutations)


if __name__ == "__main__":
    main()
