"""Sum up one shard's coefficients per pair: moments and extremes, all that the directions of pairs are fitted to."""

import dataclasses
from pathlib import Path

from nadpipe.artifacts import create_zarr, open_zarr
from nadpipe.directions import Extremes
from nadpipe.fingerprint import code_fingerprint
from nadpipe.inputs import blocks, count_blocks, read_pool
from nadpipe.progress import track


def accumulate_pairs(contributions: Path, attnpool_store: Path, output: Path, top_images: int = 50) -> None:
    """Write per pair the mean, the second moment and the extreme coefficients over a shard's views, in one pass.

    Args:
        contributions: Contributions of the shard.
        attnpool_store: Exported attention pool.
        output: Zarr store.
        top_images: Images of largest norm that a direction is fitted to; twice as many coefficients are kept.
    """
    pool, model = read_pool(attnpool_store)
    store = open_zarr(contributions, "contributions", model)
    extremes = Extremes(top_images)
    for (coefficient,) in track(blocks([store], "coefficient"), "accumulating", "block", count_blocks([store], "coefficient")):
        extremes.add(coefficient.float())
    sizes = {"head": pool.heads, "neuron": pool.neurons, "kept": extremes.extreme.shape[2]}
    stamp = dataclasses.replace(model, code=code_fingerprint(__name__))
    about = {name: store.attributes[name] for name in ("shard", "shards", "images")}
    about |= {"views": extremes.mean.count, "top_images": top_images}
    dtype = {"sum": "float64", "square_sum": "float64"}
    with create_zarr(output, "pair moments", stamp, sizes, dtype, attributes=about) as made:
        made.write("sum", extremes.mean.total)
        made.write("square_sum", extremes.square.total)
        made.write("extreme", extremes.extreme)
