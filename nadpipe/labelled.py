"""Labelled images with their coefficients, for what is measured by zero-shot classification."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nadpipe.artifacts import Stamp, ZarrStore, open_zarr, read_images
from nadpipe.errors import NadpipeError
from nadpipe.inputs import open_shards
from nadpipe.labels import label_texts


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Images with a class label, as many as are asked for, and what their embeddings are compared with."""

    stores: list[ZarrStore]
    rows: list[Int[np.ndarray, " view"]]  # of each store
    embedding: Float[Tensor, "image embed"]
    label: Int[Tensor, " image"]
    text: Float[Tensor, "class embed"]

    def coefficient(self, head: int) -> Float[Tensor, "image neuron"]:
        """s[head] of all of these images."""
        parts = [store["coefficient"][:, head][rows] for store, rows in zip(self.stores, self.rows, strict=True)]
        return torch.from_numpy(np.concatenate(parts)).float()

    def blocks(self) -> Iterator[Float[Tensor, "image head neuron"]]:
        """Coefficients of all heads, some images at a time, in order."""
        for store, rows in zip(self.stores, self.rows, strict=True):
            step = store["coefficient"].shards[0]
            for start in range(0, store["coefficient"].shape[0], step):
                inside = rows[(rows >= start) & (rows < start + step)] - start
                if len(inside):
                    yield torch.from_numpy(store["coefficient"][start : start + step][inside]).float()


def read_labelled(images: Path, contributions: Sequence[Path], labels: Path, model: Stamp, most: int) -> Labelled:
    """The data set's labelled images, at most so many, evenly spread. Raises NadpipeError when there are none."""
    words = open_zarr(labels, "text", model)
    manifest = read_images(images).set_index("image_id")["label"]
    stores = open_shards(contributions, "contributions", model)
    own = [manifest.loc[store["image_id"][:]] for store in stores]
    with_label = [(at, row) for at, of_store in enumerate(own) for row in np.flatnonzero(of_store.notna())]
    if not with_label:
        raise NadpipeError(
            f"{images}: no image has a label; name the data set's label_column, or choose another analyses.dataset"
        )
    chosen = [with_label[at] for at in np.unique(np.linspace(0, len(with_label) - 1, min(most, len(with_label))).astype(int))]
    rows = [np.array([row for shard, row in chosen if shard == at], dtype=int) for at in range(len(stores))]
    position = {text: at for at, text in enumerate(words.texts())}
    names = [name for of_store, some in zip(own, rows, strict=True) for name in of_store.iloc[some]]
    unique = sorted(set(names))
    of_name = dict(zip(unique, label_texts(unique), strict=True))
    embedding = np.concatenate([store["embedding"][:][some] for store, some in zip(stores, rows, strict=True)])
    return Labelled(
        stores,
        rows,
        torch.from_numpy(embedding),
        torch.tensor([position[of_name[name]] for name in names]),
        torch.from_numpy(words["embedding"][:]),
    )
