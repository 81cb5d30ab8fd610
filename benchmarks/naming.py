"""Measure how far the names of pairs are right, beside names of units that mean nothing, on two draws of the demo's images.

    python benchmarks/naming.py

A unit selects the attribute (0/1 column of the monitoring images) that its coefficient correlates with most. Its name scores
the share of its words that are this attribute. Names come from the discovery images and the dictionary. The rule of active_text
was chosen on the images of seed 0 (`chosen on`); all images of seed 1 are held out. The controls are those of
results/naming.csv, and the same architecture with random weights: named by its own similarity of image and text, or by that of
the trained model.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import add_work, demo_config, make_parser, parse, random_checkpoint, report, run_workflow, working_folder

from nadpipe.circuit import naming
from nadpipe.demo.checkpoint import unpack_model
from nadpipe.demo.world import CONCEPTS
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.kinds.texts import TEXT
from nadpipe.store.pairs import open_pair_directions
from nadpipe.store.readout import read_readout
from nadpipe.store.shards import join, open_shards
from nadpipe.store.stamp import Stamp

SHARES = (0.01, 0.1, 1.0)  # of the units, largest first
RULES = {
    "nearest": "nearest to the direction (nearest_text)",
    "sparse": "first atom of the sparse code",
    "correlated": "correlation with the similarity of image and text (active_text)",
}
RANDOM = "pairs of random weights"
Cells = dict[tuple[str, str], list[str]]  # by units and rule: mean with its interval for each of SHARES


def main() -> None:
    """Run the workflow on both draws and with random weights, and compare all ways of naming."""
    parser = make_parser(__doc__)
    add_work(parser)
    given = parse(parser)
    config = demo_config(given.tiny)
    with working_folder(given.work):
        chosen, held_out = run(Path(), config), run(Path("held_out"), config | {"seed": 1})
        with inside(Path("random")):
            _, model = random_checkpoint(unpack_model()[1], Path())
        untrained = run(Path("random"), config | {"seed": 1, "model": model})
        first, second = ({**name_pairs(results), **read_table(results, "controls")} for results in (chosen, held_out))
        second |= read_table(untrained, "pairs") | name_by_others(untrained, held_out)
    rows = []
    for (units, rule), cells in second.items():
        row = {"units": units, "text": RULES.get(rule, rule)}
        for draw, of_draw in (("chosen on", first.get((units, rule), [""] * len(SHARES))), ("held out", cells)):
            row |= {f"{draw}, largest {share:.0%}": cell for share, cell in zip(SHARES, of_draw, strict=True)}
        rows.append(row)
    report(given, "naming", "Share of right words in the names of pairs and of controls, demo", rows)


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Change to a folder, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):
        yield


def run(folder: Path, config: dict[str, Any]) -> Path:
    """Make the table of names with the workflow in a folder, and return its results."""
    with inside(folder):
        run_workflow(config, "results/naming.csv")
    return folder / "results"


def cell(mean: float, low: float, high: float) -> str:
    """Return a mean with its interval; without one if all units select the same attribute."""
    return f"{mean:.3f} ({low:.3f} to {high:.3f})" if np.isfinite(low) else f"{mean:.3f}"


def read_table(results: Path, which: str) -> Cells:
    """Read the rows of results/naming.csv of the controls, or those of the pairs of random weights."""
    table = pd.read_csv(results / "naming.csv")
    table = table[(table["units"] == "pairs") == (which == "pairs")].replace({"units": {"pairs": RANDOM}})
    columns = ["agreement", "agreement_low", "agreement_high"]
    groups = table.groupby(["units", "rule"], sort=False)
    return {key: [cell(*row) for row in rows.set_index("share").loc[list(SHARES), columns].to_numpy()] for key, rows in groups}


def score(selected: np.ndarray, text: np.ndarray, word_share: np.ndarray, std_norm: np.ndarray) -> list[str]:
    """Return the mean share of right words with its interval for each of SHARES."""
    order = np.argsort(-std_norm, kind="stable")[: int((std_norm > 0).sum())]
    cells = []
    for share in SHARES:
        largest = order[: max(1, round(share * len(order)))]
        measured = naming.agreement(selected[largest], word_share[text[largest]])
        cells.append(cell(measured.mean, *np.clip(measured.interval(0.95), 0, 1)))
    return cells


def name_pairs(results: Path) -> Cells:
    """Score all ways of naming pairs."""
    artifacts = results / "artifacts"
    readout, model = read_readout(artifacts / "model/readout.zarr")
    pairs = open_pair_directions(artifacts / "directions/pair.zarr", readout, model)
    direction = torch.cat([pairs.direction(head) for head in range(readout.heads)])
    sign = torch.cat([pairs.sign(head) for head in range(readout.heads)]).float()
    coefficient, image, _ = read_images(artifacts, "discovery", model, sign)
    other_coefficient, _, truth = read_images(artifacts, "monitoring", model, sign)
    selected = naming.correlations(other_coefficient, truth).argmax(1).numpy()
    texts, text = read_texts(artifacts, model)
    embedded_texts = open_zarr(artifacts / "text/dictionary.zarr", TEXT, model).tensor("embedding")
    cosine = direction @ text.T
    correlated = naming.activity_correlations(coefficient, image, text)
    top_10, top_50 = (top_embedding(coefficient, image, count) @ text.T for count in (10, 50))
    scores = {
        "nearest, dictionary not centred": direction @ embedded_texts.T,
        "nearest": cosine,
        "nearest, less the mean direction": naming.normalise(direction - direction.mean(0)) @ text.T,
        "nearest to its 10 top images": top_10,
        "nearest to its 50 top images": top_50,
        "cosine to the direction + cosine to the 50 top images": cosine + top_50,
        "cosine to the direction + correlation": cosine + correlated,
        "correlated": correlated,
    }
    names = {name: score.argmax(1).numpy() for name, score in scores.items()}
    names |= sparse_names(results, texts, readout.neurons, readout.pairs)
    word_share, std_norm = naming.word_shares(texts, CONCEPTS), pairs.norm("std_norm").ravel()
    return {("pairs", name): score(selected, row, word_share, std_norm) for name, row in names.items()}


def name_by_others(untrained: Path, trained: Path) -> Cells:
    """Score pairs of random weights that the trained model names: by its similarity of the same images and texts."""
    artifacts = untrained / "artifacts"
    readout, model = read_readout(artifacts / "model/readout.zarr")
    pairs = open_pair_directions(artifacts / "directions/pair.zarr", readout, model)
    sign = torch.cat([pairs.sign(head) for head in range(readout.heads)]).float()
    coefficient, _, _ = read_images(artifacts, "discovery", model, sign)
    other_coefficient, _, truth = read_images(artifacts, "monitoring", model, sign)
    _, trained_model = read_readout(trained / "artifacts/model/readout.zarr")
    texts, text = read_texts(trained / "artifacts", trained_model)
    stores = open_stores(trained / "artifacts", "discovery", trained_model)
    embedding = torch.from_numpy(join(stores, "embedding"))
    named = naming.activity_correlations(coefficient, naming.normalise(embedding - embedding.mean(0)), text).argmax(1).numpy()
    selected = naming.correlations(other_coefficient, truth).argmax(1).numpy()
    cells = score(selected, named, naming.word_shares(texts, CONCEPTS), pairs.norm("std_norm").ravel())
    return {(RANDOM, "correlation with the trained model's similarity of image and text"): cells}


def open_stores(artifacts: Path, dataset: str, model: Stamp) -> list:
    """Open the contributions of a data set."""
    return open_shards(list((artifacts / dataset / "contributions").glob("*.zarr")), CONTRIBUTIONS, model)


def read_images(
    artifacts: Path, dataset: str, model: Stamp, sign: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return coefficients along the directions, centred embeddings and attributes of a data set's images."""
    stores = open_stores(artifacts, dataset, model)
    coefficient, embedding = (torch.from_numpy(join(stores, name)) for name in ("coefficient", "embedding"))
    manifest = pd.read_parquet(artifacts / dataset / "images.parquet")
    attributes = torch.tensor(manifest[list(CONCEPTS)].to_numpy(np.float32))
    return coefficient.flatten(1) * sign, naming.normalise(embedding - embedding.mean(0)), attributes


