"""Embed a set of texts: one unit vector a text, averaged over prompt templates."""

import dataclasses
from collections import Counter
from pathlib import Path

import torch

from nadpipe.artifacts import create_zarr
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint
from nadpipe.models import embed_prompts, load_model
from nadpipe.progress import track


def embed_texts(
    architecture: str,
    output: Path,
    pretrained: str | None = None,
    texts: tuple[str, ...] = (),
    file: Path | None = None,
    templates: tuple[str, ...] = ("{}",),
    batch_size: int = 256,
    device: str = "auto",
) -> None:
    """Write the embeddings of texts given as arguments or as lines of a file.

    Args:
        architecture: Model name of open_clip, hf-hub:org/name, or path of a model config JSON.
        output: Zarr store.
        pretrained: Pretrained tag or checkpoint file; none for hf-hub.
        texts: The texts.
        file: Text file, one text a line, instead of --texts; empty lines do not count.
        templates: Prompts, each with {} where the text goes.
        batch_size: Prompts a step.
        device: auto, cpu, cuda, cuda:1, ….
    """
    if bool(texts) == (file is not None):
        raise NadpipeError("give either --texts or --file")
    listed = list(texts) if file is None else read_lines(file)
    twice = sorted(text for text, count in Counter(listed).items() if count > 1)
    if twice:
        raise NadpipeError(f"{file or '--texts'}: {len(twice)} texts are listed twice, first {twice[0]!r}; list each once")
    model = load_model(architecture, pretrained, device)
    stamp = dataclasses.replace(model.stamp, code=code_fingerprint(__name__))
    sizes = {"text": len(listed), "embed": model.config["embed_dim"]}
    step = max(1, batch_size // len(templates))
    with create_zarr(output, "text", stamp, sizes, texts=listed, attributes={"templates": list(templates)}) as store:
        for start in track(range(0, len(listed), step), "embedding texts", "batch"):
            with torch.inference_mode():
                store.append(embedding=embed_prompts(model, listed[start : start + step], templates))


def read_lines(file: Path) -> list[str]:
    """Lines of a text file, stripped, without the empty ones."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise NadpipeError(f"{file}: not a readable UTF-8 text file ({error})") from None
    texts = [line for line in lines if line]
    if not texts:
        raise NadpipeError(f"{file}: no texts; write one a line")
    return texts
