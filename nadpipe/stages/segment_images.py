"""Segment one shard of images with every method: label maps and confusions."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int

from nadpipe.circuit import canvas as canvases
from nadpipe.circuit import metrics, segmentation
from nadpipe.circuit.attention import RecordedAttention
from nadpipe.circuit.canvas import Labelling
from nadpipe.circuit.label_values import IGNORED
from nadpipe.circuit.readout import count_pairs
from nadpipe.circuit.segmentation import Pairs, Query, Tokens, Variant
from nadpipe.data.class_tables import read_classes
from nadpipe.data.classes import Classes, class_texts, find_background
from nadpipe.data.masks import read_mask
from nadpipe.errors import NadpipeError
from nadpipe.progress import track
from nadpipe.store.arrays import ZarrStore, open_zarr
from nadpipe.store.atomic import atomic_path
from nadpipe.store.kinds.features import HEAD_MEANS, VIEW_TABLE
from nadpipe.store.kinds.segmentation import CONFUSION, REGISTERS
from nadpipe.store.label_maps import write_label_map
from nadpipe.store.manifest import read_images
from nadpipe.store.pool import open_features, read_recorded, read_weights
from nadpipe.store.selection import read_selection
from nadpipe.store.stamp import Stamp
from nadpipe.store.tables import create_parquet, read_parquet

_VIEWS = 8  # views processed together; their maps per text and head take most of the memory


def segment_images(
    images: Path,
    classes: Path,
    features: Path,
    selection: Path,
    head_means: Path,
    registers: Path,
    readout: Path,
    output: Path,
    output_labels: Path,
    methods: tuple[str, ...] = ("nad",),
    k: tuple[int | float, ...] = (),
    temperature: float = 40.0,
    sink: int | Literal["auto", "none", "last"] = "auto",
    sink_replacement: Literal["cosines", "vectors"] = "cosines",
    background_names: bool = True,
    background_threshold: float = 0.0,
    area_threshold: float = 0.0,
    copy: tuple[str, str] | None = None,
) -> None:
    """Write confusions and label maps of every image and method.

    Label maps are indexed PNG files: <method>/<image_id>.png, or <method>-k<k>/<image_id>.png for methods that select pairs. If
    no image has a mask, all pixels of the confusions are without truth.

    Args:
        images: Manifest, in which all images have masks or none has.
        classes: Classes of the data set.
        features: Features of the shard, sliding views.
        selection: Selected pairs of the classes' names, in order.
        head_means: Means of the heads over the discovery images.
        registers: Measured attention sink.
        readout: Exported readout.
        output: Parquet table.
        output_labels: Folder of the label maps.
        methods: Methods to run.
        k: Numbers of pairs per text, or shares of all pairs below 1, for methods that select pairs; by default the whole
            selection.
        temperature: Factor on the logits before the softmax.
        sink: Attention sink to replace: measured (auto), none, the last spatial token (last), or a spatial token's index on the
            model's own grid.
        sink_replacement: Average the cosines of the sink's neighbours, or their vectors before the cosine.
        background_names: Let the names of a class called background compete with the other names.
        background_threshold: Pixels whose best class is less probable become background.
        area_threshold: Classes that cover a smaller share of an image are removed, except background.
        copy: Folder of the images as the manifest names it, and the folder of the copy to read instead.
    """
    weights = read_weights(readout)
    model = weights.model
    pool = weights.pool or RecordedAttention(weights.readout, weights.grid, weights.prefix)
    manifest = read_images(images, copy).set_index("image_id")
    has_masks = manifest["mask_path"].notna().any()
    dataset, class_list = read_classes(classes)
    store = open_features(features, weights)
    if store.attributes["views"] != "sliding":
        raise NadpipeError(f"{features}: has single crops, which do not cover the image; extract features with sliding views")
    selected = read_selection(selection, model)
    owner, names = class_texts(class_list, background_names)
    if selected.texts != names:
        raise NadpipeError(f"{selection}: has other texts than the names in {classes}; delete it and make it again")
    value_mean = open_zarr(head_means, HEAD_MEANS, model).tensor("value_mean")
    sink_token = _find_sink(sink, registers, model, pool.grid**2)
    query = Query(pool, selected.query, value_mean, sink_token, sink_replacement)
    query = query.at_grid(round(store["activation"].shape[1] ** 0.5))
    labelling = _labelling(dataset, class_list, owner, temperature, background_threshold, area_threshold)
    counts = [count_pairs(size, pool.readout) for size in k] or [selected.pairs.head.shape[1]]
    variants = segmentation.variants(methods, counts)
    sizes = {variant.k for variant in variants if variant.k is not None}
    pairs = {size: segmentation.selected_pairs(selected.pairs, size, pool.heads, pool.neurons) for size in sizes}
    views = pd.DataFrame({name: store.read(name) for name in VIEW_TABLE})
    constants = {"dataset": dataset, "temperature": temperature, "sink": -1 if query.sink is None else query.sink}
    columns = [name for name in CONFUSION.columns if name not in constants]
    with atomic_path(output_labels) as folder, create_parquet(output, CONFUSION, model.made_by(__name__)) as add:
        for variant in variants:
            (folder / variant.name).mkdir(parents=True)
        for image_id, image_views in track(views.groupby("image_id"), "segmenting", "image", views["image_id"].nunique()):
            image = manifest.loc[image_id]
            size = (int(image["height"]), int(image["width"]))
            if not has_masks:
                truth = np.full(size, IGNORED)
            elif image["mask_path"] is None:
                raise NadpipeError(
                    f"{images}: image {image_id} ({image['path']}) has no mask, others have; add it or remove the image"
                )
            else:
                checksums = image["mask_sha256"], image["sha256"]
                truth = read_mask(image["mask_path"], image["path"], size, class_list, checksums)
            rows: list[dict] = []
            for variant, label_map in _segment(store, image_views, size, query, pairs, variants, labelling):
                write_label_map(folder, variant.name, image_id, label_map, class_list.colours)
                cells = metrics.confusion_cells(truth, label_map, labelling.classes)
                rows += [{"image_id": image_id, "method": variant.method, "k": variant.k, **cell} for cell in cells]
            add(pd.DataFrame(rows, columns=columns).assign(**constants))


def _segment(
    store: ZarrStore,
    views: pd.DataFrame,
    size: tuple[int, int],
    query: Query,
    pairs: Mapping[int, Pairs],
    variants: Sequence[Variant],
    labelling: Labelling,
) -> Iterator[tuple[Variant, Int[np.ndarray, "height width"]]]:
    """Yield the label map of one image by every method."""
    logits: dict[Variant, list[torch.Tensor]] = {variant: [] for variant in variants}
    for start in range(views.index[0], views.index[-1] + 1, _VIEWS):
        rows = slice(start, min(start + _VIEWS, views.index[-1] + 1))
        recorded = read_recorded(store, rows) if isinstance(query.pool, RecordedAttention) else None
        tokens = Tokens(store.tensor("activation", rows).float(), query, recorded)
        for variant in variants:
            method_pairs = None if variant.k is None else pairs[variant.k]
            logits[variant].append(segmentation.LOGITS[variant.method](tokens, method_pairs))
    crop, *resized = views[["crop_size", "resized_height", "resized_width"]].iloc[0].tolist()
    corners = views["crop_top"].tolist(), views["crop_left"].tolist()
    canvas = canvases.make_canvas(*corners, crop, query.pool.grid, tuple(resized), size)
    for variant in variants:
        cells = canvases.arrange(torch.cat(logits[variant]), *corners, query.pool.grid)
        if not cells.isfinite().all():
            image_id = views["image_id"].iloc[0]
            raise NadpipeError(
                f"{store.path}: {variant.name} gives NaN or infinite logits for image {image_id}; set features.dtype: float32"
            )
        yield variant, canvases.label(cells, canvas, labelling).numpy()


def _labelling(
    dataset: str, classes: Classes, owner: Sequence[int], temperature: float, threshold: float, area: float
) -> Labelling:
    """Return the rules that turn logits into classes. Raises NadpipeError for a threshold without a background class."""
    background = find_background(classes)
    if background is None and threshold > 0:
        raise NadpipeError(
            f"datasets.{dataset}.background_threshold: no class is called background; name one background, or set 0"
        )
    return Labelling(torch.tensor(owner), len(classes.titles), temperature, background, threshold, area)


def _find_sink(sink: int | str, registers: Path, model: Stamp, spatial: int) -> int | None:
    """Return the spatial token to replace, or None. Raises NadpipeError if the grid has no such token."""
    if sink == "none":
        return None
    if sink == "last":
        return spatial - 1
    if sink == "auto":
        tokens = read_parquet(registers, REGISTERS, model, filters=[("kind", "==", "token")])
        return next((int(token) for token in tokens.loc[tokens["sink"].astype(bool), "index"]), None)
    if int(sink) >= spatial:
        raise NadpipeError(f"segmentation.sink: {sink} is not a spatial token; choose one from 0 to {spatial - 1}")
    return int(sink)
