"""Average the attention and the values of the heads over the discovery images, from the means of all shards."""

from pathlib import Path

import numpy as np

from nadpipe.progress import track
from nadpipe.store.arrays import create_zarr
from nadpipe.store.kinds.features import HEAD_MEANS, SHARD_MEANS
from nadpipe.store.shards import open_shards


def average_heads(means: tuple[Path, ...], output: Path) -> None:
    """Write the heads' mean attention and mean value over all views.

    Args:
        means: Means of all shards.
        output: Zarr store.
    """
    stores = open_shards(means, SHARD_MEANS)
    views = [store.attributes["views"] for store in stores]
    head, token, width = stores[0]["value_mean"].shape
    sizes = {"head": head, "token": token, "width": width}
    stamp, first = stores[0].stamp.made_by(__name__), {"token": int(stores[0].read("token")[0])}
    with create_zarr(output, HEAD_MEANS, stamp, sizes, attributes={"views": sum(views)}, first=first) as store:
        for name in track(HEAD_MEANS.arrays, "averaging", "array"):
            mean = np.average(np.stack([shard.read(name) for shard in stores]), axis=0, weights=views)
            store.write(name, mean.astype(np.float32))
