"""Labelled images with their coefficients, for measurements by zero-shot classification."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nadpipe.data.labels import label_texts
from nadpipe.errors import NadpipeError
from nadpipe.store.arrays import ZarrStore, open_zarr
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.kinds.texts import TEXT
from nadpipe.store.manifest import read_images
from nadpipe.store.shards import open_shards
from nadpipe.store.stamp import Stamp


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Images with a class label, and the texts of all classes."""

    stores: list[ZarrStore]
    rows: list[Int[np.ndarray, " view"]]  # rows of the images in each store
    embedding: Float[Tensor, "image embed"]
    label: Int[Tensor, " image"]  # row of `text`
    text: Float[Tensor, "class embed"]

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


def read_labelled(images: Path, contributions: Sequence[Path], labels: Path, model: Stamp, limit: int) -> Labelled:
    """Read at most `limit` labelled images of a data set, evenly spaced. Raises NadpipeError if no image has a label."""
    text_store = open_zarr(labels, TEXT, model)
    label_of_image = read_images(images).set_index("image_id")["label"]
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
    names = [name for labelled, selected in zip(store_labels, rows, strict=True) for name in labelled.iloc[selected]]
    unique = sorted(set(names))
    text_of_name = dict(zip(unique, label_texts(unique), strict=True))
    row_of_text = {text: row for row, text in enumerate(text_store.texts())}
    embedding = torch.cat([store.tensor("embedding")[selected] for store, selected in zip(stores, rows, strict=True)])
    return Labelled(
        stores=stores,
        rows=rows,
        embedding=embedding,
        label=torch.tensor([row_of_text[text_of_name[name]] for name in names]),
        text=text_store.tensor("embedding"),
    )
