"""Select the pairs that stand for each text of a set."""

from pathlib import Path
from typing import Literal

from nadpipe.circuit.accumulators import TopPairs
from nadpipe.circuit.directions import pair_directions
from nadpipe.circuit.naming import centre, normalise
from nadpipe.circuit.readout import count_pairs, write_vectors
from nadpipe.errors import NadpipeError
from nadpipe.progress import track
from nadpipe.store.arrays import create_zarr, open_zarr
from nadpipe.store.kinds.texts import TEXT
from nadpipe.store.kinds.units import SELECTION
from nadpipe.store.pairs import open_pair_directions
from nadpipe.store.readout import read_readout


def select_pairs(
    text: Path,
    directions: Path,
    readout: Path,
    output: Path,
    k: int | float,
    select_by: Literal["direction", "write"] = "direction",
    reference: Path | None = None,
) -> None:
    """Write the k pairs with the largest cosine to each text, and the texts as they were compared.

    Args:
        text: Embedded texts.
        directions: Pair directions.
        readout: Exported readout.
        output: Zarr store.
        k: Number of pairs per text, or a share of all pairs below 1.
        select_by: Cosine to the signed direction, or to the write vector (the direction without its sign).
        reference: Embedded texts whose mean is subtracted from the texts. By default, the texts are not centred.
    """
    weights, model = read_readout(readout)
    pairs = open_pair_directions(directions, weights, model)
    text_store = open_zarr(text, TEXT, model)
    embedding = text_store.tensor("embedding")
    count = count_pairs(k, weights)
    if reference is None:
        query = normalise(embedding)
    else:
        query = centre(embedding, open_zarr(reference, TEXT, model).tensor("embedding"))
    if not (query.norm(dim=1) > 0).all():
        raise NadpipeError(f"{text}: a text equals the mean of its reference set; give at least two different texts")
    top = TopPairs(count)
    for head in track(range(weights.heads), "selecting pairs", "head"):
        by_write = select_by == "write"
        direction = normalise(write_vectors(weights, head)) if by_write else pair_directions(weights, head, pairs.sign(head))
        top.add(head, direction, query)
    selection = top.result()
    sizes = {"text": len(query), "rank": count, "embed": query.shape[1]}
    attributes = {"select_by": select_by, "centred": reference is not None}
    stamp = model.made_by(__name__)
    with create_zarr(output, SELECTION, stamp, sizes, texts=text_store.texts(), attributes=attributes) as store:
        for name in ("head", "neuron", "cosine"):
            store.write(name, getattr(selection, name))
        store.write("query", query)
