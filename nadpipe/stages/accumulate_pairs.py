"""Accumulate the moments and extremes of one shard's coefficients, to which the directions of pairs are fitted."""

import sys
from pathlib import Path

from nadpipe.circuit.accumulators import Extremes
from nadpipe.circuit.directions import count_top_images, warn_of_top_images
from nadpipe.progress import track
from nadpipe.store.arrays import create_zarr, open_zarr
from nadpipe.store.kinds.features import CONTRIBUTIONS, PAIR_MOMENTS
from nadpipe.store.manifest import read_images
from nadpipe.store.shards import blocks, count_blocks


def accumulate_pairs(
    images: Path, contributions: Path, output: Path, top_share: float = 0.05, top_images: int | None = None
) -> None:
    """Write the sum, the sum of squares and the extreme coefficients of every pair, in one pass.

    Args:
        images: Manifest of the data set. The number of its images, not of the shard's, decides the number of top images.
        contributions: Contributions of the shard.
        output: Zarr store.
        top_share: Share of the images with the largest norm, to which a direction is fitted; at least 10 and at most 50 images.
        top_images: Number of these images, instead of the share. Twice as many coefficients are kept.
    """
    count = len(read_images(images))
    top = count_top_images(count, top_share, top_images)
    warning = warn_of_top_images(count, top)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    source = open_zarr(contributions, CONTRIBUTIONS)
    extremes = Extremes(top)
    total = count_blocks([source], "coefficient")
    for (coefficient,) in track(blocks([source], "coefficient"), "accumulating", "block", total):
        extremes.add(coefficient.float())
    assert extremes.extreme is not None
    head, neuron, kept = extremes.extreme.shape
    attributes = {name: source.attributes[name] for name in ("shard", "shards", "images")}
    attributes |= {"views": extremes.mean.count, "top_images": top}
    dtype = {"sum": "float64", "square_sum": "float64"}
    sizes = {"head": head, "neuron": neuron, "kept": kept}
    with create_zarr(output, PAIR_MOMENTS, source.stamp.made_by(__name__), sizes, dtype, attributes=attributes) as store:
        store.write("sum", extremes.mean.total)
        store.write("square_sum", extremes.square.total)
        store.write("extreme", extremes.extreme)
