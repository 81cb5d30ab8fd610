"""Measure the attention sink and the neurons behind it, from cached features alone."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from nadpipe import attnpool, plots, registers
from nadpipe.artifacts import whole, write_parquet
from nadpipe.directions import Mean
from nadpipe.fingerprint import code_fingerprint
from nadpipe.inputs import open_shards, read_pool
from nadpipe.progress import track


def measure_registers(
    features: tuple[Path, ...],
    attnpool_store: Path,
    output: Path,
    output_plot: Path,
    images: int = 200,
    sink_factor: float = 3.0,
) -> None:
    """Write the attention that each token draws, and by how much it falls when each neuron is zeroed, with a plot.

    Args:
        features: Features of all discovery shards.
        attnpool_store: Exported attention pool.
        output: Parquet table, one row a spatial token and one a neuron.
        output_plot: PNG.
        images: Views to measure on, evenly spread over the data set.
        sink_factor: A token is a sink when its mean attention is more than this many times the median token's.
    """
    pool, model = read_pool(attnpool_store)
    stores = open_shards(features, "features", model)
    counts = [store["activation"].shape[0] for store in stores]
    chosen = np.unique(np.linspace(0, sum(counts) - 1, min(images, sum(counts))).round().astype(int))
    places = [
        (int(shard), int(at - sum(counts[:shard])))
        for at in chosen
        for shard in [np.searchsorted(np.cumsum(counts), at, "right")]
    ]

    def view(place: tuple[int, int]) -> torch.Tensor:
        shard, at = place
        return torch.from_numpy(stores[shard]["activation"][at]).float()

    attention, activation = Mean(), Mean()
    for place in track(places, "measuring attention", "image"):
        z = view(place)[None]
        attention.add(attnpool.attention(attnpool.tokens(z, pool), pool))
        activation.add(z)
    share, mean = attention.value().float(), activation.value().float()
    token, sink = int(share.mean(0)[1:].argmax()), registers.find_sink(share, sink_factor)
    drop, change = Mean(), Mean()
    for place in track(places, "zeroing neurons", "image"):
        zeroed = registers.zero_neurons(view(place), token, pool)
        drop.add(zeroed.attention_drop[None])
        change.add(zeroed.embedding_change[None])
    by_token = share.mean(0)[1:]
    tokens = pd.DataFrame({"kind": "token", "index": range(len(by_token)), "attention": by_token})
    tokens["relative_attention"] = tokens["attention"] / tokens["attention"].median()
    tokens["sink"] = tokens["index"] == (-1 if sink is None else sink)
    tokens["rank"] = tokens["attention"].rank(method="first", ascending=False)
    elsewhere = (mean.sum(0) - mean[token]) / max(1, len(mean) - 1)
    neurons = pd.DataFrame({"kind": "neuron", "index": range(pool.neurons), "token": token})
    neurons["attention_drop"], neurons["embedding_change"] = drop.value().float(), change.value().float()
    neurons["activation"], neurons["elsewhere"] = mean[token], elsewhere
    neurons["rank"] = neurons["attention_drop"].rank(method="first", ascending=False)
    stamp = dataclasses.replace(model, code=code_fingerprint(__name__))
    write_parquet(output, "registers", pd.concat([tokens, neurons], ignore_index=True).assign(images=len(places)), stamp)
    with whole(output_plot) as partial:
        grid = by_token.unflatten(0, (pool.grid, pool.grid)).numpy()
        plots.save(plots.register_plot(grid, neurons, sink), partial)
