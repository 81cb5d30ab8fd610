"""Run the image tower over one shard of a data set's views: activations of the last block, and the embedding."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from nadpipe.artifacts import VIEW_TABLE, create_zarr, move_paths, read_images
from nadpipe.attnpool import residual
from nadpipe.datasets import content_fingerprint, shard_rows
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint
from nadpipe.models import TOKEN, ImageTower, Model, attention_pool, image_tower, last_blocks, load_model, set_image_size
from nadpipe.progress import track
from nadpipe.views import Box, centre_box, crop_pixels, read_image, sliding_boxes

_COMPARED = 8  # views of which the embedding is held against open_clip's own
_ROUNDING = 1e-5  # as far as float32 may be from it, relative to its norm
_AHEAD = 8  # images, at most, that each worker is ahead of the model


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
    scale: float = 1.0,
    crop: float = 1.0,
    stride: float = 0.5,
    block: int | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    dtype: Literal["float32", "float16"] = "float32",
    shard: int = 0,
    shards: int = 1,
    batch_size: int = 64,
    workers: int = 0,
    device: str = "auto",
    copy: tuple[str, str] | None = None,
) -> None:
    """Write z and the image embedding of each view of a shard of the images, with the view table.

    Args:
        images: Manifest.
        architecture: Model name of open_clip, hf-hub:org/name, or path of a model config JSON.
        output: Zarr store.
        pretrained: Pretrained tag or checkpoint file; none for hf-hub.
        views: centre: the crop of the model's own preprocessing. sliding: overlapping crops that cover the image.
        scale: Short side that images are resized to for sliding crops, as a multiple of the model's native size.
        crop: Side of sliding crops, likewise, in whole tokens; where it is not 1 the positional embedding is interpolated.
        stride: Distance of sliding crops, as a share of their side.
        block: Block of the last stage whose activations are taken, from 0; unless given the last one, which the model uses.
        precision: Of the convolutions; bfloat16 is several times faster where the hardware has it, and its error is stated.
        dtype: Of the stored activations; float16 takes half the space, and its error is stored for each view.
        shard: Which part of the images, from 0.
        shards: Number of parts.
        batch_size: Views a step.
        workers: Processes that decode images ahead of the model; 0 decodes in the main one.
        device: auto, cpu, cuda, cuda:1, ….
        copy: The folder that the manifest says its images lie in, and where a copy of it is, if they are read from a copy.
    """
    manifest = read_images(images)
    seen = content_fingerprint(manifest)  # by the names that the manifest gives, wherever a copy is
    manifest = move_paths(manifest, *copy) if copy else manifest
    rows = manifest.iloc[shard_rows(len(manifest), shard, shards)]
    model = load_model(architecture, pretrained, device)
    _check_block(block, last_blocks(model))
    native = model.preprocessing.image_size
    if views == "sliding":
        short_side, side = _sliding_sizes(native, scale, crop)
        set_image_size(model, side)
        boxes = [sliding_boxes(row.height, row.width, short_side, side, stride) for row in rows.itertuples()]
    else:
        boxes = [centre_box(row.height, row.width, native) for row in rows.itertuples()]
    table = [(row.image_id, box) for row, of_image in zip(rows.itertuples(), boxes, strict=True) for box in of_image]
    pool = attention_pool(model)
    sizes = {"view": len(table), "token": pool.tokens - 1, "neuron": pool.neurons, "embed": len(pool.c_bias)}
    stamp = dataclasses.replace(model.stamp, code=code_fingerprint(__name__))
    about = {"shard": shard, "shards": shards, "images": seen, "precision": precision, "views": views}
    about["block"] = last_blocks(model) - 1 if block is None else block
    tower: ImageTower | None = None
    with create_zarr(output, "features", stamp, sizes, {"activation": dtype}, attributes=about) as store:
        store.write("image_id", [image_id for image_id, _ in table])
        for name in set(VIEW_TABLE) - {"image_id"}:
            store.write(name, [getattr(box, name) for _, box in table])
        crops = _Crops(rows["path"].tolist(), boxes, model.preprocessing.interpolation)
        images_of_batch = track(_decoded(crops, batch_size, workers), "encoding", "image", len(rows))
        for pixels in _in_batches(images_of_batch, batch_size):
            with torch.inference_mode():
                normal = model.preprocessing.normalise(pixels.to(model.device))
                if tower is None:
                    tower, error = _fast_tower(model, precision, normal[:_COMPARED])
                    store.describe(encode_image_error=error)
                z = tower.activations(normal, block)
                embedding = tower.pool(z)
                stored = store.as_stored("activation", z)
                rounding = residual(tower.pool(stored), embedding) if dtype != "float32" else torch.zeros(len(z))
            store.append(activation=stored, embedding=embedding, rounding=rounding)


def _sliding_sizes(native: int, scale: float, crop: float) -> tuple[int, int]:
    """Short side and side of a crop in pixels. Raises NadpipeError for crops that do not fit."""
    short_side, side = round(native * scale), max(1, round(native * crop / TOKEN)) * TOKEN
    if side > short_side:
        raise NadpipeError(f"segmentation.crop: crops of {side} pixels in images of short side {short_side}; raise scale")
    return short_side, side


def _check_block(block: int | None, blocks: int) -> None:
    if block is not None and block >= blocks:
        raise NadpipeError(f"segmentation.block: no block {block}; the model's last stage has 0 to {blocks - 1}")


def _fast_tower(model: Model, precision: str, pixels: torch.Tensor) -> tuple[ImageTower, float]:
    """The fast image tower, and how far its embeddings of these views are from those of open_clip's own code in float32.

    Raises NadpipeError when a float32 tower is not the same function.
    """
    own = model.encode_image(pixels)
    tower = image_tower(model, precision)
    error = float(residual(tower.pool(tower.activations(pixels)), own).max())
    told = f"{precision}: embeddings of the first {len(pixels)} views are within {error:.1e} of encode_image in float32"
    if precision == "float32" and not error <= _ROUNDING:
        raise NadpipeError(f"{told}, relative to their norm; more than rounding explains, please report the model")
    print(f"{told}, relative to their norm", file=sys.stderr)
    return tower, error


def _decoded(crops: _Crops, batch_size: int, workers: int) -> Iterator[np.ndarray | torch.Tensor | NadpipeError]:
    """Images in order, each worker some ahead of the model. Raises NadpipeError when a worker dies."""
    ahead = {"prefetch_factor": min(_AHEAD, max(2, batch_size // workers))} if workers else {}
    try:
        yield from DataLoader(crops, batch_size=None, num_workers=workers, **ahead)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise NadpipeError(f"features.workers: a process that decodes images died ({reason}); use fewer, or 0") from None


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
