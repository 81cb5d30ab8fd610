"""Compare nadpipe's segmentation methods with variations of the published one, on the demo.

    python benchmarks/segmentation_methods.py

There are two sets of scenes, which neither the model nor the directions were fitted to: variations were chosen on `tuning`, and
are compared on `held out`, drawn from another seed. The demo's own segmentation images are a third set. The workflow makes the
features. Each variation is one more function in the registry of methods, and the workflow's own stage runs it.
"""

import argparse
import contextlib
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pandas as pd
import torch
from common import add_work, demo_config, make_parser, parse, report, run_workflow, working_folder
from torch import Tensor

from nadpipe.circuit import segmentation
from nadpipe.circuit.attention import AttentionPool
from nadpipe.circuit.methods import METHODS, Method
from nadpipe.circuit.segmentation import LOGITS, Pairs, Tokens, mend
from nadpipe.stages.make_demo_data import make_demo_data
from nadpipe.stages.score_segmentation import score_segmentation
from nadpipe.stages.segment_images import segment_images
from nadpipe.store.kinds.features import FEATURES
from nadpipe.store.kinds.segmentation import DIFFERENCES
from nadpipe.store.pool import read_pool
from nadpipe.store.selection import SelectedPairs, read_selection
from nadpipe.store.shards import blocks, open_shards
from nadpipe.store.tables import read_parquet

SETS = {"tuning": 0, "held_out": 1}  # data set: seed of the demo's scenes `methods`
CALIBRATION = 200  # discovery images for a class's mean logit

Logits = Callable[[Tokens, Pairs], Tensor]


def main() -> None:
    """Draw the scenes, make features with the workflow, and run every method on both sets."""
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, default=200, help="scenes of each set")
    parser.add_argument("--k", type=int, default=1250, help="pairs per class")
    add_work(parser)
    given = parse(parser, images=3)
    with working_folder(given.work), mock.patch.dict(METHODS), mock.patch.dict(LOGITS):
        rows = measure(given)
    title = (
        f"mIoU of ways to segment with the same {given.k} pairs per class, demo model, {given.images} tuning and "
        f"{given.images} held-out scenes, with 95% intervals over images"
    )
    report(given, "segmentation_methods", title, rows)


def measure(given: argparse.Namespace) -> list[dict]:
    """Return one row per method, best on the held-out scenes first."""
    config = demo_config(given.tiny)
    for dataset, seed in SETS.items():
        table = Path(f"{dataset}.csv").resolve()
        with contextlib.redirect_stderr(io.StringIO()):
            make_demo_data("methods", given.images, seed, Path(dataset).resolve(), table)
        config["datasets"][dataset] = config["datasets"]["segmentation"] | {"path": str(table)}
    config["segmentation"] |= {"datasets": list(SETS), "k": [given.k]}
    artifacts = Path("results/artifacts")
    targets = [f"{artifacts}/{dataset}/{name}" for dataset in SETS for name in ("classes.parquet", "features/0.zarr")]
    targets += [f"{artifacts}/selection/{dataset}.zarr" for dataset in SETS]
    run_workflow(config, *targets, f"{artifacts}/discovery/head_means.zarr", "results/registers.parquet")
    readout = artifacts / "model/readout.zarr"
    formulas = SHIPPED | register_variations(artifacts)
    with contextlib.redirect_stderr(io.StringIO()):
        for dataset in SETS:
            folder = artifacts / dataset
            inputs = folder / "images.parquet", folder / "classes.parquet", folder / "features/0.zarr"
            shared = artifacts / f"selection/{dataset}.zarr", artifacts / "discovery/head_means.zarr"
            outputs = Path(f"{dataset}.parquet"), Path(f"{dataset}-labels")
            segment_images(*inputs, *shared, Path("results/registers.parquet"), readout, *outputs, methods=tuple(formulas))
        confusions = tuple(Path(f"{dataset}.parquet") for dataset in SETS)
        classes = tuple(artifacts / dataset / "classes.parquet" for dataset in SETS)
        score_segmentation(confusions, classes, Path("s.csv"), Path("c.parquet"), Path("d.parquet"))
    return tabulate(formulas, pd.read_csv("s.csv"), read_parquet(Path("d.parquet"), DIFFERENCES))


def tabulate(formulas: dict[str, str], scores: pd.DataFrame, differences: pd.DataFrame) -> list[dict]:
    """Return the rows of the report."""
    tuning, held_out = (scores[scores["dataset"] == dataset].set_index("method") for dataset in SETS)
    baseline = held_out["miou"][["maskclip", "sclip", "attention"]].idxmax()
    differences = differences[differences["dataset"] == "held_out"]

    def difference(method: str, other: str) -> str:
        """Return the difference of two methods with its interval; empty for a method and itself."""
        for first, second, sign in (("method", "other_method", 1), ("other_method", "method", -1)):
            row = differences[(differences[first] == method) & (differences[second] == other)]
            if len(row):
                value, *ends = (sign * row[["difference", "low", "high"]].iloc[0]).tolist()
                return f"{value:+.3f} ({min(ends):+.3f} to {max(ends):+.3f})"
        return ""

    return [
        {
            "method": method,
            "logits": formulas[method],
            "in nadpipe": "yes" if method in SHIPPED else "",
            "tuning": f"{tuning['miou'][method]:.3f}",
            "held out": "{miou:.3f} ({miou_low:.3f} to {miou_high:.3f})".format(**held_out.loc[method]),
            "difference to nad": difference(method, "nad"),
            f"difference to {baseline}, the best baseline": difference(method, baseline),
        }
        for method in held_out["miou"].sort_values(ascending=False).index
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
    "clearclip": "baseline",
    "attention": "baseline",
    "self_self": "baseline: sclip as in the paper's code",
    "values_only": "baseline: maskclip as in the paper's code",
}


