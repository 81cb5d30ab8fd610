"""Segment one shard of images with every method: label maps, and what they confuse."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch

from nadpipe import metrics, segmentation
from nadpipe.artifacts import ZarrStore, open_zarr, read_parquet, whole, write_parquet
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint
from nadpipe.pictures import indexed_image, read_mask
from nadpipe.pools import open_shards, read_pool, read_selection
from nadpipe.progress import track


def segment_images(
    images: Path,
    features: Path,
    selection: Path,
    contributions: tuple[Path, ...],
    attnpool_store: Path,
    output: Path,
    output_labels: Path,
    methods: tuple[str, ...] = ("nad",),
    temperature: float = 40.0,
    sink: int | Literal["auto", "none"] = "auto",
    ignore: int = 255,
) -> None:
    """Write per image and method the confusion of classes, and the label maps as indexed PNG: <method>/<image_id>.png.

    Args:
        images: Manifest with masks.
        features: Features of the shard, sliding views.
        selection: Selected pairs of the classes, in the order of the mask values.
        contributions: All shards of the discovery contributions, for the heads' means and the attention sink.
        attnpool_store: Exported attention pool.
        output: Parquet table.
        output_labels: Folder of the label maps.
        methods: Methods to run.
        temperature: Factor on the logits before the softmax.
        sink: Spatial token to replace as attention sink: measured (auto), none, or its index.
        ignore: Mask value that does not count.
    """
    unknown = [name for name in methods if name not in segmentation.METHODS]
    if unknown:
        raise NadpipeError(f"--methods: no method {unknown[0]}; there are {', '.join(segmentation.METHODS)}")
    pool, model = read_pool(attnpool_store)
    manifest = read_parquet(images, "images").set_index("image_id")
    store = open_zarr(features, "features", model)
    chosen = read_selection(selection, model)
    discovery = open_shards(contributions, "contributions", model)
    query = segmentation.Query(
        pool=pool,
        text=chosen.query,
        pairs=segmentation.selection_matrix(chosen.pairs, pool.heads, pool.neurons),
        k=chosen.pairs.head.shape[1],
        value_mean=mean_over_views(discovery, "value_mean"),
    )
    if sink == "auto":
        sink = segmentation.find_sink(mean_over_views(discovery, "attention"))
    elif sink == "none":
        sink = None
    views = pd.DataFrame({name: store[name][:] for name in _VIEWS})
    rows: list[dict] = []
    with whole(output_labels) as folder:
        for method in methods:
            (folder / method).mkdir(parents=True)
        for image_id, of_image in track(views.groupby("image_id"), "segmenting", "image", views["image_id"].nunique()):
            image = manifest.loc[image_id]
            if image["mask_path"] is None:
                raise NadpipeError(f"{images}: image {image_id} ({image['path']}) has no mask; name its column or leave it out")
            size = (int(image["height"]), int(image["width"]))
            truth = read_mask(image["mask_path"], size, len(chosen.query), ignore)
            z = torch.from_numpy(store["activation"][of_image.index[0] : of_image.index[-1] + 1]).float()
            for method in methods:
                logits = segmentation.METHODS[method](z, query).unflatten(2, (pool.grid, pool.grid))
                labels, probability = _label(segmentation.replace_sink(logits, sink), of_image, size, temperature)
                indexed_image(labels).save(folder / method / f"{image_id:06d}.png")
                rows += _confusions(image_id, method, truth, labels, probability, len(chosen.query), ignore)
    about = {"k": query.k, "temperature": temperature, "sink": -1 if sink is None else sink}
    stamp = dataclasses.replace(model, code=code_fingerprint(__name__))
    write_parquet(output, "confusion", pd.DataFrame(rows).assign(**about), stamp)


_VIEWS = ("image_id", "crop_top", "crop_left", "crop_size", "resized_height", "resized_width")


def mean_over_views(stores: list[ZarrStore], name: str) -> torch.Tensor:
    """Mean over all views of an array of the contributions; `value_mean` is a mean over its shard's views already."""
    views = [store["image_id"].shape[0] for store in stores]
    means = [store[name][:] if name == "value_mean" else store[name][:].mean(0) for store in stores]
    return torch.from_numpy(np.average(means, axis=0, weights=views).astype(np.float32))


def _label(
    logits: torch.Tensor, views: pd.DataFrame, size: tuple[int, int], temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    first = views.iloc[0]
    merged = segmentation.merge_views(
        logits,
        views["crop_top"].tolist(),
        views["crop_left"].tolist(),
        int(first["crop_size"]),
        int(first["resized_height"]),
        int(first["resized_width"]),
    )
    labels, probability = segmentation.label(merged, *size, temperature)
    return labels.numpy(), probability.numpy()


def _confusions(
    image_id: int,
    method: str,
    truth: np.ndarray,
    labels: np.ndarray,
    probability: np.ndarray,
    classes: int,
    ignore: int,
) -> list[dict]:
    """The cells of the image's confusion matrix that are not zero."""
    counts = metrics.confusion(truth, labels, classes, ignore)
    return [
        {
            "image_id": image_id,
            "method": method,
            "true_class": true,
            "predicted_class": predicted,
            "pixels": counts[true, predicted],
            "confidence": probability[(truth == true) & (labels == predicted)].mean(),
        }
        for true, predicted in np.argwhere(counts)
    ]
