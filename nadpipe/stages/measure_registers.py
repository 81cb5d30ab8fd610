"""Measure the attention sink and the neurons behind it, from sampled views."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from nadpipe.circuit import attention as pooling
from nadpipe.circuit import registers
from nadpipe.circuit.accumulators import Mean
from nadpipe.circuit.attention import AttentionPool
from nadpipe.progress import track
from nadpipe.store.arrays import ZarrStore
from nadpipe.store.kinds.features import SAMPLED_VIEWS
from nadpipe.store.kinds.segmentation import REGISTERS
from nadpipe.store.pool import read_weights
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

    If attention is recorded, it does not follow from the activations, so the effect of a neuron is unknown. Neurons are then
    ranked by how much more active they are at the sink than elsewhere (Jiang et al., arXiv 2506.08010).

    Args:
        samples: Sampled views of all discovery shards.
        readout: Exported readout.
        output: Parquet table, one row per spatial token and one per neuron.
        sink_factor: A token is the sink if, in most images, its attention is more than this many times the median token's, and
            no neighbour's is larger.
        rank_by: Rank neurons by the mean decrease of the attention (signed), or by its mean absolute change (absolute).
    """
    weights = read_weights(readout)
    pool, model = weights.pool, weights.model
    stores = open_shards(samples, SAMPLED_VIEWS, model)
    rows = [(shard, row) for shard, store in enumerate(stores) for row in range(store["image_id"].shape[0])]
    per_image, activation_mean = [], Mean()
    for shard, row in track(rows, "measuring attention", "image", len(rows)):
        z = _activation(stores, shard, row)
        if pool is None:
            shares_of_heads = stores[shard].tensor("attention", row).float()[None]
        else:
            shares_of_heads = pooling.attention(pooling.tokens(z[None], pool), pool)
        per_image.append(shares_of_heads.mean(1)[:, -len(z) :])
        activation_mean.add(z[None])
    activation = activation_mean.result().float()
    attention = torch.cat(per_image).double().mean(0).float()
    shares = registers.sink_shares(torch.cat(per_image), sink_factor)
    sink = registers.find_sink(shares)
    token = int(attention.argmax()) if sink is None else sink
    tokens = pd.DataFrame({"kind": "token", "index": range(len(attention)), "attention": attention.numpy()})
    tokens["relative_attention"] = tokens["attention"] / tokens["attention"].median()
    tokens["sink_share"] = shares.numpy()
    tokens["sink"] = tokens["index"] == (-1 if sink is None else sink)
    tokens["rank"] = tokens["attention"].rank(method="first", ascending=False)
    neurons = pd.DataFrame({"kind": "neuron", "index": range(weights.readout.neurons), "token": token})
    for name, effect in _zero_neurons(stores, rows, token, pool).items():
        neurons[name] = effect.numpy()
    neurons["activation"] = activation[token].numpy()
    neurons["elsewhere"] = ((activation.sum(0) - activation[token]) / max(1, len(activation) - 1)).numpy()
    ranking = neurons[{"signed": "attention_drop", "absolute": "attention_change"}[rank_by]]
    if pool is None:
        excess = neurons["activation"] - neurons["elsewhere"]
        ranking = excess if rank_by == "signed" else excess.abs()
    neurons["rank"] = ranking.rank(method="first", ascending=False)
    table = pd.concat([tokens, neurons], ignore_index=True).assign(images=len(rows))
    write_parquet(output, REGISTERS, table, model.made_by(__name__))


def _zero_neurons(
    stores: Sequence[ZarrStore], rows: Sequence[tuple[int, int]], token: int, pool: AttentionPool | None
) -> dict[str, Float[Tensor, " neuron"]]:
    """Compute the mean effects of setting each neuron to zero, by column; NaN without a pool."""
    effects = {name: Mean() for name in ("attention_drop", "attention_change", "embedding_change")}
    if pool is None:
        unknown = torch.full(stores[0]["activation"].shape[2:], torch.nan)
        return dict.fromkeys(effects, unknown)
    for shard, row in track(rows, "zeroing neurons", "image", len(rows)):
        zeroed = registers.zero_neurons(_activation(stores, shard, row), token, pool)
        effects["attention_drop"].add(zeroed.attention_drop[None])
        effects["attention_change"].add(zeroed.attention_drop[None].abs())
        effects["embedding_change"].add(zeroed.embedding_change[None])
    return {name: mean.result().float() for name, mean in effects.items()}


def _activation(stores: Sequence[ZarrStore], shard: int, row: int) -> Float[Tensor, "spatial neuron"]:
    """Read the activations of one view."""
    return stores[shard].tensor("activation", row).float()
