"""Segment one shard of images with every method: label maps, and what they confuse."""

import dataclasses
from pathlib import Path
from typing import Literal

import pandas as pd
import torch

from nadpipe import metrics, segmentation
from nadpipe.artifacts import PARQUET, VIEW_TABLE, ZarrStore, create_parquet, open_zarr, read_parquet, whole
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint
from nadpipe.inputs import mean_over_shards, open_shards, read_pool, read_selection
from nadpipe.pictures import indexed_image, read_mask
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
        value_mean=mean_over_shards(discovery, "value_mean"),
        sink=_sink(sink, discovery, pool.tokens - 1),
    )
    classes = len(chosen.texts)
    if classes > 256:
        raise NadpipeError(f"{selection}: {classes} classes; label maps as indexed PNG hold at most 256")
    views = pd.DataFrame({name: store[name][:] for name in VIEW_TABLE})
    about = {"k": query.k, "temperature": temperature, "sink": -1 if query.sink is None else query.sink}
    stamp = dataclasses.replace(model, code=code_fingerprint(__name__))
    columns = [name for name in PARQUET["confusion"] if name not in about]
    with whole(output_labels) as folder, create_parquet(output, "confusion", stamp) as add:
        for method in methods:
            (folder / method).mkdir(parents=True)
        for image_id, of_image in track(views.groupby("image_id"), "segmenting", "image", views["image_id"].nunique()):
            image = manifest.loc[image_id]
            if image["mask_path"] is None:
                raise NadpipeError(f"{images}: image {image_id} ({image['path']}) has no mask; name its column or leave it out")
            size = (int(image["height"]), int(image["width"]))
            truth = read_mask(image["mask_path"], size, classes, ignore)
            z = torch.from_numpy(store["activation"][of_image.index[0] : of_image.index[-1] + 1]).float()
            rows: list[dict] = []
            for method in methods:
                logits = segmentation.METHODS[method](z, query).unflatten(2, (pool.grid, pool.grid))
                labels, probability = (part.numpy() for part in _label(logits, of_image, size, temperature))
                indexed_image(labels).save(folder / method / f"{image_id:06d}.png")
                cells = metrics.confused(truth, labels, probability, classes, ignore)
                rows += [{"image_id": image_id, "method": method, **cell} for cell in cells]
            add(pd.DataFrame(rows, columns=columns).assign(**about))


def _sink(sink: int | str, discovery: list[ZarrStore], spatial: int) -> int | None:
    """The spatial token to replace: measured, none, or the one asked for."""
    if sink == "auto":
        return segmentation.find_sink(mean_over_shards(discovery, "attention_mean"))
    if sink == "none":
        return None
    if sink >= spatial:
        raise NadpipeError(f"segmentation.sink: {sink} is no spatial token; the model has 0 to {spatial - 1}")
    return sink


def _label(
    logits: torch.Tensor, views: pd.DataFrame, size: tuple[int, int], temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and their probabilities of one image from the logits of its views."""
    crop, height, width = views[["crop_size", "resized_height", "resized_width"]].iloc[0].tolist()
    corners = views["crop_top"].tolist(), views["crop_left"].tolist()
    merged = segmentation.merge_views(logits, *corners, crop, height, width)
    return segmentation.label(merged, *size, temperature)
