"""Choose the pairs that stand for each text of a set."""

import dataclasses
from pathlib import Path
from typing import Literal

import torch

from nadpipe import texts
from nadpipe.artifacts import create_zarr, open_zarr
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint
from nadpipe.inputs import read_pool
from nadpipe.progress import track


def select_pairs(
    text: Path,
    directions: Path,
    attnpool_store: Path,
    output: Path,
    k: int,
    select_by: Literal["direction", "write"] = "direction",
    reference: Path | None = None,
) -> None:
    """Write the k pairs with the largest cosine to each centred text, and the centred texts.

    Args:
        text: Embedded texts.
        directions: Pair directions.
        attnpool_store: Exported attention pool.
        output: Zarr store.
        k: Pairs per text.
        select_by: Cosine to the signed direction, or to the write vector (the direction without its sign).
        reference: Embedded texts whose mean the texts are centred with; their own unless given.
    """
    pool, model = read_pool(attnpool_store)
    store = open_zarr(directions, "pair directions", model)
    words = open_zarr(text, "text", model)
    embedding = torch.from_numpy(words["embedding"][:])
    around = embedding if reference is None else torch.from_numpy(open_zarr(reference, "text", model)["embedding"][:])
    if k > pool.heads * pool.neurons:
        raise NadpipeError(
            f"k is {k}, the model has {pool.heads * pool.neurons} pairs ({pool.heads} heads × {pool.neurons} neurons)"
        )
    query = texts.centre(embedding, around)
    if not (query.norm(dim=1) > 0).all():
        raise NadpipeError(f"{text}: a text equals the mean of the set it is centred with; give at least two different texts")
    top = texts.TopPairs(k)
    for head in track(range(pool.heads), "selecting pairs", "head"):
        direction = torch.from_numpy(store["direction"][head])
        if select_by == "write":
            direction = direction * torch.from_numpy(store["sign"][head])[:, None]
        top.add(head, direction, query)
    chosen = top.value()
    sizes = {"text": len(query), "rank": k, "embed": query.shape[1]}
    stamp = dataclasses.replace(model, code=code_fingerprint(__name__))
    with create_zarr(output, "selection", stamp, sizes, texts=words.texts(), attributes={"select_by": select_by}) as made:
        for name, values in {
            "head": chosen.head,
            "neuron": chosen.neuron,
            "cosine": chosen.cosine,
            "query": query,
        }.items():
            made.write(name, values)
