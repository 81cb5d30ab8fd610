"""Accumulate the moments and extremes of one shard's coefficients, to which the directions of pairs are fitted."""

from pathlib import Path

from nadpipe.circuit.accumulators import Extremes
from nadpipe.progress import track
from nadpipe.store.arrays import create_zarr, open_zarr
from nadpipe.store.kinds.features import CONTRIBUTIONS, PAIR_MOMENTS
from nadpipe.store.shards import blocks, count_blocks


def accumulate_pairs(contributions: Path, output: Path, top_images: int = 50) -> None:
    """Write the sum, the sum of squares and the extreme coefficients of every pair, in one pass.

    Args:
        contributions: Contributions of the shard.
        output: Zarr store.
        top_images: Number of images with the largest norm, to which a direction is fitted. Twice as many coefficients are kept.
    """
    source = open_zarr(contributions, CONTRIBUTIONS)
    extremes = Extremes(top_images)
    total = count_blocks([source], "coefficient")
    for (coefficient,) in track(blocks([source], "coefficient"), "accumulating", "block", total):
        extremes.add(coefficient.float())
    assert extremes.extreme is not None
    head, neuron, kept = extremes.extreme.shape
    attributes = {name: source.attributes[name] for name in ("shard", "shards", "images")}
    attributes |= {"views": extremes.mean.count, "top_images": top_images}
    dtype = {"sum": "float64", "square_sum": "float64"}
    sizes = {"head": head, "neuron": neuron, "kept": kept}
    with create_zarr(output, PAIR_MOMENTS, source.stamp.made_by(__name__), sizes, dtype, attributes=attributes) as store:
        store.write("sum", extremes.mean.total)
        store.write("square_sum", extremes.square.total)
        store.write("extreme", extremes.extreme)
