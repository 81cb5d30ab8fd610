"""Which use of the selected pairs segments the demo best: the methods that nadpipe has, and variations of the published one.

    python benchmarks/segmentation_methods.py

Two sets of scenes that no model or direction has seen: `tuning`, on which the variations were chosen, and `held out`, drawn
from another seed, on which they are compared. Everything up to the features is the workflow's own; each variation is one
function more in the registry, run by the workflow's own stage.
"""

import argparse
import contextlib
import dataclasses
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
import yaml
from common import ROOT, report, run_command
from nadpipe.segmentation import Method
from torch import Tensor

from nadpipe.circuit import segmentation
from nadpipe.circuit.segmentation import METHODS, Pairs, Query, Tokens, mend
from nadpipe.stages.make_demo_data import make_demo_data
from nadpipe.stages.score_segmentation import score_segmentation
from nadpipe.stages.segment_images import segment_images
from nadpipe.store.kinds.features import FEATURES
from nadpipe.store.kinds.segmentation import DIFFERENCES
from nadpipe.store.pool import read_pool
from nadpipe.store.selection import read_selection
from nadpipe.store.shards import blocks, open_shards
from nadpipe.store.tables import read_parquet

SETS = {"tuning": 0, "held_out": 1}  # data set: seed
_CALIBRATION = 200  # discovery images that a class's mean logit is taken over

Logits = Callable[[Tokens, Pairs], Tensor]


def main() -> None:
    """Draw the scenes, run the workflow as far as the features, then every method on both sets."""
    options = argparse.ArgumentParser()
    options.add_argument("--images", type=int, default=200)
    options.add_argument("--k", type=int, default=1250)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        rows = measure(given)
    about = (
        f"mIoU of ways to segment with the same {given.k} pairs a class, demo model, {given.images} tuning and "
        f"{given.images} held-out scenes, with 95% intervals over images"
    )
    report("segmentation_methods", about, rows)


