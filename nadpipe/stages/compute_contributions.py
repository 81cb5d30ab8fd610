"""Decompose the embeddings of one shard exactly: one coefficient per view and pair."""

from pathlib import Path
from typing import Literal

import torch

from nadpipe.circuit import attention as pooling
from nadpipe.circuit import readout as circuit
from nadpipe.circuit.accumulators import Mean
from nadpipe.errors import NadpipeError
from nadpipe.progress import track
from nadpipe.store.arrays import create_zarr, open_zarr
from nadpipe.store.kinds.features import CONTRIBUTIONS, FEATURES, SHARD_MEANS
from nadpipe.store.pool import read_pool


def compute_contributions(
    features: Path,
    readout: Path,
    output: Path,
    output_means: Path,
    dtype: Literal["float32", "float16"] = "float32",
    batch_size: int = 64,
    tolerance: float = 1e-5,
) -> None:
    """Write coefficients, attention and embedding of each view, and the heads' means over the shard.

    Raises NadpipeError if pairs and rest do not sum to the model's own embedding.

    Args:
        features: Features of the shard.
        readout: Exported readout.
        output: Zarr store.
        output_means: Zarr store of the heads' means.
        dtype: Type of the stored coefficients. float16 takes half the space; the error is stored per view.
        batch_size: Views per step.
        tolerance: Largest allowed ‖pairs + rest - embedding‖ / ‖embedding‖ of a view, beyond the stored error of features in
            lower precision.
    """
    pool, model = read_pool(readout)
    source = open_zarr(features, FEATURES, model)
    views, spatial = source["activation"].shape[:2]
    pool = pooling.at_grid(pool, round(spatial**0.5))
    sizes = {"view": views, "head": pool.heads, "neuron": pool.neurons, "token": pool.tokens, "embed": pool.embed}
    stamp = model.made_by(__name__)
    attributes = {name: source.attributes[name] for name in ("shard", "shards", "images")} | {"tolerance": tolerance}
    attended, attention_mean, largest_residual = Mean(), Mean(), 0.0
    with create_zarr(output, CONTRIBUTIONS, stamp, sizes, {"coefficient": dtype}, attributes=attributes) as store:
        store.write("image_id", source.read("image_id"))
        for start in track(range(0, views, batch_size), "decomposing", "batch"):
            rows = slice(start, start + batch_size)
            trace = pooling.trace(source.tensor("activation", rows).float(), pool)
            coefficient = circuit.coefficients(trace, pool.readout)
            pairs = circuit.sum_pairs(coefficient, pool.readout, trace.gain)
            rest = torch.zeros_like(pairs) if trace.rest is None else trace.rest
            embedding = pairs if trace.rest is None else pairs + rest
            residual = circuit.residual(embedding, source.tensor("embedding", rows))
            _check_residual(residual, source.tensor("rounding", rows), tolerance, features, start)
            stored = store.as_stored("coefficient", coefficient)
            rounding = torch.zeros(len(pairs))
            if dtype != "float32":
                rounding = circuit.residual(circuit.sum_pairs(stored.float(), pool.readout, trace.gain), pairs)
            attended.add(circuit.attended_tokens(trace.attention, trace.activation)[None], views=len(pairs))
            attention_mean.add(trace.attention)
            largest_residual = max(largest_residual, float(residual.max()))
            store.append(coefficient=stored, attention=trace.attention, embedding=embedding, rest=rest)
            store.append(residual=residual, rounding=rounding)
    sizes["width"] = pool.readout.width
    attributes |= {"views": views, "largest_residual": largest_residual}
    with create_zarr(output_means, SHARD_MEANS, stamp, sizes, attributes=attributes) as store:
        shares = attention_mean.result().float()
        store.write("attention_mean", shares)
        store.write("value_mean", circuit.project_attended(attended.result().float(), shares, pool.readout))


def _check_residual(residual: torch.Tensor, rounding: torch.Tensor, tolerance: float, path: Path, start: int) -> None:
    """Raise NadpipeError if a view's residual exceeds its rounding error by more than the tolerance."""
    excess = torch.nan_to_num(residual - rounding, nan=torch.inf)
    worst = int(excess.argmax())
    if not excess[worst] <= tolerance:
        precision = f" besides the {rounding[worst]:.1e} of the stored precision" if rounding[worst] else ""
        raise NadpipeError(
            f"{path}: pairs and rest sum to the embedding of view {start + worst} only within {residual[worst]:.1e} of its "
            f"norm, contributions.tolerance is {tolerance:.1e}{precision}; the features are damaged or too imprecise, make "
            "them again"
        )
