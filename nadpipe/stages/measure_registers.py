"""Measure the attention sink and the neurons behind it, from sampled views."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
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
    rank_by: Literal["signed", "absolute"] = "signed",
) -> None:
    """Write the attention of each token, and how much the sink's changes when each neuron is set to zero.

    Args:
        samples: Sampled views of all discovery shards.
        readout: Exported readout.
        output: Parquet table, one row per spatial token and one per neuron.
        sink_factor: A token is the sink if, in most images, its attention is more than this many times the median token's, and
            no neighbour's is larger.
        rank_by: Rank neurons by the mean decrease of the attention (signed), or by its mean absolute change (absolute).
    """
    pool, model = read_pool(readout)
    stores = open_shards(samples, SAMPLED_VIEWS, model)
    rows = [(shard, row) for shard, store in enumerate(stores) for row in range(store["image_id"].shape[0])]
    per_image, activation_mean = [], Mean()
    for z in track(_views(stores, rows), "measuring attention", "image", len(rows)):
        per_image.append(pooling.attention(pooling.tokens(z[None], pool), pool).mean(1)[:, 1:])
        activation_mean.add(z[None])
    activation = activation_mean.result().float()
    attention = torch.cat(per_image).double().mean(0).float()
    shares = registers.sink_shares(torch.cat(per_image), sink_factor)
    sink = registers.find_sink(shares)
    token = int(attention.argmax()) if sink is None else sink
    drop, magnitude, change = Mean(), Mean(), Mean()
    for z in track(_views(stores, rows), "zeroing neurons", "image", len(rows)):
        zeroed = registers.zero_neurons(z, token, pool)
        drop.add(zeroed.attention_drop[None])
        magnitude.add(zeroed.attention_drop[None].abs())
        change.add(zeroed.embedding_change[None])
    tokens = pd.DataFrame({"kind": "token", "index": range(len(attention)), "attention": attention.numpy()})
    tokens["relative_attention"] = tokens["attention"] / tokens["attention"].median()
    tokens["sink_share"] = shares.numpy()
    tokens["sink"] = tokens["index"] == (-1 if sink is None else sink)
    tokens["rank"] = tokens["attention"].rank(method="first", ascending=False)
    neurons = pd.DataFrame({"kind": "neuron", "index": range(pool.neurons), "token": token})
    neurons["attention_drop"] = drop.result().float().numpy()
    neurons["attention_change"] = magnitude.result().float().numpy()
    neurons["embedding_change"] = change.result().float().numpy()
    neurons["activation"] = activation[token].numpy()
    neurons["elsewhere"] = ((activation.sum(0) - activation[token]) / max(1, len(activation) - 1)).numpy()
    ranking = {"signed": "attention_drop", "absolute": "attention_change"}[rank_by]
    neurons["rank"] = neurons[ranking].rank(method="first", ascending=False)
    table = pd.concat([tokens, neurons], ignore_index=True).assign(images=len(rows))
    write_parquet(output, REGISTERS, table, model.made_by(__name__))


def _views(stores: Sequence[ZarrStore], rows: Sequence[tuple[int, int]]) -> Iterator[Float[Tensor, "spatial neuron"]]:
    """Yield the activations of some views."""
    for shard, row in rows:
        yield stores[shard].tensor("activation", row).float()
