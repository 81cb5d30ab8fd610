"""Measure the attention sink and the neurons behind it, from sampled views."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from nadpipe.circuit import attention as pooling
from nadpipe.circuit import registers
from nadpipe.circuit.accumulators import Mean
from nadpipe.progress import track
from nadpipe.store.arrays import ZarrStore
from nadpipe.store.kinds.features import SAMPLED_VIEWS
from nadpipe.store.kinds.segmentation import REGISTERS
from nadpipe.store.pool import read_pool
from nadpipe.store.shards import open_shards
from nadpipe.store.tables import write_parquet


def measure_registers(
    samples: tuple[Path, ...],
    readout: Path,
    output: Path,
    sink_factor: float = 3.0,
) -> None:
    """Write the attention of each token, and how much the largest decreases when each neuron is set to zero.

    Args:
        samples: Sampled views of all discovery shards.
        readout: Exported readout.
        output: Parquet table, one row per spatial token and one per neuron.
        sink_factor: A token is the sink if its mean attention is more than this many times the median token's.
    """
    pool, model = read_pool(readout)
    stores = open_shards(samples, SAMPLED_VIEWS, model)
    rows = [(shard, row) for shard, store in enumerate(stores) for row in range(store["image_id"].shape[0])]
    attention_mean, activation_mean = Mean(), Mean()
    for z in track(_views(stores, rows), "measuring attention", "image", len(rows)):
        attention_mean.add(pooling.attention(pooling.tokens(z[None], pool), pool))
        activation_mean.add(z[None])
    attention, activation = attention_mean.result().float(), activation_mean.result().float()
    token_attention = attention.mean(0)[1:]
    strongest, sink = int(token_attention.argmax()), registers.find_sink(attention, sink_factor)
    drop, change = Mean(), Mean()
    for z in track(_views(stores, rows), "zeroing neurons", "image", len(rows)):
        zeroed = registers.zero_neurons(z, strongest, pool)
        drop.add(zeroed.attention_drop[None])
        change.add(zeroed.embedding_change[None])
    tokens = pd.DataFrame({"kind": "token", "index": range(len(token_attention)), "attention": token_attention.numpy()})
    tokens["relative_attention"] = tokens["attention"] / tokens["attention"].median()
    tokens["sink"] = tokens["index"] == (-1 if sink is None else sink)
    tokens["rank"] = tokens["attention"].rank(method="first", ascending=False)
    neurons = pd.DataFrame({"kind": "neuron", "index": range(pool.neurons), "token": strongest})
    neurons["attention_drop"] = drop.result().float().numpy()
    neurons["embedding_change"] = change.result().float().numpy()
    neurons["activation"] = activation[strongest].numpy()
    neurons["elsewhere"] = ((activation.sum(0) - activation[strongest]) / max(1, len(activation) - 1)).numpy()
    neurons["rank"] = neurons["attention_drop"].rank(method="first", ascending=False)
    table = pd.concat([tokens, neurons], ignore_index=True).assign(images=len(rows))
    write_parquet(output, REGISTERS, table, model.made_by(__name__))


def _views(stores: Sequence[ZarrStore], rows: Sequence[tuple[int, int]]) -> Iterator[Float[Tensor, "spatial neuron"]]:
    """Yield the activations of some views."""
    for shard, row in rows:
        yield stores[shard].tensor("activation", row).float()
