"""How much of the model its texts describe: zero-shot accuracy when each pair writes along its sparse text code.

Source: Bu & Gandelsman, arXiv 2509.19943, where each pair is interpreted by associating its direction with text.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from nadpipe import ablation, attnpool, plots, texts
from nadpipe.artifacts import open_zarr, read_parquet, whole, write_csv
from nadpipe.errors import NadpipeError
from nadpipe.inputs import read_pool
from nadpipe.labelled import read_labelled
from nadpipe.progress import track

_PAIRS = 256  # whose atoms are in memory at once


def measure_sparse_text(
    images: Path,
    contributions: tuple[Path, ...],
    labels: Path,
    directions: Path,
    assignments: Path,
    dictionary: Path,
    attnpool_store: Path,
    output: Path,
    output_plot: Path,
    dataset: str = "monitoring",
    atoms: tuple[int, ...] = (1, 2, 4, 8, 16),
    most: int = 1000,
    confidence: float = 0.95,
) -> None:
    """Write zero-shot accuracy when every pair's direction is the best combination of the first texts of its sparse code.

    Pairs without a code (assignments.sparse_share) stay at their mean; `coded` says how much of the energy the others have.

    Args:
        images: Manifest with labels.
        contributions: All shards of the data set's contributions.
        labels: Embedded labels.
        directions: Pair directions.
        assignments: Texts of the pairs.
        dictionary: Embedded dictionary, that the codes are made of.
        attnpool_store: Exported attention pool.
        output: CSV table, one row a number of atoms.
        output_plot: PNG.
        dataset: Name of the data set in the table.
        atoms: Numbers of texts; those beyond the length of the codes are left out.
        most: Images to measure on, evenly spread.
        confidence: Of the intervals.
    """
    pool, model = read_pool(attnpool_store)
    store, words = open_zarr(directions, "pair directions", model), open_zarr(dictionary, "text", model)
    seen = read_labelled(images, contributions, labels, model, most)
    code = read_parquet(assignments, "pair assignments", model, filters=[("kind", "==", "sparse")])
    if code.empty:
        raise NadpipeError(f"{assignments}: no pair has a sparse code; raise assignments.sparse_share")
    embedding = torch.from_numpy(words["embedding"][:])
    centred_words = texts.centre(embedding, embedding)
    position = pd.Series(range(len(embedding)), index=words.texts())
    code["atom"] = position.loc[code["text"].astype(str)].to_numpy()
    counts = [count for count in sorted(atoms) if count <= code["rank"].max()]
    mean, norm = torch.from_numpy(store["coefficient_mean"][:]), store["std_norm"][:]
    added = torch.zeros(len(counts), *seen.embedding.shape)
    coded = np.zeros(norm.shape, bool)
    by_head = dict(list(code.groupby("head")))
    for head in track(range(pool.heads), "rebuilding embeddings", "head"):
        if head not in by_head:
            continue
        own = np.full((pool.neurons, int(code["rank"].max())), -1)
        own[by_head[head]["neuron"], by_head[head]["rank"] - 1] = by_head[head]["atom"]
        neurons = np.flatnonzero((own >= 0).any(1))
        coded[head, neurons] = True
        direction = torch.from_numpy(store["direction"][head])
        moved = (seen.coefficient(head) - mean[head]) * (attnpool.write_vectors(pool, head) * direction).sum(1)
        for part in np.array_split(neurons, -(-len(neurons) // _PAIRS)):
            index = torch.from_numpy(own[part])
            atom = torch.where((index >= 0)[..., None], centred_words[index.clamp(min=0)], 0)
            added += torch.einsum("vn,ano->avo", moved[:, part], ablation.recode(direction[part], atom, counts))
    base = attnpool.sum_pairs(mean[None], pool)
    energy = float((norm[coded] ** 2).sum() / (norm**2).sum())
    rows = []
    for count, part in [(0, torch.zeros_like(added[0])), *zip(counts, added, strict=True)]:
        found = ablation.fidelity(base + part, seen.embedding, seen.text, seen.label, confidence)
        about = {"dataset": dataset, "unit": "pair", "atoms": count, "coded": energy}
        rows.append(about | dataclasses.asdict(found) | {"images": len(seen.label), "classes": len(seen.text)})
    table = pd.DataFrame(rows)
    write_csv(output, "sparse_text", table)
    with whole(output_plot) as partial:
        shown = table[table["atoms"] > 0]
        plots.save(plots.accuracy_curves(shown, "atoms", "unit", "texts in the code of each pair"), partial)
