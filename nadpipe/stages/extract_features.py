"""Run the image tower over one shard of a data set's views: activations of the last block, and the embedding."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from nadpipe.artifacts import VIEW_TABLE, create_zarr, read_parquet
from nadpipe.datasets import paths_fingerprint, shard_rows
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint
from nadpipe.models import Preprocessing, load_model
from nadpipe.progress import track
from nadpipe.views import Box, centre_box, crop_pixels, read_image, sliding_boxes


class _Crops(Dataset):
    """Normalised pixels of all boxes of each image; an unreadable image comes as its error, so that workers lose no line."""

    def __init__(self, paths: list[str], boxes: list[list[Box]], preprocessing: Preprocessing):
        self.paths, self.boxes, self.preprocessing = paths, boxes, preprocessing

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, at: int) -> np.ndarray | NadpipeError:
        how = self.preprocessing
        try:
            return crop_pixels(read_image(self.paths[at]), self.boxes[at], how.mean, how.std, how.interpolation)
        except NadpipeError as error:
            return error


def extract_features(
    images: Path,
    architecture: str,
    output: Path,
    pretrained: str | None = None,
    views: Literal["centre", "sliding"] = "centre",
    stride: float = 0.5,
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
        shard: Which part of the images, from 0.
        shards: Number of parts.
        batch_size: Views a step.
        workers: Processes that decode images.
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
    visual = model.clip.visual
    spatial, neurons = len(visual.attnpool.positional_embedding) - 1, visual.attnpool.v_proj.in_features
    sizes = {"view": len(table), "token": spatial, "neuron": neurons, "embed": visual.output_dim}
    stamp = dataclasses.replace(model.stamp, code=code_fingerprint(__name__))
    about = {"shard": shard, "shards": shards, "images": paths_fingerprint(manifest["path"])}
    crops = DataLoader(_Crops(rows["path"].tolist(), boxes, model.preprocessing), batch_size=None, num_workers=workers)
    with create_zarr(output, "features", stamp, sizes, attributes=about) as store:
        store.write("image_id", [image_id for image_id, _ in table])
        for name in set(VIEW_TABLE) - {"image_id"}:
            store.write(name, [getattr(box, name) for _, box in table])
        for pixels in _in_batches(track(crops, "encoding", "image", len(rows)), batch_size):
            with torch.inference_mode():
                z, embedding = model.activations(pixels.to(model.device))
            store.append(activation=z, embedding=embedding)


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
