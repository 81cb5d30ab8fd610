"""The only module that opens or saves Zarr, Parquet and CSV: names, axes, schemas, stamps, and writing whole or not at all.

ZARR and PARQUET below are the contract; docs/artifacts.md is generated from them. Every artifact is stamped with its
kind, the format version, the model and the code that made it, and opening one checks the stamp.
"""

import contextlib
import dataclasses
import glob
import itertools
import json
import math
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from nadpipe import __version__
from nadpipe.errors import NadpipeError

FORMAT = 4
_CHUNK_BYTES = 4 * 2**20
_FILE_BYTES = 64 * 2**20
_ROW_GROUP = 2**16
_INDEXED = ("view", "head", "neuron", "token", "component", "rank")  # axes that get an integer coordinate
_FIRST_SPATIAL_TOKEN = 1
_UMASK = os.umask(0o022)
os.umask(_UMASK)


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a Zarr store: its axes, the kind of number, what it means. `most`: a chunk's longest side per axis."""

    axes: tuple[str, ...]
    kind: str  # float, int or text
    unit: str
    source: str
    most: Mapping[str, int] = dataclasses.field(default_factory=dict)


VIEW_TABLE = {
    "image_id": Array(("view",), "int", "row of images.parquet", "manifest"),
    "crop_top": Array(("view",), "int", "pixels of the resized image", "view table"),
    "crop_left": Array(("view",), "int", "pixels of the resized image", "view table"),
    "crop_size": Array(("view",), "int", "pixels of the resized image", "view table"),
    "resized_height": Array(("view",), "int", "pixels", "view table"),
    "resized_width": Array(("view",), "int", "pixels", "view table"),
}


def _subspace(unit: str) -> dict[str, Array]:
    """The arrays of directions of a unit that is not rank one."""
    return {
        "direction": Array(
            (unit, "component", "embed"), "float", "unit length", "docs/method.md, Directions: first right-singular vectors"
        ),
        "explained": Array(
            (unit, "component"), "float", "share of the kept images' centred energy", "docs/method.md, Directions"
        ),
        "mean_norm": Array((unit,), "float", "embedding units", "norm of the mean contribution"),
        "std_norm": Array((unit,), "float", "embedding units", "root mean square norm of centred contributions"),
        "top_norm": Array((unit,), "float", "embedding units", "mean norm of the kept images' centred contributions"),
    }


