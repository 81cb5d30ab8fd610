"""Run the image tower over one shard of a data set's views: activations of the last block, and the embedding."""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from nadpipe.artifacts import VIEW_TABLE, ZarrWriter, create_zarr, read_parquet
from nadpipe.attnpool import residual
from nadpipe.datasets import paths_fingerprint, shard_rows
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint
from nadpipe.models import ImageTower, attention_pool, image_tower, load_model
from nadpipe.progress import track
from nadpipe.views import Box, centre_box, crop_pixels, read_image, sliding_boxes

_COMPARED = 16  # views of which the error of a lower precision is stated


class _Crops(Dataset):
    """Pixels of all boxes of each image; an unreadable image comes as its error, so that workers lose no line."""

    def __init__(self, paths: list[str], boxes: list[list[Box]], interpolation: str):
        self.paths, self.boxes, self.interpolation = paths, boxes, interpolation

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, at: int) -> np.ndarray | NadpipeError:
        try:
            return crop_pixels(read_image(self.paths[at]), self.boxes[at], self.interpolation)
        except NadpipeError as error:
            return error


def extract_features(
    images: Path,
    architecture: str,
    output: Path,
    pretrained: str | None = None,
    views: Literal["centre", "sliding"] = "centre",
    stride: float = 0.5,
    precision: Literal["float32", "bfloat16"] = "float32",
    dtype: Literal["float32", "float16"] = "float32",
    shard: int = 0,
    shards: int = 1,
    batch_size: int = 64,
    workers: int = 0,
    device: str = "auto",
) -> None:
    """Write z and the image embedding of each view of a shard of the images, with the view table.

    Args:
        images: Manifest.
        architecture: Model name of open_clip, hf-hub:org/name, or path of a model config JSON.
        output: Zarr store.
        pretrained: Pretrained tag or checkpoint file; none for hf-hub.
        views: centre: the crop of the model's own preprocessing. sliding: overlapping crops that cover the image.
        stride: Distance of sliding crops, as a share of their side.
        precision: Of the convolutions; bfloat16 is several times faster where the hardware has it, and its error is stated.
        dtype: Of the stored activations; float16 takes half the space, and its error is stored for each view.
        shard: Which part of the images, from 0.
        shards: Number of parts.
        batch_size: Views a step.
        workers: Processes that decode images ahead of the model; 0 decodes in the main one.
        device: auto, cpu, cuda, cuda:1, ….
    """
    manifest = read_parquet(images, "images")
    rows = manifest.iloc[shard_rows(len(manifest), shard, shards)]
    model = load_model(architecture, pretrained, device)
    size = model.preprocessing.image_size
    boxes = [
        centre_box(row.height, row.width, size) if views == "centre" else sliding_boxes(row.height, row.width, size, stride)
        for row in rows.itertuples()
    ]
    table = [(row.image_id, box) for row, of_image in zip(rows.itertuples(), boxes, strict=True) for box in of_image]
    pool = attention_pool(model)
    sizes = {"view": len(table), "token": pool.tokens - 1, "neuron": pool.neurons, "embed": len(pool.c_bias)}
    stamp = dataclasses.replace(model.stamp, code=code_fingerprint(__name__))
    about = {"shard": shard, "shards": shards, "images": paths_fingerprint(manifest["path"]), "precision": precision}
    tower = image_tower(model, precision)
    with create_zarr(output, "features", stamp, sizes, {"activation": dtype}, attributes=about) as store:
        store.write("image_id", [image_id for image_id, _ in table])
        for name in set(VIEW_TABLE) - {"image_id"}:
            store.write(name, [getattr(box, name) for _, box in table])
        crops = _Crops(rows["path"].tolist(), boxes, model.preprocessing.interpolation)
        images_of_batch = track(_decoded(crops, batch_size, workers), "encoding", "image", len(rows))
        for pixels in _in_batches(images_of_batch, batch_size):
            with torch.inference_mode():
                normal = model.preprocessing.normalise(pixels.to(model.device))
                if precision != "float32" and "precision_error" not in store.attributes:
                    _state_error(store, tower, normal[:_COMPARED])
                z = tower.activations(normal)
                embedding = tower.pool(z)
                stored = store.as_stored("activation", z)
                rounding = residual(tower.pool(stored), embedding) if dtype != "float32" else torch.zeros(len(z))
            store.append(activation=stored, embedding=embedding, rounding=rounding)


def _state_error(store: ZarrWriter, tower: ImageTower, pixels: torch.Tensor) -> None:
    error = tower.precision_error(pixels)
    store.describe(precision_error=error)
    first = f"the first {len(pixels)} views"
    print(
        f"{tower.precision}: embeddings of {first} are within {error:.1e} of float32's, relative to their norm", file=sys.stderr
    )


def _decoded(crops: _Crops, batch_size: int, workers: int) -> DataLoader:
    """Images in order; each worker is up to a batch ahead of the model."""
    ahead = {"prefetch_factor": max(2, batch_size // workers)} if workers else {}
    return DataLoader(crops, batch_size=None, num_workers=workers, **ahead)


def _in_batches(crops, size: int):
    """Views of consecutive images in batches of `size`, the last one shorter."""
    waiting: list[torch.Tensor] = []
    count = 0
    for pixels in crops:
        if isinstance(pixels, NadpipeError):
            raise pixels
        waiting.append(torch.as_tensor(pixels))
        count += len(pixels)
        while count >= size:
            views = torch.cat(waiting)
            yield views[:size]
            waiting, count = [views[size:]], count - size
    if count:
        yield torch.cat(waiting)
