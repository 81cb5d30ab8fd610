"""Run the image tower on one shard of a data set: activations and the embedding of each view."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nadpipe.circuit.readout import residual
from nadpipe.data.manifest import content_fingerprint, shard_rows
from nadpipe.data.views import OPENCV, Box, centre_box, count_boxes, crop_pixels, read_image, sliding_boxes
from nadpipe.errors import NadpipeError, printable
from nadpipe.progress import track
from nadpipe.store.arrays import create_zarr
from nadpipe.store.kinds.features import ACTIVATIONS, FEATURES, VIEW_TABLE
from nadpipe.store.manifest import move_paths, read_images
from nadpipe.towers.family import ImageTower
from nadpipe.towers.model import Model, load_model

LARGEST_CROPS = 2**27  # pixels of all crops of an image; each takes 3 bytes, and workers prepare up to 16 images
_COMPARED = 8  # views whose embedding is compared with open_clip's own
_ROUNDING = 1e-5  # relative error that float32 rounding explains in every model
_WORSE = 4  # a float32 tower may be this many times as far from float64 as open_clip's own float32
_AHEAD = 8  # images that each worker may prepare ahead of the model


def extract_features(
    images: Path,
    architecture: str,
    output: Path,
    pretrained: str | None = None,
    views: Literal["centre", "sliding"] = "centre",
    scale: float = 1.0,
    crop: float = 1.0,
    stride: float = 0.5,
    resize: Literal["model", "opencv"] = "model",
    block: int | None = None,
    shown_block: int | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    dtype: Literal["float32", "float16"] = "float32",
    shard: int = 0,
    shards: int = 1,
    batch_size: int = 64,
    workers: int = 0,
    device: str = "auto",
    copy: tuple[str, str] | None = None,
) -> None:
    """Write the activations z and the image embedding of each view of a shard, with the view table.

    Args:
        images: Manifest.
        architecture: Model name of open_clip, hf-hub:org/name, or path of a model config JSON.
        output: Zarr store.
        pretrained: Pretrained tag or checkpoint file; none for hf-hub.
        views: centre: the view of the model's own preprocessing. sliding: overlapping crops that cover the image.
        scale: Short side of images for sliding crops, as a multiple of the model's native size.
        crop: Side of sliding crops, as a multiple of the model's native size, rounded to whole tokens. Positional embeddings
            are interpolated unless it is 1.
        stride: Distance between sliding crops, as a share of their side.
        resize: Filter for sliding crops: the model's own, or bilinear without antialiasing, as cv2 resizes (opencv).
        block: Block of the neurons, from 0; by default the last one that reaches a head that is read out.
        shown_block: Block of a CLIP-ResNet's last stage whose activations are taken instead, from 0.
        precision: Precision of the layers up to the neurons. bfloat16 is several times faster on hardware that supports it; the
            error is reported.
        dtype: Type of the stored activations. float16 takes half the space; the error is stored per view.
        shard: Index of the shard, from 0.
        shards: Number of shards.
        batch_size: Views per step.
        workers: Processes that decode images ahead of the model; 0 decodes in the main process.
        device: auto, cpu, cuda, cuda:1, ….
        copy: Folder of the images as the manifest names it, and the folder of the copy to read instead.
    """
    manifest = read_images(images)
    content = content_fingerprint(manifest)  # of the paths in the manifest, so that it does not depend on a copy
    rows = (move_paths(manifest, *copy) if copy else manifest).iloc[shard_rows(len(manifest), shard, shards)]
    model = load_model(architecture, pretrained, device)
    stamp = model.stamp.made_by(__name__)
    image_size, boxes = _place_crops(rows, model, views, scale, crop, stride, resize)
    tower = model.image_tower(precision, image_size, block, shown_block)
    resize_filter = OPENCV if resize == "opencv" and views == "sliding" else tower.preprocessing.interpolation
    del model  # the tower holds the weights that it needs, and the rest takes memory
    attributes = {"shard": shard, "shards": shards, "images": content, "precision": precision, "views": views}
    attributes |= {"block": tower.block, "parts": tower.parts, "recipes": tower.recipes}
    sizes = _sizes(tower, sum(map(len, boxes)))
    dtypes = dict.fromkeys(ACTIVATIONS, dtype)
    with create_zarr(output, FEATURES, stamp, sizes, dtypes, attributes=attributes, omit=_unrecorded(tower, views)) as store:
        for name, values in _view_table(rows, boxes).items():
            store.write(name, values)
        decoded = _decode(rows, boxes, (resize_filter, tower.preprocessing.fill_color), batch_size, workers)
        crops = track(decoded, "encoding", "image", len(rows))
        for number, pixels in enumerate(_in_batches(crops, batch_size)):
            with torch.inference_mode():
                normalised = tower.preprocessing.normalise(pixels.to(tower.device))
                if number == 0:
                    store.describe(encode_image_error=_check_embeddings(tower, normalised[:_COMPARED]))
                    tower = tower.without_reference()
                features = tower.features(normalised, tokens=views == "sliding")
                embedding = features["embedding"]
                stored = features | {name: store.as_stored(name, features[name]) for name in ACTIVATIONS if name in features}
                exact = dtype == "float32"
                rounding = torch.zeros(len(embedding)) if exact else residual(tower.rebuild(stored), embedding)
            store.append(**stored, rounding=rounding)


def _place_crops(
    rows: pd.DataFrame,
    model: Model,
    views: Literal["centre", "sliding"],
    scale: float,
    crop: float,
    stride: float,
    resize: Literal["model", "opencv"],
) -> tuple[int, list[list[Box]]]:
    """Return the side of crops in pixels, and the crops of each image.

    Raises NadpipeError if crops are larger than images, or if those of one image take too much memory.
    """
    native = model.preprocessing.image_size
    if views == "centre":
        return native, [centre_box(row.height, row.width, native, model.preprocessing.resize_mode) for row in rows.itertuples()]
    short_side, side = _sliding_sizes(native, model.token_size, scale, crop)
    for row in rows.itertuples():
        crops = count_boxes(row.height, row.width, short_side, side, stride, resize == "opencv")
        if crops * side**2 > LARGEST_CROPS:
            raise NadpipeError(
                f"{printable(row.path)}: {crops} crops of {side} pixels take too much memory; lower segmentation.scale, "
                "raise segmentation.stride, or cut the image"
            )
    return side, [
        sliding_boxes(row.height, row.width, short_side, side, stride, resize == "opencv") for row in rows.itertuples()
    ]


def _sliding_sizes(native: int, token: int, scale: float, crop: float) -> tuple[int, int]:
    """Return the short side of images and the side of crops in pixels. Raises NadpipeError if crops are larger than images.

    native: side of the model's own images in pixels. token: side of a token in pixels.
    """
    short_side, side = round(native * scale), max(1, round(native * crop / token)) * token
    if side > short_side:
        raise NadpipeError(
            f"segmentation.crop: crops of {side} pixels do not fit images with a short side of {short_side}; "
            "lower crop or raise segmentation.scale"
        )
    return short_side, side


def _sizes(tower: ImageTower, views: int) -> dict[str, int]:
    readout, spatial = tower.readout, tower.grid**2
    sizes = {"view": views, "token": spatial, "neuron": readout.neurons, "embed": readout.embed, "head": readout.heads}
    recorded = {
        "key": tower.prefix + spatial,
        "prefix": tower.prefix,
        "layer": len(readout.layers),
        "part": len(tower.parts),
        "stream": readout.value.shape[2],
    }
    return sizes | recorded | {"recipe": len(tower.recipes)}


def _unrecorded(tower: ImageTower, views: Literal["centre", "sliding"]) -> list[str]:
    """Return the optional arrays that a tower does not record of these views."""
    if tower.pool is not None:
        return list(FEATURES.optional)
    absent = {
        "prefix_activation": tower.prefix == 0,
        "gain": not tower.readout.scaled,
        "token_embedding": views != "sliding",
    }
    return [name for name, is_absent in absent.items() if is_absent]


def _view_table(rows: pd.DataFrame, boxes: list[list[Box]]) -> dict[str, list[int]]:
    """Return the columns of the view table: one row per crop, image by image."""
    image_ids = [image_id for image_id, crops in zip(rows["image_id"], boxes, strict=True) for _ in crops]
    names = [name for name in VIEW_TABLE if name != "image_id"]
    return {"image_id": image_ids} | {name: [getattr(box, name) for crops in boxes for box in crops] for name in names}


def _check_embeddings(tower: ImageTower, pixels: Float[Tensor, "view 3 row column"]) -> float:
    """Report and return the largest relative error of the tower's embeddings against open_clip's own code in float32.

    In some models, rounding alone makes a large error. If the error of a float32 tower is above 1e-5, both codes are therefore
    compared with open_clip's code in float64. Raises NadpipeError if the tower is more than four times as far from it as
    open_clip's float32.
    """
    embedding, reference = tower.embedding(pixels), tower.reference_embedding(pixels)
    error = float(residual(embedding, reference).max())
    result = (
        f"{tower.precision}: embeddings of the first {len(pixels)} views are within {error:.1e} of encode_image in float32, "
        "relative to their norm"
    )
    if tower.precision == "float32" and not error <= _ROUNDING:
        exact = tower.reference_embedding(pixels, torch.float64)
        own, open_clips = (float(residual(value.double(), exact).max()) for value in (embedding, reference))
        result += f"; in float64, nadpipe's are within {own:.1e} and encode_image's within {open_clips:.1e}"
        if not own <= _WORSE * open_clips:
            raise NadpipeError(f"{result}, so rounding does not explain it; report the model to the developers of nadpipe")
    print(result, file=sys.stderr)
    return error


class _Crops(Dataset[UInt8[np.ndarray, "view row column 3"] | NadpipeError]):
    """Pixels of all crops of each image. An invalid image yields its error, because workers add lines to exceptions."""

    def __init__(self, paths: list[str], checksums: list[str], boxes: list[list[Box]], resizing: tuple[str, int]):
        self.paths, self.checksums, self.boxes, self.resizing = paths, checksums, boxes, resizing

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "view row column 3"] | NadpipeError:
        try:
            image = read_image(self.paths[index], self.checksums[index])
            return crop_pixels(image, self.boxes[index], *self.resizing)
        except NadpipeError as error:
            return error


def _decode(
    rows: pd.DataFrame, boxes: list[list[Box]], resizing: tuple[str, int], batch_size: int, workers: int
) -> Iterator[UInt8[Tensor, "view row column 3"]]:
    """Yield the crops of each image in order, decoded ahead of the model. resizing: filter, and grey level outside the image.

    Raises NadpipeError if an image is unreadable or has changed, or if a worker dies.
    """
    crops = _Crops(rows["path"].tolist(), rows["sha256"].tolist(), boxes, resizing)
    ahead: dict[str, Any] = {"prefetch_factor": min(_AHEAD, max(2, batch_size // workers))} if workers else {}
    try:
        for pixels in DataLoader(crops, batch_size=None, num_workers=workers, **ahead):
            if isinstance(pixels, NadpipeError):
                raise pixels
            yield torch.as_tensor(pixels)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise NadpipeError(f"features.workers: a process that decodes images died ({reason}); use fewer, or 0") from None


def _in_batches(crops: Iterable[UInt8[Tensor, "view row column 3"]], size: int) -> Iterator[UInt8[Tensor, "view row column 3"]]:
    """Yield the crops of consecutive images in batches of `size`; the last batch may be smaller."""
    waiting: list[Tensor] = []
    count = 0
    for pixels in crops:
        waiting.append(pixels)
        count += len(pixels)
        while count >= size:
            joined = torch.cat(waiting)
            yield joined[:size]
            waiting, count = [joined[size:]], count - size
    if count:
        yield torch.cat(waiting)
