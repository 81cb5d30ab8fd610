"""Measure how stable the signs of pairs are, by the number of top images that decide them.

    python benchmarks/signs.py

Two random parts of the images, halves or tenths, decide the signs independently. The table gives the share of pairs with the
same sign in both parts, for all pairs and for each tenth of the pairs by `std_norm`, the largest first. As a control, the signs
of one part are shuffled over the pairs. "same as from a twentieth" compares the signs with those of the smallest number of top
images in the same part. The models are that of the demo, and one with random weights on the same images.
"""

from pathlib import Path

import torch
from common import (
    ARCHITECTURES,
    TINY,
    add_work,
    demo_config,
    make_parser,
    parse,
    report,
    run_with_random_model,
    run_workflow,
    working_folder,
)
from jaxtyping import Float, Int

from nadpipe.circuit.accumulators import Extremes
from nadpipe.circuit.directions import fit_pairs
from nadpipe.circuit.readout import write_vectors
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.readout import read_readout
from nadpipe.store.shards import join, open_shards

SHARES = (1 / 20, 1 / 6, 1 / 5, 1 / 2, 5 / 6)  # top images; 50 of 300 are a sixth, 50 of 60 are five sixths
PARTS = (2, 10)  # each part is a half or a tenth of the images
TENTHS = 10


def main() -> None:
    """Make the coefficients with the workflow, and split their images."""
    parser = make_parser(__doc__)
    add_work(parser)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="RN50", help="of the model with random weights")
    parser.add_argument("--splits", type=int, default=5, help="random splits of the images")
    given = parse(parser, architecture=TINY, splits=2)
    config = demo_config(given.tiny)
    shards = range(config["datasets"]["discovery"]["shards"])
    targets = [f"results/artifacts/discovery/contributions/{shard}.zarr" for shard in shards]
    with working_folder(given.work):
        run_workflow(config, *targets)
        results = {
            "demo": Path("results"),
            f"{given.architecture}, random weights": run_with_random_model(config, given.architecture, *targets),
        }
        rows = [row for model, path in results.items() for row in measure(model, path / "artifacts", given.splits)]
    report(given, "signs", f"Pairs with the same sign in two parts of the images, mean of {given.splits} splits", rows)


def measure(model: str, artifacts: Path, splits: int) -> list[dict]:
    """Return one row per size of the parts and number of top images."""
    readout, stamp = read_readout(artifacts / "model/readout.zarr")
    stores = open_shards(list((artifacts / "discovery/contributions").glob("*.zarr")), CONTRIBUTIONS, stamp)
    coefficient = torch.from_numpy(join(stores, "coefficient")).float()
    write_norm = torch.stack([write_vectors(readout, head).norm(dim=1) for head in range(readout.heads)])
    order = (coefficient.std(0) * write_norm).flatten().argsort(descending=True)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for part in PARTS:
        images = len(coefficient) // part
        tops = {max(1, round(share * images)): [] for share in SHARES}
        for _ in range(splits):
            two = torch.randperm(len(coefficient), generator=generator)[: 2 * images].split(images)
            farthest = [deviations(coefficient[chosen]) for chosen in two]
            for top, found in tops.items():
                found.append(torch.stack([signs(deviation[:top]) for deviation in farthest]))
        few = torch.stack(next(iter(tops.values())))
        for top, found in tops.items():
            sign = torch.stack(found)[..., order]
            rows.append(describe(model, images, top, sign, few[..., order], generator))
    return rows


def deviations(coefficient: Float[torch.Tensor, "image head neuron"]) -> Float[torch.Tensor, "image pair"]:
    """Return the deviations of every pair from its mean, largest magnitude first."""
    extremes = Extremes(len(coefficient))
    extremes.add(coefficient)
    return extremes.result().farthest.flatten(1)


def signs(farthest: Float[torch.Tensor, "kept pair"]) -> Int[torch.Tensor, " pair"]:
    """Return the signs of all pairs from the deviations of their top images."""
    return fit_pairs(farthest, torch.ones(farthest.shape[1], 1)).sign


def describe(
    model: str,
    images: int,
    top: int,
    sign: Int[torch.Tensor, "split part pair"],
    few: Int[torch.Tensor, "split part pair"],
    generator: torch.Generator,
) -> dict:
    """Return a row of the table. few: signs with the smallest number of top images. Pairs are ordered by size."""
    same = (sign[:, 0] == sign[:, 1]).float().mean(0)
    shuffled = sign[:, 1, torch.randperm(sign.shape[2], generator=generator)]
    tenths = {f"tenth {number}": f"{tenth.mean():.3f}" for number, tenth in enumerate(same.tensor_split(TENTHS), start=1)}
    return {
        "model": model,
        "images of a part": images,
        "top images": top,
        "sign +": f"{(sign > 0).float().mean():.3f}",
        "same sign": f"{same.mean():.3f}",
        "same sign, shuffled": f"{(sign[:, 0] == shuffled).float().mean():.3f}",
        "same as from a twentieth": f"{(sign == few).float().mean():.3f}",
        **tenths,
    }


if __name__ == "__main__":
    main()
