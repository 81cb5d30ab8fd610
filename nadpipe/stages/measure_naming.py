"""Measure how often the names of pairs, and of controls that mean nothing, agree with 0/1 labels of images."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from nadpipe.circuit import naming
from nadpipe.circuit.ablation import rank_units
from nadpipe.circuit.controls import random_directions, random_sums
from nadpipe.circuit.pursuit import Strongest, matching_pursuit
from nadpipe.errors import NadpipeError
from nadpipe.progress import track
from nadpipe.store.arrays import ZarrStore, open_zarr
from nadpipe.store.kinds.analyses import NAMING
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.kinds.texts import TEXT
from nadpipe.store.kinds.units import ASSIGNMENTS, CORRELATIONS
from nadpipe.store.manifest import read_images
from nadpipe.store.pairs import PairDirections, open_pair_directions
from nadpipe.store.readout import read_readout
from nadpipe.store.shards import blocks, count_blocks, join, open_shards
from nadpipe.store.stamp import Stamp
from nadpipe.store.tables import read_parquet, write_csv

_SHARES = (0.01, 0.1, 1.0)  # of the units, largest first
_MEMBERS = 40  # pairs of a random sum
_UNITS_AT_ONCE = 512  # units whose correlations with all texts are in memory at once


def measure_naming(
    images: Path,
    contributions: tuple[Path, ...],
    discovery: tuple[Path, ...],
    directions: Path,
    assignments: Path,
    correlated: Path,
    dictionary: Path,
    readout: Path,
    output: Path,
    dataset: str = "monitoring",
    attributes: tuple[str, ...] = (),
    confidence: float = 0.95,
    seed: int = 0,
) -> None:
    """Write the share of a name's words that are right, for pairs and for as many units that mean nothing.

    A unit's right word is the attribute that correlates most with its coefficient, along its direction. The controls are named
    by the same rules from the same images.

    Args:
        images: Manifest with 0/1 columns named like words.
        contributions: Contributions of all shards of these images.
        discovery: Contributions of all discovery shards, which name the controls.
        directions: Pair directions, for signs and norms.
        assignments: Texts of the pairs by direction.
        correlated: Texts of the pairs by correlation.
        dictionary: Embedded dictionary.
        readout: Exported readout.
        output: CSV table, one row per kind of unit, naming rule and share of the units.
        dataset: Name of the data set in the table.
        attributes: 0/1 columns to use as attributes; by default all of the manifest.
        confidence: Confidence of the intervals.
        seed: Seed of the controls.
    """
    weights, model = read_readout(readout)
    pairs = open_pair_directions(directions, weights, model)
    stores, discovered = (open_shards(paths, CONTRIBUTIONS, model) for paths in (contributions, discovery))
    words, truth = _attributes(images, join(stores, "image_id"), attributes)
    texts = _read_texts(dictionary, model)
    tested = _sum_blocks(stores, pairs, "comparing with labels", naming.standardise(truth.double()).float())
    named = naming.word_shares([*texts.text, ""], words)  # the last row is for pairs without text
    measured = {}
    for name, unit in [
        ("pairs", _pairs(pairs, tested, texts, {"direction": assignments, "correlation": correlated}, model)),
        *_projections(pairs, discovered, tested, texts, seed),
        *_sums(pairs, discovered, tested, texts, seed),
    ]:
        order = rank_units(unit.size)[: int((unit.size > 0).sum())]
        for rule, text in unit.text.items():
            for share in _SHARES:
                largest = order[: max(1, round(share * len(order)))]
                measured[name, rule, share] = len(largest), naming.agreement(unit.selected[largest], named[text[largest]])
    rows = [
        {"dataset": dataset, "units": name, "rule": rule, "share": share, "count": count, "attributes": len(words)}
        | {"selected": int(scored.present.sum())}
        | _interval("agreement", scored, confidence, low=0.0)
        | _interval("difference", None if name == "pairs" else measured["pairs", rule, share][1] - scored, confidence)
        for (name, rule, share), (count, scored) in measured.items()
    ]
    write_csv(output, NAMING, pd.DataFrame(rows))


def _interval(name: str, measured: naming.Agreement | None, confidence: float, low: float = -1.0) -> dict[str, float]:
    """Return a mean with its interval, cut to the possible values, as columns; NaN for None."""
    values = (np.nan,) * 3 if measured is None else (measured.mean, *np.clip(measured.interval(confidence), low, 1))
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def _attributes(images: Path, image_id: np.ndarray, attributes: tuple[str, ...]) -> tuple[list[str], Tensor]:
    """Return the names of the attributes and their values (image, attribute)."""
    manifest = read_images(images).set_index("image_id")
    words = list(attributes) or [name for name in manifest.columns if manifest[name].isin([0, 1]).all()]
    missing = [name for name in words if name not in manifest]
    if missing:
        raise NadpipeError(f"{images}: no column {missing[0]}; choose other attributes")
    if not words:
        raise NadpipeError(f"{images}: no 0/1 column; naming needs labels, add 0/1 columns to the data set's table")
    return words, torch.tensor(manifest.loc[image_id, words].to_numpy(dtype=np.float32))


@dataclasses.dataclass(frozen=True)
class _Texts:
    """The dictionary: its texts, and their centred embeddings."""

    path: Path
    text: list[str]
    embedding: Float[Tensor, "text embed"]


def _read_texts(path: Path, model: Stamp) -> _Texts:
    """Read and centre the embedded dictionary."""
    store = open_zarr(path, TEXT, model)
    embedding = store.tensor("embedding")
    return _Texts(path, store.texts(), naming.centre(embedding, embedding))


@dataclasses.dataclass(frozen=True)
class _Moments:
    """Sums over images of centred coefficients, and of centred embeddings, times columns that are centred over the images."""

    coefficient: Float[Tensor, "pair column"]
    embedding: Float[Tensor, "embed column"]
    energy: dict[str, Float[np.ndarray, " sum"]]  # mean square of sums of centred coefficients


def _sum_blocks(
    stores: Sequence[ZarrStore],
    pairs: PairDirections,
    label: str,
    column: Float[Tensor, "image column"],
    sums: Mapping[str, csr_array] = MappingProxyType({}),
) -> _Moments:
    """Sum over all images block by block, so that memory does not grow with their number.

    Coefficients are centred by their mean over the discovery images. The columns sum to zero, so this offset has no effect.
    """
    mean = torch.from_numpy(pairs.norm("coefficient_mean")).float()
    total = torch.zeros(mean.numel(), column.shape[1])
    energy = {name: np.zeros(matrix.shape[0]) for name, matrix in sums.items()}
    start = 0
    for (coefficient,) in track(blocks(stores, "coefficient"), label, "block", count_blocks(stores, "coefficient")):
        centred = (coefficient.float() - mean).flatten(1)
        total += centred.T @ column[start : start + len(centred)]
        for name, matrix in sums.items():
            energy[name] += np.square(matrix @ centred.T.numpy()).sum(1) / len(column)
        start += len(centred)
    embedding = torch.from_numpy(join(stores, "embedding")).float()
    return _Moments(total, (embedding - embedding.mean(0)).T @ column, energy)


@dataclasses.dataclass(frozen=True)
class _Units:
    """Units to score: size, selected attribute, and row of the text by naming rule; -1 for no text."""

    size: Float[np.ndarray, " unit"]
    selected: Int[np.ndarray, " unit"]
    text: dict[str, Int[np.ndarray, " unit"]]


def _pairs(pairs: PairDirections, tested: _Moments, texts: _Texts, tables: dict[str, Path], model: Stamp) -> _Units:
    """Return the pairs with the texts of their tables."""
    first = read_parquet(tables["direction"], ASSIGNMENTS["pair"], model, filters=[("rank", "==", 1)])
    by_rule = {rule: first[first["kind"] == rule] for rule in ("nearest", "sparse")}
    by_rule["correlated"] = read_parquet(tables["correlation"], CORRELATIONS, model, filters=[("rank", "==", 1)])
    position, text = pd.Index(texts.text), {}
    for rule, table in by_rule.items():
        row = position.get_indexer(table["text"].astype(str))
        if (row < 0).any():
            unknown = table["text"].iloc[int(row.argmin())]
            raise NadpipeError(f"{texts.path}: no text {unknown!r}; give the dictionary that named the pairs")
        rows = np.full(pairs.norm("std_norm").shape, -1)
        rows[table["head"], table["neuron"]] = row
        text[rule] = rows.ravel()
    sign = pairs.store.tensor("sign").flatten().float()
    selected = (sign[:, None] * tested.coefficient).argmax(1).numpy()
    return _Units(pairs.norm("std_norm").ravel().astype(float), selected, text)


def _projections(
    pairs: PairDirections, discovered: Sequence[ZarrStore], tested: _Moments, texts: _Texts, seed: int
) -> Iterator[tuple[str, _Units]]:
    """Yield random projections of the embedding, as many as pairs that vary: isotropic, then of the pairs' spectrum."""
    embedding = torch.from_numpy(join(discovered, "embedding")).float()
    centred = embedding - embedding.mean(0)
    image = naming.normalise(centred)
    covariance, activity = centred.T @ centred, centred.T @ (image - image.mean(0))
    active_text = naming.standardised_texts(image, texts.embedding)
    strongest = Strongest(texts.embedding)
    spectrum = torch.stack([direction.T @ direction for direction in map(pairs.direction, range(pairs.readout.heads))]).sum(0)
    count = int((pairs.norm("std_norm") > 0).sum())
    for name, drawn_from in (
        ("random projections", torch.eye(len(spectrum))),
        ("projections of the pairs' spectrum", spectrum),
    ):
        direction = random_directions(count, drawn_from, seed)
        size = ((direction @ covariance) * direction).sum(1).clamp(min=0).sqrt().numpy()
        batches = direction.split(_UNITS_AT_ONCE)
        rules = {
            "nearest": [naming.nearest(batch, texts.embedding, 1)[1][:, 0] for batch in track(batches, name, "batch")],
            "sparse": [matching_pursuit(batch, texts.embedding, 1, strongest).atom[:, 0] for batch in batches],
            "correlated": [(batch @ activity @ active_text.T).argmax(1) for batch in batches],
        }
        selected = (direction @ tested.embedding).argmax(1).numpy()
        yield name, _Units(size, selected, {rule: torch.cat(rows).numpy() for rule, rows in rules.items()})


