"""Measure how often each way of naming pairs is correct, on demo images that were not used for naming.

    python benchmarks/naming.py

Names come from the discovery images and the dictionary. A pair selects the attribute (0/1 column of the monitoring images) that
its coefficient correlates with most. A name is right if it contains the word of that attribute.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import add_work, demo_config, make_parser, parse, report, run_workflow, working_folder

from nadpipe.circuit import naming
from nadpipe.demo.world import CONCEPTS
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.kinds.texts import TEXT
from nadpipe.store.pairs import open_pair_directions
from nadpipe.store.readout import read_readout
from nadpipe.store.shards import join, open_shards
from nadpipe.store.stamp import Stamp

SHARES = (0.01, 0.1, 1.0)  # of the pairs, those of largest std_norm


def main() -> None:
    """Make the assignments with the workflow, and compare all ways of naming."""
    parser = make_parser(__doc__)
    add_work(parser)
    given = parse(parser)
    with working_folder(given.work):
        contributions = "results/artifacts/monitoring/contributions/0.zarr"
        run_workflow(demo_config(given.tiny), "results/assignments.parquet", contributions)
        rows = measure(Path("results"))
    report(given, "naming", "Share of pairs whose text has the word of the attribute that they select, demo", rows)


def measure(results: Path) -> list[dict]:
    """Return one row per way of naming."""
    artifacts = results / "artifacts"
    readout, model = read_readout(artifacts / "model/readout.zarr")
    pairs = open_pair_directions(artifacts / "directions/pair.zarr", readout, model)
    direction = torch.cat([pairs.direction(head) for head in range(readout.heads)])
    sign = torch.cat([pairs.sign(head) for head in range(readout.heads)]).float()
    std_norm = pairs.norm("std_norm").ravel()
    coefficient, embedding, _ = read_images(artifacts, "discovery", model, sign)
    other_coefficient, _, truth = read_images(artifacts, "monitoring", model, sign)
    selected = naming.correlations(other_coefficient, truth).argmax(1).numpy()
    dictionary = open_zarr(artifacts / "text/dictionary.zarr", TEXT, model)
    texts, embedded_texts = dictionary.texts(), dictionary.tensor("embedding")
    has_word = np.array([[word in text.split() for word in CONCEPTS] for text in texts], float)
    centred_texts = naming.centre(embedded_texts, embedded_texts)
    image = naming.normalise(embedding - embedding.mean(0))
    cosine = direction @ centred_texts.T
    correlated = naming.activity_correlations(coefficient, image, centred_texts)
    top_10, top_50 = (top_embedding(coefficient, image, count) @ centred_texts.T for count in (10, 50))
    scores = {
        "nearest, dictionary not centred": direction @ embedded_texts.T,
        "nearest to the direction (nearest_text)": cosine,
        "nearest, less the mean direction": naming.normalise(direction - direction.mean(0)) @ centred_texts.T,
        "nearest to its 10 top images": top_10,
        "nearest to its 50 top images": top_50,
        "cosine to the direction + cosine to the 50 top images": cosine + top_50,
        "cosine to the direction + correlation": cosine + correlated,
        "correlation with the similarity of image and text (active_text)": correlated,
    }
    names = {name: score.argmax(1).numpy() for name, score in scores.items()}
    names |= sparse_names(results, texts, has_word, readout.neurons, readout.pairs)
    order = np.argsort(-std_norm, kind="stable")[: int((std_norm > 0).sum())]
    rows = []
    for name, text in names.items():
        row = {"text of a pair": name}
        for share in SHARES:
            largest = order[: max(1, round(share * len(order)))]
            right, chance = naming.agreement(selected[largest], has_word[text[largest]])
            row[f"largest {share:.0%}"] = f"{right:.3f}"
        rows.append(row | {"chance, all": f"{chance:.3f}"})
    return rows


def read_images(
    artifacts: Path, dataset: str, model: Stamp, sign: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return coefficients along the directions, embeddings and attributes of a data set's images."""
    stores = open_shards(list((artifacts / dataset / "contributions").glob("*.zarr")), CONTRIBUTIONS, model)
    coefficient = torch.from_numpy(join(stores, "coefficient")).flatten(1)
    manifest = pd.read_parquet(artifacts / dataset / "images.parquet")
    attributes = torch.tensor(manifest[list(CONCEPTS)].to_numpy(np.float32))
    return coefficient * sign, torch.from_numpy(join(stores, "embedding")), attributes


def top_embedding(coefficient: torch.Tensor, image: torch.Tensor, count: int) -> torch.Tensor:
    """Return the mean embedding of each pair's top images, unit length."""
    top = coefficient.topk(min(count, len(image)), dim=0).indices.T
    return naming.normalise(torch.stack([image[images].mean(0) for images in top]))


def sparse_names(results: Path, texts: list[str], has_word: np.ndarray, neurons: int, pairs: int) -> dict[str, np.ndarray]:
    """Return the first atom of each sparse code, and the word with the largest summed weight in it."""
    code = pd.read_parquet(results / "assignments.parquet").query("kind == 'sparse'")
    position = pd.Series(range(len(texts)), index=texts)
    atom = position.loc[code["text"].astype(str)].to_numpy()
    pair = (code["head"] * neurons + code["neuron"]).to_numpy()
    leading = (code["rank"] == 1).to_numpy()
    first, weight = np.zeros(pairs, int), np.zeros((pairs, len(CONCEPTS)))
    first[pair[leading]] = atom[leading]
    np.add.at(weight, pair, code["weight"].to_numpy()[:, None] * has_word[atom])
    word_atoms = position.loc[list(CONCEPTS)].to_numpy()
    return {"first atom of the sparse code": first, "word of largest weight in the sparse code": word_atoms[weight.argmax(1)]}


if __name__ == "__main__":
    main()
