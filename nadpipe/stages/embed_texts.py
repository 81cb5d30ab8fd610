"""Embed a set of texts: one vector of unit length per text, averaged over prompt templates."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from nadpipe.data.class_tables import read_classes
from nadpipe.data.classes import class_texts
from nadpipe.data.dictionaries import read_dictionary, read_templates
from nadpipe.data.labels import attribute_columns, label_texts
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint
from nadpipe.progress import track
from nadpipe.store.arrays import create_zarr
from nadpipe.store.kinds.texts import CACHED_TEXTS, TEXT
from nadpipe.store.manifest import read_images
from nadpipe.store.stamp import Stamp
from nadpipe.store.tables import read_parquet, write_parquet
from nadpipe.towers.model import load_model
from nadpipe.towers.text import embed_prompts, text_tower

_BATCHES = 8  # batches per call of the tower, which sorts prompts by length: enough to make lengths within a batch similar


def embed_texts(
    architecture: str,
    output: Path,
    pretrained: str | None = None,
    texts: tuple[str, ...] = (),
    dictionary: str | None = None,
    classes: Path | None = None,
    background_names: bool = True,
    labels: Path | None = None,
    templates: tuple[str, ...] = ("{}",),
    batch_size: int = 256,
    device: str = "auto",
    cache: Path | None = None,
) -> None:
    """Write the embeddings of texts from one source: arguments, a dictionary, a data set's classes or its labels.

    Args:
        architecture: Model name of open_clip, hf-hub:org/name, or path of a model config JSON.
        output: Zarr store.
        pretrained: Pretrained tag or checkpoint file; none for hf-hub.
        texts: Texts to embed.
        dictionary: A file with one text per line (empty lines are ignored), wordfreq:<count> for the most frequent English
            words, or imagenet for its class names.
        classes: Table of classes, whose names are embedded.
        background_names: Embed the names of a class called background, too.
        labels: Manifest, whose image labels and names of 0/1 columns are embedded.
        templates: Prompts with {} in place of the text; or imagenet or imagenet-simple for open_clip's sets.
        batch_size: Prompts per step.
        device: auto, cpu, cuda, cuda:1, ….
        cache: Folder to read embeddings from and to add new ones to. Its entries depend on model, templates and code.
    """
    listed = _read_texts(texts, dictionary, classes, background_names, labels)
    prompts = read_templates(list(templates))
    model = load_model(architecture, pretrained, device)
    tower = text_tower(model)
    stamp = dataclasses.replace(model.stamp, code=code_fingerprint(__name__))
    width = model.config["embed_dim"]
    folder = None if cache is None else _cache_folder(cache, stamp, prompts)
    embeddings = {} if folder is None else _read_cache(folder, stamp, width, listed)
    label = "embedding texts" if folder is None else f"embedding texts, {len(embeddings)} of {len(listed)} from the cache"
    missing = [text for text in listed if text not in embeddings]
    step = max(1, _BATCHES * batch_size // len(prompts))
    for start in track(range(0, len(missing), step), label, "batch"):
        batch = missing[start : start + step]
        with torch.inference_mode():
            embeddings |= zip(batch, embed_prompts(tower, batch, prompts, batch_size).cpu().numpy(), strict=True)
    if folder is not None and missing:
        _add_to_cache(folder, stamp, {text: embeddings[text] for text in missing}, output)
    sizes = {"text": len(listed), "embed": width}
    with create_zarr(output, TEXT, stamp, sizes, texts=listed, attributes={"templates": prompts}) as store:
        store.write("embedding", np.stack([embeddings[text] for text in listed]))


def _read_texts(
    texts: tuple[str, ...], dictionary: str | None, classes: Path | None, background_names: bool, labels: Path | None
) -> list[str]:
    """Return the texts of the only source that is given. Raises NadpipeError for several sources or repeated texts."""
    if [bool(texts), dictionary is not None, classes is not None, labels is not None].count(True) != 1:
        raise NadpipeError("texts: not exactly one source; give one of --texts, --dictionary, --classes and --labels")
    listed = list(texts)
    if dictionary is not None:
        listed = read_dictionary(dictionary)
    elif classes is not None:
        _, listed = class_texts(read_classes(classes)[1], background_names)
    elif labels is not None:
        listed = _read_labels(labels)
    repeated = sorted(text for text, count in Counter(listed).items() if count > 1)
    if repeated:
        source = dictionary or classes or "--texts"
        raise NadpipeError(f"{source}: {len(repeated)} texts are listed twice, first {repeated[0]!r}; list each once")
    return listed


def _read_labels(manifest: Path) -> list[str]:
    """Return the texts of a manifest's labels, then of its 0/1 columns, without repetition.

    Raises NadpipeError if it has fewer than two labels.
    """
    images = read_images(manifest)
    labels = dict.fromkeys(label_texts(sorted(images["label"].dropna().unique())))
    if len(labels) < 2:
        raise NadpipeError(
            f"{manifest}: {len(labels)} different labels; zero-shot classification needs at least two, set label_column"
        )
    return list(dict.fromkeys([*labels, *label_texts(attribute_columns(images))]))


def _cache_folder(cache: Path, stamp: Stamp, templates: list[str]) -> Path:
    """Create and return the cache's folder for a model, code and templates. Raises NadpipeError if that fails."""
    key = json.dumps([stamp.model, stamp.code, templates])
    folder = cache / hashlib.sha256(key.encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)  # fails before the texts are embedded, not after
    except OSError as error:
        raise NadpipeError(f"{cache}: cannot create the cache folder ({error}); set text.cache to another folder") from None
    return folder


