"""Pair moments of all shards, merged."""

from collections.abc import Sequence

from nadpipe.circuit.accumulators import Extremes, Mean
from nadpipe.errors import NadpipeError
from nadpipe.store.arrays import ZarrStore


def merged_moments(stores: Sequence[ZarrStore]) -> Extremes:
    """Merge the pair moments of all shards. Raises NadpipeError for shards that kept different numbers of images."""
    merged = Extremes(stores[0].attributes["top_images"])
    for store in stores:
        if store.attributes["top_images"] != merged.keep:
            difference = f"top_images is {store.attributes['top_images']}, in {stores[0].path} {merged.keep}"
            raise NadpipeError(f"{store.path}: {difference}; accumulate all shards with the same number")
        shard = Extremes(merged.keep)
        shard.mean = Mean(store.attributes["views"], store.tensor("sum"))
        shard.square = Mean(store.attributes["views"], store.tensor("square_sum"))
        shard.extreme = store.tensor("extreme")
        merged.merge(shard)
    return merged