ZARR: dict[str, dict[str, Array]] = {
    "attention pool": {
        "positional_embedding": Array(("token", "neuron"), "float", "activation", "weights"),
        **{
            f"{name}_weight": Array(("out", "neuron"), "float", "weight, as in torch.nn.Linear", f"W_{name.upper()}")
            for name in "qkv"
        },
        "c_weight": Array(("embed", "neuron"), "float", "weight, as in torch.nn.Linear", "W_O"),
        **{f"{name}_bias": Array(("out",), "float", "bias", f"b_{name.upper()}") for name in "qkv"},
        "c_bias": Array(("embed",), "float", "bias", "b_O"),
    },
    "features": {
        "activation": Array(("view", "token", "neuron"), "float", "activation", "z, before the positional embedding"),
        "embedding": Array(
            ("view", "embed"),
            "float",
            "embedding units, not normalised",
            "image tower; attribute encode_image_error: how exactly",
        ),
        "rounding": Array(
            ("view",), "float", "relative", "‖attention pool of the stored activation - embedding‖ / ‖embedding‖, 0 in float32"
        ),
        **VIEW_TABLE,
    },
    "contributions": {
        "coefficient": Array(
            ("view", "head", "neuron"),
            "float",
            "activation",
            "s[h, n] = sum_t a[h, t] x_t[n]",
            most={"head": 2, "view": 32},  # between one image's coefficients and one pair's column; docs/benchmarks.md
        ),
        "attention": Array(("view", "head", "token"), "float", "share, sums to 1 over tokens", "a[h, t]"),
        "embedding": Array(("view", "embed"), "float", "embedding units, not normalised", "sum over all pairs"),
        "residual": Array(("view",), "float", "relative", "‖sum over pairs - embedding of the features‖ / ‖embedding‖"),
        "rounding": Array(
            ("view",), "float", "relative", "‖sum over stored pairs - sum over pairs‖ / ‖sum over pairs‖, 0 in float32"
        ),
        "image_id": VIEW_TABLE["image_id"],
        "attention_mean": Array(("head", "token"), "float", "share", "mean over the shard's views of a[h, t]"),
        "value_mean": Array(
            ("head", "token", "width"), "float", "value", "mean over the shard's views of a[h, t] (W_V^h x_t + b_V^h)"
        ),
    },
    "dense contributions": {
        "contribution": Array(
            ("view", "head", "neuron", "embed"), "float", "embedding units", "r[h, n] = s[h, n] w[h, n] + b[h]"
        ),
        "image_id": VIEW_TABLE["image_id"],
    },
    "pair moments": {
        "sum": Array(("head", "neuron"), "float", "activation", "sum of s[h, n] over the shard's views"),
        "square_sum": Array(("head", "neuron"), "float", "activation²", "sum of s[h, n]² over the shard's views"),
        "extreme": Array(
            ("head", "neuron", "kept"), "float", "activation", "the top_images smallest and largest s[h, n], ascending"
        ),
    },
    "pair directions": {
        "direction": Array(("head", "neuron", "embed"), "float", "unit length", "docs/method.md, Directions: sign · w / ‖w‖"),
        "sign": Array(("head", "neuron"), "int", "1 or -1", "more than half of the kept images project positively"),
        "write_norm": Array(("head", "neuron"), "float", "embedding units per activation", "‖w[h, n]‖"),
        "coefficient_mean": Array(("head", "neuron"), "float", "activation", "mean of s[h, n] over views"),
        "coefficient_std": Array(("head", "neuron"), "float", "activation", "standard deviation of s[h, n] over views"),
        "mean_norm": Array(("head", "neuron"), "float", "embedding units", "‖mean s · w + b‖"),
        "std_norm": Array(("head", "neuron"), "float", "embedding units", "std s · ‖w‖"),
        "top_norm": Array(("head", "neuron"), "float", "embedding units", "mean of |s - mean s| ‖w‖ over the kept images"),
    },
    "neuron directions": _subspace("neuron"),
    "head directions": _subspace("head"),
    "text": {
        "embedding": Array(("text", "embed"), "float", "unit length, not centred", "mean over templates"),
        "text": Array(("text",), "text", "text", "config"),
    },
    "selection": {
        "head": Array(("text", "rank"), "int", "index", "pair of this rank"),
        "neuron": Array(("text", "rank"), "int", "index", "pair of this rank"),
        "cosine": Array(("text", "rank"), "float", "cosine", "of the pair's direction to the centred text"),
        "query": Array(("text", "embed"), "float", "unit length", "the centred text"),
        "text": Array(("text",), "text", "text", "config"),
    },
}


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a Parquet table."""

    type: pa.DataType
    comment: str


_TEXT = pa.dictionary(pa.int32(), pa.string())
_MATCH = {
    "kind": Column(_TEXT, "nearest: by cosine; sparse: by orthogonal matching pursuit"),
    "rank": Column(pa.int32(), "from 1, best first (nearest) or in the order chosen (sparse)"),
    "text": Column(_TEXT, "text of the dictionary"),
    "weight": Column(pa.float32(), "cosine (nearest) or weight of the atom (sparse)"),
    "explained": Column(pa.float32(), "share of the direction's energy: this text alone (nearest), up to this rank (sparse)"),
}
_HEAD = Column(pa.int32(), "head of the attention pool")
_NEURON = Column(pa.int32(), "neuron (channel) of the last residual block")
_K = Column(pa.int32(), "pairs selected per text of a class; null for methods that select none")
_UNIT_TABLE = {
    "mean_norm": Column(pa.float32(), "norm of the mean contribution, embedding units"),
    "std_norm": Column(pa.float32(), "root mean square norm of the centred contributions over all discovery views"),
    "top_norm": Column(pa.float32(), "mean norm of the centred contributions of the kept (top) images"),
    "contribution_rank": Column(pa.int32(), "1 for the unit with the largest std_norm"),
    "nearest_text": Column(_TEXT, "text of the dictionary with the largest cosine to the direction; null for a zero direction"),
    "nearest_cosine": Column(pa.float32(), "that cosine"),
    "sparse_text": Column(_TEXT, "first atom of the sparse code"),
    "sparse_explained": Column(pa.float32(), "share of the direction's energy that the whole sparse code explains"),
}

PARQUET: dict[str, dict[str, Column]] = {
    "images": {
        "image_id": Column(pa.int64(), "row number, from 0; -1 for an image that is skipped, and these come last"),
        "path": Column(pa.string(), "image file, relative to the working directory unless absolute"),
        "width": Column(pa.int32(), "pixels, upright"),
        "height": Column(pa.int32(), "pixels, upright"),
        "sha256": Column(pa.string(), "checksum of the image file"),
        "label": Column(_TEXT, "class label; may be null"),
        "group": Column(_TEXT, "year, batch or source that the image belongs to; may be null"),
        "mask_path": Column(pa.string(), "label map of the image; may be null"),
        "problem": Column(pa.string(), "why the image is skipped; null for one that is used"),
    },
    "pairs": {
        "head": _HEAD,
        "neuron": _NEURON,
        "write_norm": Column(pa.float32(), "‖w[h, n]‖: embedding units per unit of coefficient"),
        "coefficient_mean": Column(pa.float32(), "mean of the coefficient over all discovery views"),
        "coefficient_std": Column(pa.float32(), "standard deviation of the coefficient over all discovery views"),
        "sign": Column(pa.int8(), "1 if the direction is w / ‖w‖, -1 if it is its opposite"),
        "explained": Column(pa.float32(), "share of centred energy on the direction: 1 for every pair that varies, else null"),
        **_UNIT_TABLE,
        "active_text": Column(_TEXT, "text whose similarity to the discovery images goes most with the pair's coefficient"),
        "active_correlation": Column(pa.float32(), "that correlation"),
    },
    "pair correlations": {
        "head": _HEAD,
        "neuron": _NEURON,
        "rank": Column(pa.int32(), "from 1, best first"),
        "text": Column(_TEXT, "text of the dictionary"),
        "correlation": Column(
            pa.float32(),
            "over the discovery images, of the coefficient along the direction and the similarity of image and text",
        ),
    },
    "polysemanticity": {
        "unit": Column(_TEXT, "pair or neuron"),
        "head": _HEAD,
        "neuron": _NEURON,
        "spread": Column(
            pa.float32(), "mean cosine distance of its top images: 0 the same, about 1 random; null if it does not vary"
        ),
        "parent_spread": Column(pa.float32(), "pairs: spread of their neuron"),
        "overlap": Column(pa.float32(), "pairs: share of its top images that are top images of its neuron"),
        "contribution_rank": Column(pa.int32(), "1 for the unit of its kind with the largest std_norm"),
        "nearest_text": Column(_TEXT, "text of the dictionary nearest to the direction"),
        "active_text": Column(_TEXT, "pairs: text whose similarity to the images goes most with the coefficient"),
        "images": Column(pa.list_(pa.int64()), "image_id of the top images, farthest along the direction first"),
    },
    "neurons": {"neuron": _NEURON, **_UNIT_TABLE},
    "heads": {"head": _HEAD, **_UNIT_TABLE},
    "pair assignments": {"head": _HEAD, "neuron": _NEURON, **_MATCH},
    "neuron assignments": {"neuron": _NEURON, **_MATCH},
    "head assignments": {"head": _HEAD, **_MATCH},
    "embedded texts": {
        "text": Column(pa.string(), "the text, without templates"),
        "embedding": Column(pa.list_(pa.float32()), "unit length, mean over templates; as many numbers as the model embeds in"),
    },
    "classes": {
        "dataset": Column(_TEXT, "data set"),
        "class": Column(pa.int32(), "position of the class, as in label maps; -1 for what does not count"),
        "title": Column(pa.string(), "what tables and legends call the class; null for what does not count"),
        "names": Column(pa.list_(pa.string()), "texts of the class, which takes the best of them"),
        "values": Column(pa.list_(pa.int64()), "values of the masks that mean the class"),
        "colour": Column(
            pa.list_(pa.int16()), "red, green, blue, 0 to 255, in pictures and in RGB-coded masks; may be empty for -1"
        ),
    },
    "confusion": {
        "dataset": Column(_TEXT, "data set"),
        "image_id": Column(pa.int64(), "row of images.parquet"),
        "method": Column(_TEXT, "segmentation method"),
        "true_class": Column(pa.int32(), "class by the mask"),
        "predicted_class": Column(pa.int32(), "class by the method"),
        "pixels": Column(pa.int64(), "number of pixels"),
        "k": _K,
        "temperature": Column(pa.float32(), "factor on the logits before the softmax"),
        "sink": Column(pa.int32(), "spatial token replaced as attention sink, -1 for none"),
    },
    "per_class": {
        "dataset": Column(_TEXT, "data set"),
        "method": Column(_TEXT, "segmentation method"),
        "k": _K,
        "class": Column(_TEXT, "class name"),
        "iou": Column(pa.float64(), "intersection over union; null if the class is on neither side"),
        "accuracy": Column(pa.float64(), "share of the class's pixels found; null if the masks do not have it"),
        "pixels": Column(pa.int64(), "pixels of the class in the masks"),
    },
    "differences": {
        "dataset": Column(_TEXT, "data set"),
        "method": Column(_TEXT, "segmentation method"),
        "k": _K,
        "other_method": Column(_TEXT, "method that it is compared with, on the same images"),
        "other_k": _K,
        "difference": Column(pa.float64(), "mIoU of method - mIoU of other_method"),
        "low": Column(pa.float64(), "lower end of the bootstrap interval over images, both methods on the same resampled ones"),
        "high": Column(pa.float64(), "upper end"),
    },
    "registers": {
        "kind": Column(
            _TEXT, "token: a spatial token of the attention pool; neuron: what zeroing it does to the strongest token"
        ),
        "index": Column(pa.int32(), "spatial token, row by row from 0, or neuron"),
        "rank": Column(pa.int32(), "1 for the largest attention (tokens) or attention_drop (neurons)"),
        "attention": Column(pa.float32(), "tokens: mean attention over heads and images"),
        "relative_attention": Column(pa.float32(), "tokens: that over the median token's"),
        "sink": Column(pa.bool_(), "tokens: whether this is the attention sink; at most one is"),
        "token": Column(pa.int32(), "neurons: the token of the largest mean attention, which the other columns are about"),
        "attention_drop": Column(
            pa.float32(), "neurons: fall of that token's attention when the neuron is zeroed at all tokens"
        ),
        "embedding_change": Column(
            pa.float32(), "neurons: ‖embedding without the neuron - embedding‖ / ‖embedding‖, mean over images"
        ),
        "activation": Column(pa.float32(), "neurons: mean activation at that token"),
        "elsewhere": Column(pa.float32(), "neurons: mean activation at the other tokens"),
        "images": Column(pa.int32(), "images measured on"),
    },
    "shift_scores": {
        "image_id": Column(pa.int64(), "row of images.parquet"),
        "group": Column(_TEXT, "group of the image"),
        "concept": Column(_TEXT, "concept"),
        "score": Column(
            _TEXT, "norm: ‖R‖ / ‖y‖; projection: ⟨R, text⟩ / ‖y‖; R the summed contribution of the concept's pairs"
        ),
        "value": Column(pa.float32(), "the score"),
    },
    "discovered": {
        "head": _HEAD,
        "neuron": _NEURON,
        "group": Column(_TEXT, "group compared"),
        "reference": Column(_TEXT, "group, or groups, compared with"),
        "n": Column(pa.int32(), "images of the group"),
        "n_reference": Column(pa.int32(), "images of the reference"),
        "small": Column(pa.bool_(), "whether either is below shift.small_group"),
        "difference": Column(pa.float32(), "difference of mean coefficients"),
        "effect": Column(pa.float32(), "Cohen's d"),
        "p": Column(pa.float64(), "Welch's t test, two-sided"),
        "q": Column(pa.float64(), "Benjamini-Hochberg over all pairs and groups"),
        "contribution": Column(pa.float32(), "difference · ‖w[h, n]‖: how far the pair moved the embedding"),
        "nearest_text": Column(_TEXT, "text of the dictionary nearest to the pair's direction"),
        "active_text": Column(_TEXT, "text whose similarity to the discovery images goes most with the pair's coefficient"),
        "images": Column(pa.list_(pa.int64()), "image_id of the group's images that show the shift most"),
    },
}

_FIDELITY = {
    "accuracy": "zero-shot accuracy of the rebuilt embeddings: share of images whose label's text has the largest cosine",
    "accuracy_low": "lower end of the Wilson interval",
    "accuracy_high": "upper end",
    "relative_error": "mean over images of ‖rebuilt - embedding‖ / ‖embedding‖",
    "explained": "share of the embeddings' variance over the images that is kept; 0 for their mean, may be below",
    "images": "labelled images",
    "classes": "labels to choose from",
}

CSV: dict[str, dict[str, str]] = {
    "reconstruction": {
        "dataset": "data set",
        "unit": "pair, neuron or head",
        "components": "directions that each unit writes along, beside its mean; 0 for the mean alone",
        **_FIDELITY,
    },
    "naming": {
        "dataset": "data set",
        "rule": "nearest: text nearest to the direction; sparse: first atom; correlated: active_text of pairs.parquet",
        "share": "share of the pairs that vary, those of largest std_norm",
        "pairs": "pairs",
        "attributes": "0/1 columns of the table; each pair selects the one that its coefficient correlates with most",
        "agreement": "share of the pairs whose text has the word of the attribute that they select",
        "chance": "the same for texts dealt out at random among the pairs",
    },
    "faithfulness": {
        "dataset": "data set",
        "ablated": "concept whose pairs are at their mean over the discovery images; random: as many random pairs",
        "measured": "concept whose score is measured: ⟨rebuilt embedding, text⟩ / ‖embedding‖",
        "k": "pairs of a concept",
        "change": "of that score over the tenth of the images where it is highest, standard deviations of the score",
        "spread_kept": "standard deviation of the score after, over that before",
        "auroc": "of the score for the concept's 0/1 column, where the table has one",
        "auroc_ablated": "the same after",
        "images": "images measured on",
    },
    "sparsity": {
        "dataset": "data set",
        "unit": "pair or neuron: what is kept or not",
        "kept": "top: units of largest std_norm; bottom: of smallest; random",
        "draw": "number of the random choice, 0 for top and bottom",
        "share": "share of the units that is kept; the others are at their mean over the discovery images",
        "pairs": "pairs kept; of a neuron, those with all heads",
        "energy": "share of the summed std_norm² of all units that they have",
        **_FIDELITY,
    },
    "sparse_text": {
        "dataset": "data set",
        "unit": "pair, neuron or head: what writes along its (first) direction",
        "atoms": "texts of its sparse code that stand for each direction; 0 for the mean alone",
        "coded": "share of the energy (std_norm²) of the units that have a code; the others are at their mean",
        **_FIDELITY,
    },
    "segmentation": {
        "dataset": "data set",
        "method": "segmentation method",
        "k": "pairs selected per text of a class; empty for methods that select none",
        "miou": "mean intersection over union over classes on either side",
        "miou_low": "lower end of the bootstrap interval over images",
        "miou_high": "upper end",
        "pixel_accuracy": "share of labelled pixels that are right",
        "mean_accuracy": "mean over classes of the share of their pixels found",
        "fw_iou": "IoU weighted by the classes' share of pixels",
        "images": "images with labelled pixels",
        "pixels": "labelled pixels",
        "classes": "classes on either side, those that the mean is over",
        "temperature": "factor on the logits before the softmax",
        "sink": "spatial token replaced in the maps as attention sink, empty for none",
    },
    "shift": {
        "dataset": "data set",
        "concept": "concept, as in the config",
        "score": "norm (published) or projection (signed)",
        "group": "group of images",
        "n": "images in the group",
        "small": "whether the group or its reference has fewer than shift.small_group images",
        "mean": "mean score",
        "mean_low": "lower end of the bootstrap interval of the mean",
        "mean_high": "upper end",
        "reference": "group, or groups, compared with; empty for a reference itself",
        "effect": "Cliff's delta against the reference, -1 to 1",
        "test": "mann_whitney, welch or ks",
        "p": "of the test, two-sided",
        "q": "Benjamini-Hochberg over all rows of the table",
        "trend": "Kendall's tau-b of score and order of the groups over all images; empty where the groups have no order",
        "trend_p": "its p: the Mann-Kendall test",
        "trend_q": "Benjamini-Hochberg over all concepts and scores",
        "label_rate": "share of the group's images whose label for the concept is 1",
        "correlation": "point-biserial correlation of score and label over all images",
        "correlation_low": "lower end of its interval (Fisher)",
        "correlation_high": "upper end",
        "auroc": "area under the ROC curve of the score for the label over all images",
        "auroc_low": "lower end of its bootstrap interval over images",
        "auroc_high": "upper end",
        "k": "pairs selected per concept",
    },
}


def explained_column(component: int) -> Column:
    """The column of a unit's share of energy on one of its directions; there are as many as `directions.components`."""
    return Column(pa.float32(), f"share of the kept images' centred energy that direction {component} explains")