def _sums(
    pairs: PairDirections, discovered: Sequence[ZarrStore], tested: _Moments, texts: _Texts, seed: int
) -> Iterator[tuple[str, _Units]]:
    """Yield as many sums of random pairs as there are pairs that vary. They have no direction, only an activity.

    Covariances are linear in the coefficient, so those of a sum are sums of those of its pairs.
    """
    sign, deviation = (pairs.store.read(name).ravel().astype(float) for name in ("sign", "coefficient_std"))
    varying = np.flatnonzero(pairs.norm("std_norm").ravel() > 0)
    scaled = np.divide(sign, deviation, out=np.zeros_like(sign), where=deviation > 0)
    sums = {
        name: random_sums(len(varying), varying, _MEMBERS, weight, seed)
        for name, weight in ((f"sums of {_MEMBERS} pairs", sign), (f"sums of {_MEMBERS} standardised pairs", scaled))
    }
    image = torch.from_numpy(join(discovered, "embedding")).float()
    image = naming.normalise(image - image.mean(0))
    named = _sum_blocks(discovered, pairs, "naming random sums", image - image.mean(0), sums)
    active_text = naming.standardised_texts(image, texts.embedding)
    for name, matrix in sums.items():
        starts = track(range(0, len(varying), _UNITS_AT_ONCE), name, "batch")
        activity = (torch.from_numpy(matrix[start : start + _UNITS_AT_ONCE] @ named.coefficient.numpy()) for start in starts)
        text = torch.cat([(batch @ active_text.T).argmax(1) for batch in activity]).numpy()
        selected = (matrix @ tested.coefficient.numpy()).argmax(1)
        yield name, _Units(np.sqrt(named.energy[name]), selected, {"correlated": text})
