"""Which way of naming pairs is true: texts against the attributes that pairs select, on demo images that named none.

    python benchmarks/naming.py

Names are made from the discovery images and the dictionary; the attribute that a pair selects is the 0/1 column of the
monitoring images that its coefficient correlates with most. A name is right when it has that attribute's word.
"""

import argparse
import contextlib
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import ROOT, report, run_command

from nadpipe.circuit import naming
from nadpipe.circuit.naming import activity_correlations, agreement, correlations
from nadpipe.demo.world import CONCEPTS
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.kinds.texts import TEXT
from nadpipe.store.kinds.units import DIRECTIONS
from nadpipe.store.pool import read_pool
from nadpipe.store.shards import open_shards

SHARES = (0.01, 0.1, 1.0)


def main() -> None:
    """Run the workflow as far as the assignments, and every way of naming."""
    argparse.ArgumentParser().parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        made = ["results/assignments.parquet", "results/artifacts/monitoring/contributions/0.zarr"]
        run_command("snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "all", *made, "--directory", Path.cwd())
        rows = measure(Path("results"))
    report("naming", "Share of pairs whose text has the word of the attribute that they select, demo", rows)


def measure(results: Path) -> list[dict]:
    """One row a way of naming."""
    artifacts = results / "artifacts"
    pool, model = read_pool(artifacts / "model/readout.zarr")
    store = open_zarr(artifacts / "directions/pair.zarr", DIRECTIONS["pair"], model)
    direction = torch.from_numpy(store["direction"][:]).flatten(0, 1)
    sign = torch.from_numpy(store["sign"][:].astype(np.float32)).flatten()
    norm = store["std_norm"][:].ravel()
    own, embedding, _ = images(artifacts, "discovery", model, sign)
    other, _, truth = images(artifacts, "monitoring", model, sign)
    selected = correlations(other, truth).argmax(1).numpy()
    words = open_zarr(artifacts / "text/dictionary.zarr", TEXT, model)
    names, raw = words.texts(), torch.from_numpy(words["embedding"][:])
    atom, image = naming.centre(raw, raw), naming.unit(embedding - embedding.mean(0))
    has = np.array([[word in name.split() for word in CONCEPTS] for name in names], float)
    cosine, correlated = direction @ atom.T, activity_correlations(own, image, atom)
    found = {
        "nearest, dictionary not centred": direction @ raw.T,
        "nearest to the direction (nearest_text)": cosine,
        "nearest, less the mean direction": naming.unit(direction - direction.mean(0)) @ atom.T,
        "nearest to its 10 top images": of_top(own, image, 10) @ atom.T,
        "nearest to its 50 top images": of_top(own, image, 50) @ atom.T,
        "cosine + that": cosine + of_top(own, image, 50) @ atom.T,
        "cosine + correlation": cosine + correlated,
        "correlation with the similarity of image and text (active_text)": correlated,
    }
    chosen = {name: score.argmax(1).numpy() for name, score in found.items()} | sparse(
        results, names, has, pool.neurons, len(norm)
    )
    order = np.argsort(-norm, kind="stable")[: int((norm > 0).sum())]
    rows = []
    for name, text in chosen.items():
        row = {"text of a pair": name}
        for share in SHARES:
            some = order[: round(share * len(order))]
            right, chance = agreement(selected[some], has[text[some]])
            row[f"largest {share:.0%}"] = f"{right:.3f}"
        rows.append(row | {"chance, all": f"{chance:.3f}"})
    return rows


def images(artifacts: Path, dataset: str, model, sign: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Coefficients along the directions, embeddings and attributes of a data set's images."""
    stores = open_shards(list((artifacts / dataset / "contributions").iterdir()), CONTRIBUTIONS, model)
    coefficient = torch.from_numpy(np.concatenate([store["coefficient"][:] for store in stores])).flatten(1)
    embedding = torch.from_numpy(np.concatenate([store["embedding"][:] for store in stores]))
    manifest = pd.read_parquet(artifacts / dataset / "images.parquet")
    return coefficient * sign, embedding, torch.tensor(manifest[list(CONCEPTS)].to_numpy(np.float32))


def of_top(coefficient: torch.Tensor, image: torch.Tensor, count: int) -> torch.Tensor:
    """The mean embedding of each pair's top images, unit length."""
    top = coefficient.topk(count, dim=0).indices.T
    return naming.unit(torch.stack([image[some].mean(0) for some in top]))


def sparse(results: Path, names: list[str], has: np.ndarray, neurons: int, pairs: int) -> dict[str, np.ndarray]:
    """The first atom of each code, and the word that has the largest summed weight in it."""
    code = pd.read_parquet(results / "assignments.parquet").query("kind == 'sparse'")
    position = pd.Series(range(len(names)), index=names)
    code["atom"] = position.loc[code["text"].astype(str)].to_numpy()
    code["pair"] = code["head"] * neurons + code["neuron"]
    first, weight = np.zeros(pairs, int), np.zeros((pairs, len(CONCEPTS)))
    leading = code[code["rank"] == 1]
    first[leading["pair"]] = leading["atom"]
    np.add.at(weight, code["pair"].to_numpy(), code["weight"].to_numpy()[:, None] * has[code["atom"]])
    single = position.loc[list(CONCEPTS)].to_numpy()
    return {"first atom of the sparse code": first, "word of largest weight in the sparse code": single[weight.argmax(1)]}


if __name__ == "__main__":
    main()