def _read_cache(folder: Path, model: Stamp, width: int, texts: list[str]) -> dict[str, Float[np.ndarray, " embed"]]:
    """Return the cached embeddings of texts by text. Raises NadpipeError if a file is damaged or not from the cache."""
    requested = set(texts)
    embeddings: dict[str, Float[np.ndarray, " embed"]] = {}
    for path in sorted(folder.glob("*.parquet")):
        try:
            table = read_parquet(path, CACHED_TEXTS, model)
            rows = np.stack(table["embedding"].tolist())  # ValueError if lengths differ
            if table["key"].tolist() != _keys(folder, table["text"], rows):
                raise ValueError("embeddings of other texts, models or templates")
            norm = np.linalg.norm(rows, axis=1)
            if rows.shape[1] != width or not np.allclose(norm, 1, atol=1e-4):  # not close for NaN either
                raise ValueError(f"not vectors of unit length with {width} entries")
        except (NadpipeError, ValueError, TypeError) as error:
            # the advice in read_parquet's messages is for artifacts that a rule can make again
            reason = " ".join(str(error).removeprefix(f"{path}: ").split("; ")[0].split())
            raise NadpipeError(f"{path}: damaged or foreign file in the cache ({reason}); delete it") from None
        embeddings |= {text: row for text, row in zip(table["text"], rows, strict=True) if text in requested}
    return embeddings


def _keys(folder: Path, texts: Iterable[str], embeddings: Float[np.ndarray, "text embed"]) -> list[str]:
    """Return a checksum per cached text, which ties the embedding to the text and to the folder's model and templates."""
    keys = []
    for text, embedding in zip(texts, embeddings, strict=True):
        entry = json.dumps([folder.name, str(text)]).encode() + embedding.astype("<f4").tobytes()
        keys.append(hashlib.sha256(entry).hexdigest()[:32])
    return keys


def _add_to_cache(folder: Path, stamp: Stamp, embeddings: dict[str, Float[np.ndarray, " embed"]], output: Path) -> None:
    """Add a file to the cache. Its name depends on the texts and the output, so that no two jobs write the same file."""
    name = hashlib.sha256(json.dumps([str(output.resolve()), *embeddings]).encode()).hexdigest()[:16]
    rows = np.stack(list(embeddings.values()))
    table = pd.DataFrame({"key": _keys(folder, embeddings, rows), "text": list(embeddings), "embedding": list(rows)})
    write_parquet(folder / f"{name}.parquet", CACHED_TEXTS, table, stamp)