def read_texts(artifacts: Path, model: Stamp) -> tuple[list[str], torch.Tensor]:
    """Return the texts of the dictionary and their centred embeddings."""
    store = open_zarr(artifacts / "text/dictionary.zarr", TEXT, model)
    embedding = store.tensor("embedding")
    return store.texts(), naming.centre(embedding, embedding)


def top_embedding(coefficient: torch.Tensor, image: torch.Tensor, count: int) -> torch.Tensor:
    """Return the mean embedding of each pair's top images, unit length."""
    top = coefficient.topk(min(count, len(image)), dim=0).indices.T
    return naming.normalise(torch.stack([image[images].mean(0) for images in top]))


def sparse_names(results: Path, texts: list[str], neurons: int, pairs: int) -> dict[str, np.ndarray]:
    """Return the first atom of each sparse code, and the word with the largest summed weight in it."""
    code = pd.read_parquet(results / "assignments.parquet").query("kind == 'sparse'")
    position = pd.Series(range(len(texts)), index=texts)
    has_word = np.array([[word in text.split() for word in CONCEPTS] for text in texts], float)
    atom = position.loc[code["text"].astype(str)].to_numpy()
    pair = (code["head"] * neurons + code["neuron"]).to_numpy()
    leading = (code["rank"] == 1).to_numpy()
    first, weight = np.zeros(pairs, int), np.zeros((pairs, len(CONCEPTS)))
    first[pair[leading]] = atom[leading]
    np.add.at(weight, pair, code["weight"].to_numpy()[:, None] * has_word[atom])
    word_atoms = position.loc[list(CONCEPTS)].to_numpy()
    return {"sparse": first, "word of largest weight in the sparse code": word_atoms[weight.argmax(1)]}


if __name__ == "__main__":
    main()
