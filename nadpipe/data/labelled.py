"""Labelled images with their coefficients, for measurements by zero-shot classification."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nadpipe.circuit import ablation
from nadpipe.circuit.ablation import Attributes
from nadpipe.data.labels import attribute_columns, label_texts
from nadpipe.errors import NadpipeError
from nadpipe.store.arrays import ZarrStore, open_zarr
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.kinds.texts import TEXT
from nadpipe.store.manifest import read_images
from nadpipe.store.shards import open_shards
from nadpipe.store.stamp import Stamp


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Images with a class label, the texts of all classes, and the attributes of the images."""

    stores: list[ZarrStore]
    rows: list[Int[np.ndarray, " view"]]  # rows of the images in each store
    embedding: Float[Tensor, "image embed"]
    rest: Float[Tensor, "image embed"]  # part of the embedding that is not in pairs, which ablations keep
    label: Int[Tensor, " image"]  # row of `text`
    text: Float[Tensor, "class embed"]
    attributes: Attributes

    def coefficient(self, head: int) -> Float[Tensor, "image neuron"]:
        """Return s[head] of all images."""
        every_view = slice(None)
        shards = zip(self.stores, self.rows, strict=True)
        return torch.cat([store.tensor("coefficient", (every_view, head))[rows] for store, rows in shards]).float()

    def blocks(self) -> Iterator[Float[Tensor, "image head neuron"]]:
        """Yield the coefficients of all heads in blocks of images, in order."""
        for store, rows in zip(self.stores, self.rows, strict=True):
            coefficient = store["coefficient"]
            assert coefficient.shards is not None  # all stores are sharded
            step = coefficient.shards[0]
            for start in range(0, coefficient.shape[0], step):
                selected = rows[(rows >= start) & (rows < start + step)] - start
                if len(selected):
                    yield store.tensor("coefficient", slice(start, start + step))[selected].float()

    def fidelity(self, pairs: Float[Tensor, "image embed"], confidence: float) -> dict[str, float]:
        """Return the columns that measure how well embeddings with other pairs replace the images' own.

        pairs: sum of the pairs of the rebuilt embedding, to which the images' own rest is added.
        """
        measured = ablation.fidelity(pairs + self.rest, self.embedding, self.text, self.label, self.attributes, confidence)
        truth = self.attributes.truth
        counts = {"images": len(self.label), "classes": len(self.text), "attributes": truth.shape[1]}
        return dataclasses.asdict(measured) | {"prevalence": float(truth.float().mean())} | counts


def read_labelled(images: Path, contributions: Sequence[Path], labels: Path, model: Stamp, limit: int) -> Labelled:
    """Read at most `limit` labelled images of a data set, evenly spaced.

    Raises NadpipeError if no image has a label, or if a label or a 0/1 column has no embedded text.
    """
    text_store = open_zarr(labels, TEXT, model)
    manifest = read_images(images).set_index("image_id")
    label_of_image = manifest["label"]
    stores = open_shards(contributions, CONTRIBUTIONS, model)
    store_labels = [label_of_image.loc[store.read("image_id")] for store in stores]
    candidates = [(shard, row) for shard, names in enumerate(store_labels) for row in np.flatnonzero(names.notna())]
    if not candidates:
        raise NadpipeError(
            f"{images}: no image has a label; name the data set's label_column, or choose another analyses.dataset"
        )
    spaced = np.unique(np.linspace(0, len(candidates) - 1, min(limit, len(candidates))).astype(int))
    chosen = [candidates[index] for index in spaced]
    rows = [np.array([row for shard, row in chosen if shard == index], dtype=int) for index in range(len(stores))]
    labelled = pd.concat([names.iloc[selected] for names, selected in zip(store_labels, rows, strict=True)])
    unique = sorted(label_of_image.dropna().unique())
    text_of_label = dict(zip(unique, label_texts(unique), strict=True))
    classes = list(dict.fromkeys(text_of_label.values()))
    columns = attribute_columns(manifest)
    truth = manifest.loc[labelled.index, columns].to_numpy(dtype=bool)
    varying = truth.any(0) & ~truth.all(0)
    text = text_store.tensor("embedding")
    return Labelled(
        stores=stores,
        rows=rows,
        embedding=_join_rows(stores, rows, "embedding"),
        rest=_join_rows(stores, rows, "rest"),
        label=torch.tensor([classes.index(text_of_label[name]) for name in labelled]),
        text=text[_rows(text_store, classes)],
        attributes=Attributes(
            text=text[_rows(text_store, label_texts(columns))][torch.from_numpy(varying)],
            truth=torch.from_numpy(truth[:, varying]),
        ),
    )


def _join_rows(stores: Sequence[ZarrStore], rows: Sequence[Int[np.ndarray, " view"]], name: str) -> Tensor:
    """Return some rows of an array of each store, one store after the other."""
    return torch.cat([store.tensor(name)[selected] for store, selected in zip(stores, rows, strict=True)])


def _rows(store: ZarrStore, texts: Sequence[str]) -> Int[Tensor, " text"]:
    """Return the rows of texts in a store. Raises NadpipeError if one is missing."""
    rows = pd.Index(store.texts()).get_indexer(pd.Index(texts, dtype=object))
    if (rows < 0).any():
        raise NadpipeError(f"{store.path}: has no text {texts[rows.argmin()]!r}; embed the labels of this data set")
    return torch.from_numpy(rows)
