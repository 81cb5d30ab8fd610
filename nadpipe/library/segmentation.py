"""Segment image files with classes that texts name, by the stages of the workflow and the artifacts of a finished run."""

import collections
import dataclasses
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nadpipe.circuit import metrics, segmentation
from nadpipe.data.class_tables import write_classes
from nadpipe.data.classes import Classes, find_background, make_classes
from nadpipe.data.views import examine_image
from nadpipe.errors import NadpipeError, printable
from nadpipe.stages.draw_overlays import draw_overlays
from nadpipe.stages.embed_texts import embed_texts
from nadpipe.stages.extract_features import extract_features
from nadpipe.stages.segment_images import segment_images
from nadpipe.stages.select_pairs import select_pairs
from nadpipe.store.arrays import open_zarr
from nadpipe.store.atomic import atomic_path
from nadpipe.store.kinds.features import HEAD_MEANS
from nadpipe.store.kinds.images import IMAGES
from nadpipe.store.kinds.model import READOUT
from nadpipe.store.kinds.segmentation import CONFUSION, REGISTERS, SEGMENTED
from nadpipe.store.results import read_settings
from nadpipe.store.stamp import Stamp
from nadpipe.store.tables import read_parquet, write_csv, write_parquet

_LARGEST = 5  # classes in a row of the printed table
_BATCH_SIZE = 16  # views per step, the default of features.batch_size
_STORED = ("precision", "dtype")  # keys of `features` that affect results


def segment_files(
    images: Sequence[Path],
    texts: Sequence[str],
    output: Path,
    results: Path,
    methods: Sequence[str] = ("nad",),
    background_names: bool = True,
    background_threshold: float = 0.0,
    area_threshold: float = 0.0,
    device: str = "auto",
) -> pd.DataFrame:
    """Segment image files with the model, the directions and all settings of a run, as the workflow would for these classes.

    Writes labels/<method>/ (indexed PNG), overlays/ and shares.csv into a new folder, and returns the shares: one row per
    image, method and class. The arguments are those of `nadpipe segment`. Raises NadpipeError if a text, an image, a method or
    a threshold is invalid, if the folder exists, or if the results lack what is needed.
    """
    classes = _read_texts(texts, background_threshold)
    segmentation.variants(methods, [1])  # raises NadpipeError for an unknown method
    if output.exists():
        raise NadpipeError(f"{output}: exists; name a new folder")
    manifest, settings = _read_images(images), read_settings(results)
    labelling = {
        "background_names": background_names,
        "background_threshold": background_threshold,
        "area_threshold": area_threshold,
    }
    with tempfile.TemporaryDirectory(prefix="nadpipe-") as name:
        folder = Path(name)
        write_parquet(folder / "images", IMAGES, manifest, Stamp())
        write_classes(folder / "classes", classes, "segmentation", Stamp())
        _run_stages(folder, results, settings, tuple(methods), labelling, device)
        draw_overlays(folder / "images", folder / "classes", (folder / "labels",), folder / "overlays", count=len(images))
        shares = _shares(folder / "confusion", images, classes.titles)
        with atomic_path(output) as partial:
            for number, stem in enumerate(_file_names(images)):
                for picture in folder.glob(f"*/**/{number:06d}.png"):
                    copied = partial / picture.relative_to(folder).with_stem(stem)
                    copied.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(picture, copied)
            write_csv(partial / "shares.csv", SEGMENTED, shares)
    return shares


