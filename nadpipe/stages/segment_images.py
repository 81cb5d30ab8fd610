"""Segment one shard of images with every method: label maps, and what they confuse."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int

from nadpipe import metrics, segmentation
from nadpipe.artifacts import PARQUET, VIEW_TABLE, Stamp, ZarrStore, create_parquet, open_zarr, read_images, read_parquet, whole
from nadpipe.class_tables import read_classes
from nadpipe.classes import class_texts, find_background, read_mask
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint
from nadpipe.inputs import mean_over_shards, open_shards, read_pool, read_selection
from nadpipe.pictures import indexed_image
from nadpipe.progress import track
from nadpipe.segmentation import Labelling, Pairs, Query, Tokens, Variant

_VIEWS = 8  # at once: their maps per text and head are what a view takes most memory for


def segment_images(
    images: Path,
    classes: Path,
    features: Path,
    selection: Path,
    contributions: tuple[Path, ...],
    registers: Path,
    attnpool_store: Path,
    output: Path,
    output_labels: Path,
    methods: tuple[str, ...] = ("nad",),
    k: tuple[int, ...] = (),
    temperature: float = 40.0,
    sink: int | Literal["auto", "none"] = "auto",
    background_names: bool = True,
    background_threshold: float = 0.0,
    area_threshold: float = 0.0,
    copy: tuple[str, str] | None = None,
) -> None:
    """Write per image and method the confusion of classes, and the label maps as indexed PNG: <method>/<image_id>.png, and
    <method>-k<k>/<image_id>.png for methods that select pairs.

    Args:
        images: Manifest with masks.
        classes: Classes of the data set.
        features: Features of the shard, sliding views.
        selection: Selected pairs of the classes' names, in their order.
        contributions: All shards of the discovery contributions, for the heads' means.
        registers: Measured attention sink.
        attnpool_store: Exported attention pool.
        output: Parquet table.
        output_labels: Folder of the label maps.
        methods: Methods to run.
        k: Numbers of pairs per text, for methods that select pairs; the whole selection unless given.
        temperature: Factor on the logits before the softmax.
        sink: Spatial token to replace as attention sink: measured (auto), none, or its index on the model's own grid.
        background_names: Whether the names of a class called background compete with the others.
        background_threshold: Pixels whose best class is less probable are background.
        area_threshold: Share of an image that a class must cover to be kept, background excepted.
        copy: The folder that the manifest says its images lie in, and where a copy of it is, if they are read from a copy.
    """
    pool, model = read_pool(attnpool_store)
    manifest = read_images(images, copy).set_index("image_id")
    dataset, known = read_classes(classes)
    store = open_zarr(features, "features", model)
    if store.attributes["views"] != "sliding":
        raise NadpipeError(
            f"{features}: has one crop of each image, which does not cover it; extract features with sliding views"
        )
    chosen = read_selection(selection, model)
    owner, names = class_texts(known, background_names)
    if chosen.texts != names:
        raise NadpipeError(f"{selection}: was made for other texts than the names of {classes}; delete it and make it again")
    discovery = open_shards(contributions, "contributions", model)
    query = Query(pool, chosen.query, mean_over_shards(discovery, "value_mean"), _sink(sink, registers, model, pool.tokens - 1))
    query = query.at_grid(round(store["activation"].shape[1] ** 0.5))
    background = find_background(known)
    if background is None and background_threshold > 0:
        raise NadpipeError(f"datasets.{dataset}.background_threshold: no class is called background; name one so, or set 0")
    how = Labelling(torch.tensor(owner), len(known.titles), temperature, background, background_threshold, area_threshold)
    variants = segmentation.variants(methods, k or (chosen.pairs.head.shape[1],))
    selected = {
        size: segmentation.selected_pairs(chosen.pairs, size, pool.heads, pool.neurons)
        for size in {variant.k for variant in variants if variant.k is not None}
    }
    views = pd.DataFrame({name: store[name][:] for name in VIEW_TABLE})
    about = {"dataset": dataset, "temperature": temperature, "sink": -1 if query.sink is None else query.sink}
    stamp = dataclasses.replace(model, code=code_fingerprint(__name__))
    columns = [name for name in PARQUET["confusion"] if name not in about]
    with whole(output_labels) as folder, create_parquet(output, "confusion", stamp) as add:
        for variant in variants:
            (folder / variant.name).mkdir(parents=True)
        for image_id, of_image in track(views.groupby("image_id"), "segmenting", "image", views["image_id"].nunique()):
            image = manifest.loc[image_id]
            if image["mask_path"] is None:
                raise NadpipeError(f"{images}: image {image_id} ({image['path']}) has no mask; name its column or leave it out")
            size = (int(image["height"]), int(image["width"]))
            truth = read_mask(image["mask_path"], image["path"], size, known)
            rows: list[dict] = []
            for variant, labels in _segment(store, of_image, size, query, selected, variants, how):
                drawn = indexed_image(labels, known.colours)
                drawn.save(folder / variant.name / f"{image_id:06d}.png", compress_level=3)  # a third of the default's time
                cells = metrics.confused(truth, labels, how.classes)
                rows += [{"image_id": image_id, "method": variant.method, "k": variant.k, **cell} for cell in cells]
            add(pd.DataFrame(rows, columns=columns).assign(**about))


def _segment(
    store: ZarrStore,
    views: pd.DataFrame,
    size: tuple[int, int],
    query: Query,
    selected: Mapping[int, Pairs],
    variants: Sequence[Variant],
    how: Labelling,
) -> Iterator[tuple[Variant, Int[np.ndarray, "height width"]]]:
    """Labels of one image by every method."""
    logits: dict[Variant, list[torch.Tensor]] = {variant: [] for variant in variants}
    for start in range(views.index[0], views.index[-1] + 1, _VIEWS):
        part = slice(start, min(start + _VIEWS, views.index[-1] + 1))
        tokens = Tokens(torch.from_numpy(store["activation"][part]).float(), query)
        for variant in variants:
            pairs = None if variant.k is None else selected[variant.k]
            logits[variant].append(segmentation.METHODS[variant.method].logits(tokens, pairs))
    crop, *resized = views[["crop_size", "resized_height", "resized_width"]].iloc[0].tolist()
    corners = views["crop_top"].tolist(), views["crop_left"].tolist()
    canvas = segmentation.make_canvas(*corners, crop, query.pool.grid, tuple(resized), size)
    for variant in variants:
        cells = segmentation.arrange(torch.cat(logits[variant]), *corners, query.pool.grid)
        if not cells.isfinite().all():
            image_id = views["image_id"].iloc[0]
            raise NadpipeError(
                f"{store.path}: {variant.name} gives image {image_id} logits that are no numbers; store features as float32"
            )
        yield variant, segmentation.label(cells, canvas, how).numpy()


def _sink(sink: int | str, registers: Path, model: Stamp, spatial: int) -> int | None:
    """The spatial token to replace: measured, none, or the one asked for."""
    if sink == "none":
        return None
    if sink == "auto":
        tokens = read_parquet(registers, "registers", model, filters=[("kind", "==", "token")])
        return next((int(token) for token in tokens.loc[tokens["sink"].astype(bool), "index"]), None)
    if sink >= spatial:
        raise NadpipeError(f"segmentation.sink: {sink} is no spatial token; the model has 0 to {spatial - 1}")
    return sink
