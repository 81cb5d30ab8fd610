"""Measure the share of the embedding that pairs and every other path carry."""

from pathlib import Path

import pandas as pd
import torch

from nadpipe.circuit.ledger import Ledger, shares
from nadpipe.progress import track
from nadpipe.store.kinds.analyses import LEDGER
from nadpipe.store.kinds.features import SHARD_MEANS
from nadpipe.store.shards import open_shards
from nadpipe.store.tables import write_csv


def measure_ledger(means: tuple[Path, ...], output: Path) -> None:
    """Write each part's share of the energy and of the variance of the discovery images' embeddings.

    Args:
        means: Means of all shards.
        output: CSV table, one row per part. The parts sum to the embedding.
    """
    stores = open_shards(means, SHARD_MEANS)
    views = torch.tensor([store.attributes["views"] for store in stores], dtype=torch.float64)
    merged = {}
    for name in track(("part_mean", "part_product"), "averaging", "array"):
        values = torch.stack([store.tensor(name) for store in stores])
        merged[name] = torch.tensordot(views / views.sum(), values.double(), dims=1)
    energy, variance = shares(Ledger(merged["part_mean"], merged["part_product"]))
    parts = pd.DataFrame(stores[0].attributes["parts"], columns=["part", "layer"]).astype({"layer": "Int64"})
    write_csv(output, LEDGER, parts.assign(energy=energy.numpy(), variance=variance.numpy(), images=int(views.sum())))
