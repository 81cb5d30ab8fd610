"""Measure how many pairs other ways to select by text have in common with the default.

    python benchmarks/selection.py

The default selects pairs by their write vector and with centred texts. The others select by signed direction, with texts that
are not centred, or both, which is published for concepts. The table gives the share of the default's pairs that the other way
also selects, as mean over the texts, with its smallest and largest value. "chance" is the expected share for two random
selections. The models are that of the demo, and one with random weights.
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

from nadpipe.circuit.accumulators import TopPairs
from nadpipe.circuit.directions import pair_directions
from nadpipe.circuit.naming import centre, normalise
from nadpipe.circuit.readout import write_vectors
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.texts import TEXT
from nadpipe.store.pairs import PairDirections, open_pair_directions
from nadpipe.store.readout import read_readout

SETS = {"segmentation": "segmentation", "concepts": "dictionary"}  # each with the texts whose mean centres it
TARGETS = [
    f"results/artifacts/{name}.zarr" for name in ("directions/pair", *(f"text/{name}" for name in (*SETS, "dictionary")))
]
CLASS_SHARE = 20_000 / 147_456  # pairs per class, published: k of segmentation, of the pairs of RN50x16
PUBLISHED_K = 5  # pairs per concept


def main() -> None:
    """Make texts and directions with the workflow, and compare selections."""
    parser = make_parser(__doc__)
    add_work(parser)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="RN50", help="of the model with random weights")
    given = parse(parser, architecture=TINY)
    config = demo_config(given.tiny)
    with working_folder(given.work):
        run_workflow(config, *TARGETS)
        results = {
            "demo": Path("results"),
            f"{given.architecture}, random weights": run_with_random_model(config, given.architecture, *TARGETS),
        }
        rows = [row for model, path in results.items() for row in measure(model, path / "artifacts", config["shift"]["k"])]
    report(
        given, "selection", "Share of the pairs selected by write vector with centred texts that another way also selects", rows
    )


def measure(model: str, artifacts: Path, concept_k: int) -> list[dict]:
    """Return one row per set of texts, number of pairs, and way to select them."""
    readout, stamp = read_readout(artifacts / "model/readout.zarr")
    pairs = open_pair_directions(artifacts / "directions/pair.zarr", readout, stamp)
    embeddings = {
        name: open_zarr(artifacts / f"text/{name}.zarr", TEXT, stamp).tensor("embedding") for name in (*SETS, "dictionary")
    }
    rows = []
    for name, reference in SETS.items():
        centred, uncentred = centre(embeddings[name], embeddings[reference]), normalise(embeddings[name])
        ways = {"direction, centred": ("direction", centred)}
        if name == "concepts":
            ways |= {"write, not centred": ("write", uncentred), "direction, not centred": ("direction", uncentred)}
        for k in (round(CLASS_SHARE * readout.pairs),) if name == "segmentation" else (concept_k, PUBLISHED_K):
            default = select(pairs, "write", centred, k)
            for way, (by, text) in ways.items():
                common = shared(default, select(pairs, by, text, k))
                rows.append(
                    {
                        "model": model,
                        "texts": "classes" if name == "segmentation" else name,
                        "k": k,
                        "compared with write, centred": way,
                        "in common": f"{common.mean():.3f}",
                        "least": f"{common.min():.3f}",
                        "most": f"{common.max():.3f}",
                        "chance": f"{k / readout.pairs:.4f}",
                    }
                )
    return rows


def select(pairs: PairDirections, by: str, text: Float[torch.Tensor, "text embed"], k: int) -> Int[torch.Tensor, "text rank"]:
    """Return the numbers of the k pairs selected for each text."""
    readout, top = pairs.readout, TopPairs(k)
    for head in range(readout.heads):
        write = normalise(write_vectors(readout, head))
        top.add(head, write if by == "write" else pair_directions(readout, head, pairs.sign(head)), text)
    selection = top.result()
    return selection.head * readout.neurons + selection.neuron


def shared(first: Int[torch.Tensor, "text rank"], second: Int[torch.Tensor, "text rank"]) -> Float[torch.Tensor, " text"]:
    """Return the share of the pairs of each text that both selections have."""
    return torch.stack([torch.isin(one, other).float().mean() for one, other in zip(first, second, strict=True)])


if __name__ == "__main__":
    main()