def _run_stages(
    folder: Path,
    results: Path,
    settings: Mapping[str, Any],
    methods: tuple[str, ...],
    labelling: Mapping[str, Any],
    device: str,
) -> None:
    """Run the stages of the workflow that segment the images and classes in a folder, with the run's artifacts and settings.

    Writes labels and confusion into the folder. labelling: options of `segment_images` that the config has per data set.
    """
    artifacts, registers = results / "artifacts", results / "registers.parquet"
    readout, head_means = artifacts / "model" / "readout.zarr", artifacts / "discovery" / "head_means.zarr"
    model = open_zarr(readout, READOUT).stamp
    open_zarr(head_means, HEAD_MEANS, model)  # like the next line, fails before the model runs
    read_parquet(registers, REGISTERS, model)
    section = settings["segmentation"]

    def chosen(*keys: str) -> dict[str, Any]:
        return {key: section[key] for key in keys}

    images, classes = folder / "images", folder / "classes"
    text, selection, features = (folder / f"{name}.zarr" for name in ("text", "selection", "features"))
    block = settings["model"]["block"]
    loaded: dict[str, Any] = {"device": device} | {key: settings["model"][key] for key in ("architecture", "pretrained")}
    templates = tuple(settings["text"]["templates"])
    embed_texts(output=text, classes=classes, background_names=labelling["background_names"], templates=templates, **loaded)
    directions, k = artifacts / "directions" / "pair.zarr", tuple(section["k"])
    select_pairs(text, directions, readout, selection, k=max(k), reference=text, **chosen("select_by"))
    views = chosen("scale", "crop", "stride", "resize") | {key: settings["features"][key] for key in _STORED}
    views |= {"views": "sliding", "block": block, "shown_block": section["block"], "batch_size": _BATCH_SIZE}
    extract_features(images, output=features, **views, **loaded)
    inputs = (images, classes, features, selection, head_means, registers, readout)
    options = chosen("temperature", "sink", "sink_replacement") | dict(labelling)
    segment_images(*inputs, folder / "confusion", folder / "labels", methods, k, **options)


def _read_texts(texts: Sequence[str], background_threshold: float) -> Classes:
    """Return the classes that texts name. Raises NadpipeError if the texts or the threshold are invalid."""
    try:
        classes = make_classes(texts)
    except NadpipeError as error:
        raise NadpipeError(f"--texts: {error}") from None
    if background_threshold > 0 and find_background(classes) is None:
        raise NadpipeError("--background-threshold: no class is called background; name one background, or set 0")
    return classes


def _read_images(images: Sequence[Path]) -> pd.DataFrame:
    """Return the manifest of image files. Raises NadpipeError if there are none, or for the first one that is not usable."""
    if not images:
        raise NadpipeError("images: none is given; name at least one image file")
    repeated = next((path for path, count in collections.Counter(images).items() if count > 1), None)
    if repeated is not None:
        raise NadpipeError(f"{printable(str(repeated))}: given more than once; name each image once")
    for name in map(str, images):
        if not name.isascii() and name != name.encode("utf-8", "replace").decode():
            raise NadpipeError(f"{printable(name)}: its name is not UTF-8; rename it")
    rows = [
        {"image_id": number, "path": str(path), **dataclasses.asdict(examine_image(str(path)))}
        for number, path in enumerate(images)
    ]
    table = pd.DataFrame(rows, columns=list(IMAGES.columns), dtype=object)
    return table.where(table.notna(), None)


def _file_names(images: Sequence[Path]) -> list[str]:
    """Return a file name without suffix for each image: its own, or with its number if two images have the same."""
    stems = [path.stem for path in images]
    unique = len({stem.lower() for stem in stems}) == len(stems)  # some file systems ignore case
    return stems if unique else [f"{number}-{stem}" for number, stem in enumerate(stems, start=1)]


def _shares(confusion: Path, images: Sequence[Path], titles: Sequence[str]) -> pd.DataFrame:
    """Return one row per image, method and class, image by image, with the class's pixels and its share of the image."""
    tables, numbers = [], np.arange(len(images)).repeat(len(titles))
    for (method, k), cells in read_parquet(confusion, CONFUSION).groupby(["method", "k"], sort=False, dropna=False):
        pixels = metrics.predicted_pixels(cells, np.arange(len(images)), len(titles))
        columns = {"class": list(titles) * len(images), "pixels": pixels.ravel(), "share": metrics.shares(pixels).ravel()}
        names = [str(path) for path in images for _ in titles]
        tables.append(pd.DataFrame({"image": names, "method": method, "k": k, **columns}, index=numbers))
    return pd.concat(tables).sort_index(kind="stable").astype({"k": "Int64"})
