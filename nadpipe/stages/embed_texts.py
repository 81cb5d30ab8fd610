"""Embed a set of texts: one unit vector a text, averaged over prompt templates."""

import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from nadpipe.artifacts import Stamp, create_zarr, read_images, read_parquet, write_parquet
from nadpipe.class_tables import read_classes
from nadpipe.classes import class_texts
from nadpipe.dictionaries import read_dictionary, read_templates
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint
from nadpipe.labels import label_texts
from nadpipe.models import embed_prompts, load_model
from nadpipe.progress import track

_BATCHES = 8  # at once: enough prompts that those of like length fill a batch


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
    """Write the embeddings of texts given as arguments or as a dictionary.

    Args:
        architecture: Model name of open_clip, hf-hub:org/name, or path of a model config JSON.
        output: Zarr store.
        pretrained: Pretrained tag or checkpoint file; none for hf-hub.
        texts: The texts.
        dictionary: Instead of --texts: a file with one text a line (empty lines do not count), wordfreq:<count> for the most
            frequent English words, or imagenet for its class names.
        classes: Or a data set's table of classes, whose names are the texts.
        background_names: Whether a class called background has its names among them.
        labels: Or a manifest, whose images' labels are the texts.
        templates: Prompts, each with {} where the text goes; or imagenet or imagenet-simple for open_clip's.
        batch_size: Prompts a step.
        device: auto, cpu, cuda, cuda:1, ….
        cache: Folder that embeddings are taken from and added to, by model, templates and code.
    """
    if [bool(texts), dictionary is not None, classes is not None, labels is not None].count(True) != 1:
        raise NadpipeError("give one of --texts, --dictionary, --classes and --labels")
    listed = list(texts) if dictionary is None else read_dictionary(dictionary)
    if classes is not None:
        _, listed = class_texts(read_classes(classes)[1], background_names)
    if labels is not None:
        listed = _labels(labels)
    twice = sorted(text for text, count in Counter(listed).items() if count > 1)
    if twice:
        source = dictionary or classes or "--texts"
        raise NadpipeError(f"{source}: {len(twice)} texts are listed twice, first {twice[0]!r}; list each once")
    prompts = read_templates(list(templates))
    model = load_model(architecture, pretrained, device)
    stamp = dataclasses.replace(model.stamp, code=code_fingerprint(__name__))
    width = model.config["embed_dim"]
    folder = None if cache is None else _cache_folder(cache, stamp, prompts)
    known = {} if folder is None else _read_cache(folder, stamp, width, listed)
    label = "embedding texts" if folder is None else f"embedding texts, {len(known)} of {len(listed)} from the cache"
    missing = [text for text in listed if text not in known]
    step = max(1, _BATCHES * batch_size // len(prompts))
    for start in track(range(0, len(missing), step), label, "batch"):
        some = missing[start : start + step]
        with torch.inference_mode():
            known |= zip(some, embed_prompts(model, some, prompts, batch_size).cpu().numpy(), strict=True)
    if folder is not None and missing:
        _add_to_cache(folder, stamp, {text: known[text] for text in missing}, output)
    sizes = {"text": len(listed), "embed": width}
    with create_zarr(output, "text", stamp, sizes, texts=listed, attributes={"templates": prompts}) as store:
        store.write("embedding", np.stack([known[text] for text in listed]))


def _labels(manifest: Path) -> list[str]:
    """The texts of a manifest's labels, each once."""
    found = sorted(read_images(manifest)["label"].dropna().unique())
    if len(found) < 2:
        raise NadpipeError(f"{manifest}: {len(found)} different labels; zero-shot classification needs two, from label_column")
    return list(dict.fromkeys(label_texts(found)))


def _cache_folder(cache: Path, stamp: Stamp, templates: list[str]) -> Path:
    """The cache's folder for all that an embedding depends on beside its text. Raises NadpipeError if it cannot be made."""
    key = json.dumps([stamp.model, stamp.code, templates])
    folder = cache / hashlib.sha256(key.encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    except OSError as error:
        raise NadpipeError(f"{cache}: no folder for a cache ({error})") from None
    return folder


def _read_cache(folder: Path, model: Stamp, width: int, texts: list[str]) -> dict[str, Float[np.ndarray, " embed"]]:
    """The embeddings of those of the texts that are in the cache. Raises NadpipeError for a file that is no whole one of it."""
    wanted, found = set(texts), {}
    for path in sorted(folder.glob("*.parquet")):
        try:
            table = read_parquet(path, "embedded texts", model)
            embedding = np.stack(table["embedding"].tolist())  # ValueError for rows of several lengths
            norm = np.linalg.norm(embedding, axis=1)
            if embedding.shape[1] != width or not np.allclose(norm, 1, atol=1e-4):  # false for NaN too
                raise ValueError(f"not of unit length in {width} dimensions")
        except (NadpipeError, ValueError, TypeError) as error:
            reason = " ".join(str(error).removeprefix(f"{path}: ").split("; ")[0].split())  # advice is for other artifacts
            raise NadpipeError(f"{path}: damaged or foreign file in the cache, delete it ({reason})") from None
        found |= {text: row for text, row in zip(table["text"], embedding, strict=True) if text in wanted}
    return found


def _add_to_cache(folder: Path, stamp: Stamp, embeddings: dict[str, Float[np.ndarray, " embed"]], output: Path) -> None:
    """One more file in the cache. Jobs never write the same one: its name is made of the texts and of the job's output."""
    name = hashlib.sha256(json.dumps([str(output.resolve()), *embeddings]).encode()).hexdigest()[:16]
    table = pd.DataFrame({"text": list(embeddings), "embedding": list(embeddings.values())})
    write_parquet(folder / f"{name}.parquet", "embedded texts", table, stamp)