@dataclasses.dataclass(frozen=True)
class Stamp:
    """Which model an artifact belongs to, and which code made it."""

    model: str = ""  # sha256 of the weights; empty for what no model touched
    architecture: str = ""
    code: str = ""

    def attributes(self, kind: str) -> dict[str, Any]:
        """The stamp as stored with an artifact of this kind."""
        return {"kind": kind, "format": FORMAT, "nadpipe_version": __version__, **dataclasses.asdict(self)}


# ---------------------------------------------------------------------------------------------------------------- Zarr


class ZarrWriter:
    """An open store: whole arrays by `write`, block by block along their first axis by `append`, or each of `regions`, in any
    order, by `put`."""

    def __init__(self, path: Path, group: zarr.Group, kind: str):
        self._path = path
        self._group = group
        self._kind = kind
        self._buffer: dict[str, list[np.ndarray]] = {}
        self._written: dict[str, int] = {}  # rows, by array
        self._put: dict[str, set[tuple[int, ...]]] = {}  # positions in the grid of shards, by array

    def write(self, name: str, values: Any) -> None:
        """Write a whole array, from numpy, torch or a list."""
        self._group[name][:] = _numpy(values)
        self._written[name] = self._group[name].shape[0]

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes so far."""
        return dict(self._group.attrs)

    def describe(self, **attributes: Any) -> None:
        """Add attributes that are known only once the work has begun."""
        self._group.attrs.update(attributes)

    def as_stored(self, name: str, values: Any) -> Any:
        """A tensor in the precision of the array that it is for. Raises NadpipeError when float16 cannot hold it."""
        if self._group[name].dtype != np.float16:
            return values
        stored = values.half()
        if not stored.isfinite().all():
            raise NadpipeError(f"{self._path}: {name} reaches {values.abs().max():.3g}, more than float16 holds; use float32")
        return stored

    def append(self, **blocks: Any) -> None:
        """Add rows along the first axis; they reach the disk a whole shard at a time."""
        for name, block in blocks.items():
            self._buffer.setdefault(name, []).append(_numpy(block))
            self._flush(name, whole_shards=True)

    def regions(self, name: str) -> list[tuple[slice, ...]]:
        """The shards of an array, as slices of it."""
        array = self._group[name]
        parts = [
            [slice(start, min(start + step, size)) for start in range(0, size, step)]
            for size, step in zip(array.shape, array.shards, strict=True)
        ]
        return list(itertools.product(*parts))

    def put(self, name: str, region: tuple[slice, ...], values: Any) -> None:
        """Write a block of whole shards. Raises ValueError for slices that cut a shard and for a shard written before."""
        array = self._group[name]
        grid = []
        for part, size, step in zip(region, array.shape, array.shards, strict=True):
            start, stop, stride = part.indices(size)
            if stride != 1 or start % step or (stop % step and stop != size):
                raise ValueError(f"{self._kind}: {name}: {region} does not follow the shards {array.shards} of {array.shape}")
            grid.append(range(start // step, math.ceil(stop / step)))
        shards, put = set(itertools.product(*grid)), self._put.setdefault(name, set())
        if shards & put or self._written.get(name) or self._buffer.get(name):
            raise ValueError(f"{self._kind}: {name}: {region} was written before")
        values = _numpy(values)
        expected = tuple(len(range(*part.indices(size))) for part, size in zip(region, array.shape, strict=True))
        if values.shape != expected:  # zarr would broadcast
            raise ValueError(f"{self._kind}: {name}: {region} takes {expected}, was given {values.shape}")
        array[region] = values
        put |= shards

    def _flush(self, name: str, whole_shards: bool) -> None:
        array = self._group[name]
        rows = sum(len(block) for block in self._buffer[name])
        step = array.shards[0]
        if rows < step and whole_shards:
            return
        values = np.concatenate(self._buffer[name])
        take = rows // step * step if whole_shards else rows
        start = self._written.get(name, 0)
        array[start : start + take] = values[:take]
        self._written[name] = start + take
        self._buffer[name] = [values[take:]]

    def _finish(self) -> None:
        for name in self._buffer:
            self._flush(name, whole_shards=False)
        for name, array in ZARR[self._kind].items():
            if name in self._put:
                put, shards = len(self._put[name]), len(self.regions(name))
                if put != shards:
                    raise ValueError(f"{self._kind}: {name} has {put} of {shards} shards")
                continue
            rows, written = self._group[name].shape[0], self._written.get(name, 0)
            if array.kind != "text" and written != rows:
                raise ValueError(f"{self._kind}: {name} has {written} of {rows} rows")


@contextlib.contextmanager
def create_zarr(
    path: Path,
    kind: str,
    stamp: Stamp,
    sizes: Mapping[str, int],
    dtype: Mapping[str, str] | None = None,
    texts: Sequence[str] = (),
    attributes: Mapping[str, Any] | None = None,
) -> Iterator[ZarrWriter]:
    """Create the store of a kind beside `path`; it takes the final name when the block ends without an error.

    sizes: length of every axis of the kind. dtype: arrays stored other than as float32 or int64. texts: values of the
    `text` axis, where the kind has one.
    """
    with whole(path) as partial:
        group = zarr.open_group(str(partial), mode="w", zarr_format=3)
        group.attrs.update(stamp.attributes(kind) | dict(attributes or {}))
        arrays = ZARR[kind]
        beside = [name for name, array in arrays.items() if array.axes == ("view",) and array.kind == "int"]
        for name, array in arrays.items():
            if array.kind == "text":
                _write_text(group, name, array, texts)
                continue
            stored = (dtype or {}).get(name, {"float": "float32", "int": "int64"}[array.kind])
            made = _create_array(group, name, array, tuple(sizes[axis] for axis in array.axes), stored)
            if beside and array.axes[0] == "view" and name not in beside:
                made.attrs["coordinates"] = " ".join(beside)
        for axis in dict.fromkeys(axis for array in arrays.values() for axis in array.axes):
            if axis in _INDEXED and axis not in arrays:
                first = _FIRST_SPATIAL_TOKEN if (kind, axis) == ("features", "token") else 0
                values = np.arange(first, first + sizes[axis], dtype=np.int64)
                spec = Array((axis,), "int", "0 is the pooled token" if axis == "token" else "index", "coordinate")
                _create_array(group, axis, spec, values.shape, "int64")[:] = values
        writer = ZarrWriter(path, group, kind)
        yield writer
        writer._finish()
        group.attrs["files"] = _count_files(partial)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            zarr.consolidate_metadata(group.store)


def _create_array(group: zarr.Group, name: str, array: Array, shape: tuple[int, ...], dtype: str) -> zarr.Array:
    chunks, shards = _layout(array, shape, np.dtype(dtype).itemsize)
    made = group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        shards=shards,
        dimension_names=list(array.axes),
        compressors=zarr.codecs.ZstdCodec(level=3),
    )
    made.attrs.update({"units": array.unit, "source": array.source})
    return made


def _write_text(group: zarr.Group, name: str, array: Array, texts: Sequence[str]) -> None:
    made = group.create_array(name, data=np.array(list(texts), dtype=np.dtypes.StringDType()), dimension_names=list(array.axes))
    made.attrs.update({"units": array.unit, "source": array.source})


def _layout(array: Array, shape: tuple[int, ...], itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunks of up to 4 MiB that fill the last axis first and stay within `most`; shards of about 64 MiB that are whole in
    every axis but the first; where one row of that is more, one row, and so on with the next axis."""
    rows = [math.prod(shape[at + 1 :]) * itemsize for at in range(len(shape))]
    split = next(at for at, row in enumerate(rows) if row <= _FILE_BYTES or at + 1 == len(shape))
    whole_shard = [1] * split + [min(shape[split], max(1, _FILE_BYTES // max(rows[split], 1))), *shape[split + 1 :]]
    chunk = [1] * len(shape)
    for at, axis in reversed(list(enumerate(array.axes))):
        room = max(1, _CHUNK_BYTES // itemsize // math.prod(chunk))
        chunk[at] = min(whole_shard[at], room, array.most.get(axis, room))
    shard = [math.ceil(size / part) * part for size, part in zip(whole_shard, chunk, strict=True)]
    shard[split] = whole_shard[split] // chunk[split] * chunk[split]
    return tuple(chunk), tuple(shard)


@dataclasses.dataclass(frozen=True)
class ZarrStore:
    """A checked, open store: arrays by name."""

    path: Path
    group: zarr.Group

    def __getitem__(self, name: str) -> zarr.Array:
        return self.group[name]

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the store."""
        return dict(self.group.attrs)

    @property
    def stamp(self) -> Stamp:
        """Model and code that the store was made with."""
        return Stamp(**{field.name: self.group.attrs[field.name] for field in dataclasses.fields(Stamp)})

    def texts(self) -> list[str]:
        """Values of the text axis."""
        return [str(text) for text in self.group["text"][:]]


def open_zarr(path: Path, kind: str, model: Stamp | None = None) -> ZarrStore:
    """Open a store and check kind, format, that no file is missing (which Zarr would read as zeros), arrays, axes and number
    kinds, and that it was made with `model`, if given.

    Raises NadpipeError that names the file, what it holds and what was expected.
    """
    try:
        group = zarr.open_group(str(path), mode="r", zarr_format=3)
    except (FileNotFoundError, NotADirectoryError, KeyError, ValueError) as error:
        raise NadpipeError(f"{path}: no Zarr store of {kind} ({type(error).__name__}); make it with Snakemake") from None
    _check_stamp(path, dict(group.attrs), kind, model)
    found, written = _count_files(path), group.attrs["files"]
    if found < written:
        raise NadpipeError(f"{path}: has {found} of its {written} files, as after a lost connection; delete it, make it again")
    for name, array in ZARR[kind].items():
        if name not in group:
            raise NadpipeError(f"{path}: array {name} is missing; delete the store and make it again")
        stored = group[name]
        axes = tuple(stored.metadata.dimension_names or ())
        if axes != array.axes:
            raise NadpipeError(f"{path}: axes of {name} are {axes}, expected {array.axes}; delete it and make it again")
        kinds = {"float": "f", "int": "i", "text": "T"}[array.kind]
        if stored.dtype.kind not in kinds:
            raise NadpipeError(f"{path}: {name} holds {stored.dtype}, expected {array.kind}; delete it and make it again")
    return ZarrStore(Path(path), group)


def _count_files(path: Path) -> int:
    """Files of a store, without those that Snakemake puts into it; a shared one is a folder of links."""
    return sum(not name.startswith(".") for _, _, names in os.walk(path, followlinks=True) for name in names)


# ------------------------------------------------------------------------------------------------------------- tables


@contextlib.contextmanager
def create_parquet(
    path: Path,
    kind: str,
    stamp: Stamp,
    more: Mapping[str, Column] | None = None,
    sources: bool = False,
) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Yield a function that adds rows to the table of a kind, so that it never has to be held whole; it takes the final name
    when the block ends without an error.

    more: columns beside the schema. sources: keep all other columns, as the source table's own.
    """
    metadata = {b"nadpipe": json.dumps(stamp.attributes(kind)).encode()}
    with whole(path) as partial, contextlib.ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        waiting: list[pa.Table] = []

        def flush() -> None:
            """Small batches are written together: a file of many small row groups is slow to read."""
            rows = pa.concat_tables(waiting).unify_dictionaries()
            writer.write_table(rows, row_group_size=_ROW_GROUP)
            waiting.clear()

        def add(rows: pd.DataFrame) -> None:
            nonlocal writer
            schema = _schema(PARQUET[kind] | dict(more or {}), rows, sources).with_metadata(metadata)
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(partial, schema, compression="zstd", write_page_index=True))
            arrow = pa.Table.from_pandas(rows[schema.names], schema=schema, preserve_index=False)
            waiting.append(arrow.replace_schema_metadata(metadata))
            if sum(map(len, waiting)) >= _ROW_GROUP:
                flush()

        yield add
        if waiting:
            flush()


def write_parquet(
    path: Path,
    kind: str,
    table: pd.DataFrame,
    stamp: Stamp,
    more: Mapping[str, Column] | None = None,
    sources: bool = False,
) -> None:
    """Write a whole table of a kind, as `create_parquet` does."""
    with create_parquet(path, kind, stamp, more, sources) as add:
        add(table)


def read_parquet(
    path: Path,
    kind: str,
    model: Stamp | None = None,
    columns: Sequence[str] | None = None,
    filters: Sequence[tuple[str, str, Any]] | None = None,
) -> pd.DataFrame:
    """Read a table and check its stamp and columns; raises NadpipeError as `open_zarr` does. Texts come as plain strings,
    missing ones as None. columns, filters: only these columns, only rows that fulfil all of them (column, operator, value)."""
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise NadpipeError(f"{path}: no readable Parquet table ({error}); make it with Snakemake") from None
    stored = (schema.metadata or {}).get(b"nadpipe")
    _check_stamp(path, json.loads(stored) if stored else {}, kind, model)
    missing = [name for name in PARQUET[kind] if name not in schema.names]
    if missing:
        raise NadpipeError(f"{path}: columns {', '.join(missing)} are missing; delete the table and make it again")
    try:
        table = pq.read_table(path, columns=columns and list(columns), filters=filters and list(filters))
    except (OSError, pa.ArrowInvalid) as error:
        raise NadpipeError(f"{path}: damaged Parquet table ({error}); delete it and make it again") from None
    frame = table.to_pandas()
    for name, column in PARQUET[kind].items():
        if name in frame and (pa.types.is_dictionary(column.type) or pa.types.is_string(column.type)):
            values = frame[name].astype(object)
            frame[name] = values.where(values.notna(), None)
    return frame


def read_images(path: Path, copy: tuple[str, str] | None = None) -> pd.DataFrame:
    """The images of a manifest that are used: rows 0, 1, … in order of image_id.

    copy: the folder that their paths name, and where a copy of it is: paths are then those of the copy.
    """
    images = read_parquet(path, "images", filters=[("image_id", ">=", 0)])
    return images if copy is None else move_paths(images, *copy)


def move_paths(images: pd.DataFrame, here: str, there: str) -> pd.DataFrame:
    """Images and masks below one folder as paths below another. Raises NadpipeError for those that lie elsewhere."""

    def moved(path: str | None) -> str | None:
        if path is not None and not path.startswith(f"{here}/"):
            raise NadpipeError(f"{path}: is not in {here}; images that are copied lie in one folder, with their masks")
        return path and there + path.removeprefix(here)

    columns = {name: [moved(path) for path in images[name]] for name in ("path", "mask_path")}
    columns["problem"] = [problem and problem.replace(here, there) for problem in images["problem"]]
    return images.assign(**{name: pd.Series(values, images.index, dtype=object) for name, values in columns.items()})


def write_csv(path: Path, kind: str, table: pd.DataFrame) -> None:
    """Write a results table: the columns of its kind, in their order."""
    with whole(path) as partial:
        table[list(CSV[kind])].to_csv(partial, index=False, lineterminator="\n", float_format="%.8g")


def _schema(columns: Mapping[str, Column], table: pd.DataFrame, sources: bool) -> pa.Schema:
    fields = [pa.field(name, column.type, metadata={"comment": column.comment}) for name, column in columns.items()]
    if sources:
        own = [name for name in table.columns if name not in columns]
        inferred = pa.Schema.from_pandas(table[own], preserve_index=False)
        fields += [field.with_metadata({"comment": "column of the source table"}) for field in inferred]
    return pa.schema(fields)


# ------------------------------------------------------------------------------------------------------------- shared


def _check_stamp(path: Path, attributes: Mapping[str, Any], kind: str, model: Stamp | None) -> None:
    held = attributes.get("kind")
    if held != kind:
        raise NadpipeError(f"{path}: holds {held or 'no nadpipe artifact'}, expected {kind}")
    if attributes.get("format") != FORMAT:
        raise NadpipeError(
            f"{path}: has format {attributes.get('format')}, this nadpipe reads format {FORMAT}; delete it and make it again"
        )
    if model is not None and attributes.get("model") != model.model:
        made = f"{attributes.get('architecture')} {str(attributes.get('model'))[:8]}"
        run = f"{model.architecture} {model.model[:8]}"
        raise NadpipeError(f"{path}: is for model {made}, this run is {run}; delete it and make it again")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; renamed to `path` when the block ends well, removed when it does not.

    One process at a time writes a path: a job that outlived its killed Snakemake is waited for, so that it cannot replace what
    its successor made, or have its own files cleared away while it writes. What a killed writer left is cleared away first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _only_writer(path):
        clear_partials(path)
        partial = path.parent / f".{path.name}.{os.getpid()}.partial"
        try:
            yield partial
            if partial.is_file():
                partial.chmod(0o666 & ~_UMASK)  # some writers make files that only their owner may read
            if path.is_dir():
                _remove(path)  # a folder cannot be replaced by a rename
            partial.replace(path)
        finally:
            _remove(partial)


@contextlib.contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """Holds the lock of a path; the kernel lets go of it when the process dies, however it does."""
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"{path}: another process is writing it; waiting for that to end", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # those who wait for it notice and make their own
        lock.release()


def clear_partials(path: Path) -> None:
    """Remove what a writer of `path` left when it was killed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _numpy(values: Any) -> np.ndarray:
    return np.asarray(values.cpu() if hasattr(values, "cpu") else values)