def register_variations(artifacts: Path) -> dict[str, str]:
    """Add the variations to the registry of methods; return their formulas."""
    pool, model = read_pool(artifacts / "model/readout.zarr")
    weights = weigh_pairs(read_selection(artifacts / "selection/tuning.zarr", model), pool)
    stores = open_shards(list((artifacts / "discovery/features").glob("*.zarr")), FEATURES, model)
    z = torch.cat([block.float() for (block,) in blocks(stores, "activation")])
    z = z[:: max(1, len(z) // CALIBRATION)]
    deviation = z.flatten(0, 1).std(0) + 1e-6
    mean = z.flatten(0, 1).mean(0)
    variations: dict[str, tuple[Logits, str]] = {
        "1 + 2 cos": (affine(1, 2), "(1 + 2 cos) / 3 · M z"),
        "2 + cos": (affine(2, 1), "(2 + cos) / 3 · M z"),
        "weighted": (weights.nad, "cos · W z, W: cosine of pair and text"),
        "neurons, weighted": (weights.neurons, "W z, W: cosine of pair and text"),
        "calibrated": (calibrated(segmentation.nad, z), "nad - its class's mean over discovery images"),
        "neurons, calibrated": (calibrated(segmentation.neurons, z), "neurons - its class's mean over discovery images"),
        "maskclip, calibrated": (calibrated(segmentation.maskclip, z), "maskclip - its class's mean over discovery images"),
        "centred z": (lambda tokens, pairs: segmentation.nad(replace_z(tokens, tokens.z - mean), pairs), "cos · M (z - mean)"),
        "neurons, standardised": (
            lambda tokens, pairs: segmentation.neurons(replace_z(tokens, tokens.z / deviation), pairs),
            "M (z / deviation)",
        ),
        "smoothed": (smoothed(segmentation.nad), "nad, mixed over tokens by softmax(cos(z, z') / 0.05)"),
        "neurons, smoothed": (smoothed(segmentation.neurons), "neurons, mixed over tokens by softmax(cos(z, z') / 0.05)"),
    }
    for name, (logits, formula) in variations.items():
        METHODS[name] = Method(selects=True, summary=formula)
        LOGITS[name] = logits
    return {name: formula for name, (_, formula) in variations.items()}


@dataclasses.dataclass(frozen=True)
class Weights:
    """Selected pairs that count by their cosine to the text, with mean 1 for each text, instead of equally."""

    matrix: Tensor  # W (text · head, neuron), sparse
    by_neuron: Tensor  # summed over heads (text, neuron)

    def nad(self, tokens: Tokens, pairs: Pairs) -> Tensor:
        """Compute 1/k · sum_h cos(m[h, t], q_p) · (W_p z_t)[h]."""
        product = (self.matrix @ tokens.by_neuron).unflatten(1, (len(tokens.z), -1))
        maps = product.unflatten(0, (len(tokens.query.text), -1)).permute(2, 0, 1, 3)
        return (tokens.similarity * mend(maps, tokens.query)).sum(2) / pairs.k

    def neurons(self, tokens: Tokens, pairs: Pairs) -> Tensor:
        """Compute 1/k · sum_h (W_p z_t)[h]."""
        return mend((tokens.z @ self.by_neuron.T).transpose(1, 2), tokens.query) / pairs.k


def weigh_pairs(selection: SelectedPairs, pool: AttentionPool) -> Weights:
    """Return the weights of a selection's pairs."""
    pairs = selection.pairs
    dense = torch.zeros(len(pairs.cosine), pool.heads, pool.neurons)
    text = torch.arange(len(pairs.cosine))[:, None].expand_as(pairs.cosine)
    dense[text, pairs.head, pairs.neuron] = pairs.cosine / pairs.cosine.mean(1, keepdim=True)
    return Weights(dense.flatten(0, 1).to_sparse(), dense.sum(1))


def affine(constant: float, factor: float) -> Logits:
    """Return `nad` with (constant + factor · cos) / (constant + factor) in place of the cosine."""

    def method(tokens: Tokens, pairs: Pairs) -> Tensor:
        weight = (constant + factor * tokens.similarity) / (constant + factor)
        return (weight * tokens.activation(pairs)).sum(2) / pairs.k

    return method


def replace_z(tokens: Tokens, z: Tensor) -> Tokens:
    """Return tokens with other activations but the same similarities."""
    replaced = Tokens(z, tokens.query)
    replaced.__dict__["similarity"] = tokens.similarity  # the value of the cached property
    return replaced


def calibrated(logits: Logits, z: Tensor) -> Logits:
    """Return a method whose logits are reduced by each text's mean over all tokens of some images."""
    means: list[Tensor] = []

    def method(tokens: Tokens, pairs: Pairs) -> Tensor:
        if not means:
            block_means = [logits(Tokens(block, tokens.query), pairs).mean(2) for block in z.split(8)]
            means.append(torch.cat(block_means).mean(0)[:, None])
        return logits(tokens, pairs) - means[0]

    return method


def smoothed(logits: Logits, width: float = 0.05) -> Logits:
    """Return a method whose logits are mixed over a view's tokens by the similarity of their activations."""

    def method(tokens: Tokens, pairs: Pairs) -> Tensor:
        mended = mend(tokens.z.transpose(1, 2), tokens.query).transpose(1, 2)
        direction = torch.nn.functional.normalize(mended, dim=2)
        mix = torch.softmax(direction @ direction.transpose(1, 2) / width, dim=2)
        return logits(tokens, pairs) @ mix.transpose(1, 2)

    return method


if __name__ == "__main__":
    main()
