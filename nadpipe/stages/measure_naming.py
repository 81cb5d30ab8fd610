"""Measure how often the names of pairs agree with 0/1 labels of images."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from nadpipe.circuit import naming
from nadpipe.circuit.ablation import rank_units
from nadpipe.errors import NadpipeError
from nadpipe.progress import track
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.analyses import NAMING
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.kinds.units import ASSIGNMENTS, CORRELATIONS, DIRECTIONS
from nadpipe.store.manifest import read_images
from nadpipe.store.shards import head_coefficients, join, open_shards
from nadpipe.store.stamp import Stamp
from nadpipe.store.tables import read_parquet, write_csv

_SHARES = (0.01, 0.1, 1.0)  # of the pairs, largest first


def measure_naming(
    images: Path,
    contributions: tuple[Path, ...],
    directions: Path,
    assignments: Path,
    correlated: Path,
    output: Path,
    dataset: str = "monitoring",
    attributes: tuple[str, ...] = (),
) -> None:
    """Write the share of pairs whose text names the attribute that correlates most with the pair's coefficient.

    The coefficient is taken along the pair's direction. A text names an attribute if it contains the attribute's word.

    Args:
        images: Manifest with 0/1 columns named like words.
        contributions: Contributions of all shards.
        directions: Pair directions, for signs and norms.
        assignments: Texts of the pairs by direction.
        correlated: Texts of the pairs by correlation.
        output: CSV table, one row per naming rule and share of the pairs.
        dataset: Name of the data set in the table.
        attributes: 0/1 columns to use as attributes; by default all of the manifest.
    """
    store = open_zarr(directions, DIRECTIONS["pair"])
    stores = open_shards(contributions, CONTRIBUTIONS, store.stamp)
    manifest = read_images(images).set_index("image_id")
    words = list(attributes) or [name for name in manifest.columns if manifest[name].isin([0, 1]).all()]
    missing = [name for name in words if name not in manifest]
    if missing:
        raise NadpipeError(f"{images}: no column {missing[0]}; choose other attributes")
    if not words:
        raise NadpipeError(f"{images}: no 0/1 column; naming needs labels, add 0/1 columns to the data set's table")
    truth = torch.tensor(manifest.loc[join(stores, "image_id"), words].to_numpy(dtype=np.float32))
    sign = store.read("sign").astype(np.float32)
    selected = np.empty(sign.shape, int)
    for head in track(range(len(sign)), "comparing pairs with labels", "head"):
        signed = head_coefficients(stores, head) * torch.from_numpy(sign[head])
        selected[head] = naming.correlations(signed, truth).argmax(1)
    norm = store.read("std_norm").astype(float)
    varying = rank_units(norm)[: int((norm > 0).sum())]
    rows = []
    for rule, texts in _texts(assignments, correlated, store.stamp, norm.shape).items():
        named = np.array([[word in str(text).split() for word in words] for text in texts], float)
        for share in _SHARES:
            largest = varying[: max(1, round(share * len(varying)))]
            agreement, chance = naming.agreement(selected.ravel()[largest], named[largest])
            key = {"dataset": dataset, "rule": rule, "share": share, "pairs": len(largest), "attributes": len(words)}
            rows.append(key | {"agreement": agreement, "chance": chance})
    write_csv(output, NAMING, pd.DataFrame(rows))


def _texts(assignments: Path, correlated: Path, model: Stamp, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return each pair's text by each naming rule, in the order of head and neuron; "" for a pair without text."""
    first = read_parquet(assignments, ASSIGNMENTS["pair"], model, filters=[("rank", "==", 1)])
    tables = {rule: first[first["kind"] == rule] for rule in ("nearest", "sparse")}
    tables["correlated"] = read_parquet(correlated, CORRELATIONS, model, filters=[("rank", "==", 1)])
    texts = {}
    for rule, table in tables.items():
        text = np.full(shape, "", dtype=object)
        text[table["head"], table["neuron"]] = table["text"].astype(object)
        texts[rule] = text.ravel()
    return texts