def measure(given: argparse.Namespace) -> list[dict]:
    """One row a method, best on the held-out scenes first."""
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    for dataset, seed in SETS.items():
        with contextlib.redirect_stderr(io.StringIO()):
            make_demo_data("segmentation", given.images, seed, Path(dataset).resolve(), Path(f"{dataset}.csv").resolve())
        config["datasets"][dataset] = config["datasets"]["segmentation"] | {"path": str(Path(f"{dataset}.csv").resolve())}
    config["segmentation"] |= {"datasets": list(SETS), "k": given.k}
    Path("config.yaml").write_text(yaml.safe_dump(config))
    artifacts = Path("results/artifacts")
    made = [f"{artifacts}/{dataset}/{name}" for dataset in SETS for name in ("classes.parquet", "features/0.zarr")]
    made += [f"{artifacts}/selection/{dataset}.zarr" for dataset in SETS] + ["results/registers.parquet"]
    where = ("--directory", Path.cwd(), "--configfile", Path.cwd() / "config.yaml")
    run_command("snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "all", *made, *where)
    about = register(artifacts)
    pool = artifacts / "model/readout.zarr"
    contributions = tuple((artifacts / "discovery/contributions").iterdir())
    for dataset in SETS:
        own = artifacts / dataset
        inputs = own / "images.parquet", own / "classes.parquet", own / "features/0.zarr"
        beside = artifacts / f"selection/{dataset}.zarr", contributions, Path("results/registers.parquet"), pool
        segment_images(*inputs, *beside, Path(f"{dataset}.parquet"), Path(f"{dataset}-labels"), methods=tuple(METHODS))
    confusions = tuple(Path(f"{dataset}.parquet") for dataset in SETS)
    classes = tuple(artifacts / dataset / "classes.parquet" for dataset in SETS)
    score_segmentation(confusions, classes, pool, Path("s.csv"), Path("c.parquet"), Path("d.parquet"))
    return table(about, pd.read_csv("s.csv"), read_parquet(Path("d.parquet"), DIFFERENCES))


def table(about: dict[str, str], scores: pd.DataFrame, differences: pd.DataFrame) -> list[dict]:
    """The rows of the report."""
    tuning, held = (scores[scores["dataset"] == dataset].set_index("method") for dataset in SETS)
    baseline = held["miou"][["maskclip", "sclip", "attention"]].idxmax()
    own = differences[differences["dataset"] == "held_out"]

    def against(method: str, other: str) -> str:
        for one, two, sign in (("method", "other_method", 1), ("other_method", "method", -1)):
            found = own[(own[one] == method) & (own[two] == other)]
            if len(found):
                value, *ends = (sign * found[["difference", "low", "high"]].iloc[0]).tolist()
                return f"{value:+.3f} ({min(ends):+.3f} to {max(ends):+.3f})"
        return ""

    return [
        {
            "method": method,
            "logits": about[method],
            "in nadpipe": "yes" if method in SHIPPED else "",
            "tuning": f"{tuning['miou'][method]:.3f}",
            "held out": f"{held['miou'][method]:.3f} ({held['miou_low'][method]:.3f} to {held['miou_high'][method]:.3f})",
            "against nad": against(method, "nad"),
            f"against {baseline}, the best baseline": against(method, baseline),
        }
        for method in held["miou"].sort_values(ascending=False).index
    ]


# ---------------------------------------------------------------------------------------------------------- variations

SHIPPED = {
    "nad": "cos · M z, as published",
    "nad_centred": "cos of centred heads · M z",
    "nad_shifted": "(1 + cos) / 2 · M z",
    "heads": "cos · number of pairs",
    "neurons": "M z",
    "maskclip": "baseline",
    "sclip": "baseline",
    "attention": "baseline",
}


def register(artifacts: Path) -> dict[str, str]:
    """Put the variations beside the methods; gives what each is."""
    pool, model = read_pool(artifacts / "model/readout.zarr")
    chosen = read_selection(artifacts / "selection/tuning.zarr", model)
    stores = open_shards(list((artifacts / "discovery/features").iterdir()), FEATURES, model)
    z = torch.cat([part.float() for (part,) in blocks(stores, "activation")])
    z = z[:: max(1, len(z) // _CALIBRATION)]
    deviation = z.flatten(0, 1).std(0) + 1e-6
    mean = z.flatten(0, 1).mean(0)
    weighted = weigh(chosen.pairs.cosine, pairs_of(chosen, pool))
    found = {
        "1 + 2 cos": (lambda tokens, pairs: weighed(tokens, pairs, 1, 2), "(1 + 2 cos) / 3 · M z"),
        "2 + cos": (lambda tokens, pairs: weighed(tokens, pairs, 2, 1), "(2 + cos) / 3 · M z"),
        "weighted": (lambda tokens, _: segmentation.nad(tokens, weighted), "cos · W z, W: cosine of pair and text"),
        "neurons, weighted": (lambda tokens, _: segmentation.neurons(tokens, weighted), "W z, W: cosine of pair and text"),
        "calibrated": (calibrated(segmentation.nad, z), "nad - its class's mean over discovery images"),
        "neurons, calibrated": (calibrated(segmentation.neurons, z), "neurons - its class's mean over discovery images"),
        "maskclip, calibrated": (calibrated(segmentation.maskclip, z), "maskclip - its class's mean over discovery images"),
        "centred z": (lambda tokens, pairs: segmentation.nad(of(tokens, tokens.z - mean), pairs), "cos · M (z - mean)"),
        "neurons, standardised": (
            lambda tokens, pairs: segmentation.neurons(of(tokens, tokens.z / deviation), pairs),
            "M (z / deviation)",
        ),
        "smoothed": (smoothed(segmentation.nad), "nad, mixed over tokens by softmax(cos(z, z') / 0.05)"),
        "neurons, smoothed": (smoothed(segmentation.neurons), "neurons, mixed over tokens by softmax(cos(z, z') / 0.05)"),
    }
    METHODS.update({name: Method(logits, selects=True) for name, (logits, _) in found.items()})
    return SHIPPED | {name: what for name, (_, what) in found.items()}


def pairs_of(chosen, pool) -> tuple:
    """The selection, its size, heads and neurons."""
    return chosen.pairs, chosen.pairs.head.shape[1], pool.heads, pool.neurons


def weigh(cosine: Tensor, selection: tuple) -> Pairs:
    """Selected pairs whose weight is their cosine, with mean 1 for each text, in place of 1."""
    pairs, k, heads, neurons = selection
    weight = cosine / cosine.mean(1, keepdim=True)
    even = segmentation.selected_pairs(pairs, k, heads, neurons)
    texts = len(cosine)
    dense = torch.zeros(texts, heads, neurons)
    dense[torch.arange(texts)[:, None].expand_as(cosine), pairs.head, pairs.neuron] = weight
    matrix = dense.flatten(0, 1).to_sparse_csr()
    return dataclasses.replace(even, matrix=matrix, by_head=dense.sum(2), by_neuron=dense.sum(1))


def weighed(tokens: Tokens, pairs: Pairs, constant: float, factor: float) -> Tensor:
    """`nad` with constant + factor · cos in place of the cosine, over their sum."""
    weight = (constant + factor * tokens.similarity) / (constant + factor)
    return (weight * tokens.activation(pairs)).sum(2) / pairs.k


def of(tokens: Tokens, z: Tensor) -> Tokens:
    """The tokens' own similarities with other activations."""
    other = Tokens(z, tokens.query)
    other.__dict__["similarity"] = tokens.similarity
    return other


def calibrated(logits: Logits, z: Tensor) -> Logits:
    """Logits minus each text's mean over all tokens of some images."""
    means: list[Tensor] = []

    def method(tokens: Tokens, pairs: Pairs) -> Tensor:
        if not means:
            native: Query = tokens.query
            parts = [logits(Tokens(part, native), pairs).mean(2) for part in z.split(8)]
            means.append(torch.cat(parts).mean(0)[:, None])
        return logits(tokens, pairs) - means[0]

    return method


def smoothed(logits: Logits, width: float = 0.05) -> Logits:
    """Logits mixed over a view's tokens by the similarity of their activations."""

    def method(tokens: Tokens, pairs: Pairs) -> Tensor:
        unit = torch.nn.functional.normalize(mend(tokens.z.transpose(1, 2), tokens.query).transpose(1, 2), dim=2)
        mix = torch.softmax(unit @ unit.transpose(1, 2) / width, dim=2)
        return logits(tokens, pairs) @ mix.transpose(1, 2)

    return method


if __name__ == "__main__":
    main()
