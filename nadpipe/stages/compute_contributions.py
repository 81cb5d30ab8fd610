"""Decompose the embeddings of one shard exactly: one coefficient per view and pair."""

from pathlib import Path
from typing import Literal

import torch

from nadpipe.circuit import attention as pooling
from nadpipe.circuit import ledger
from nadpipe.circuit import readout as circuit
from nadpipe.circuit.accumulators import Mean
from nadpipe.errors import NadpipeError
from nadpipe.progress import track
from nadpipe.store.arrays import create_zarr
from nadpipe.store.kinds.features import CONTRIBUTIONS, SHARD_MEANS
from nadpipe.store.pool import open_features, read_features, read_weights


def compute_contributions(
    features: Path,
    readout: Path,
    output: Path,
    output_means: Path,
    dtype: Literal["float32", "float16"] = "float32",
    batch_size: int = 64,
    tolerance: float = 1e-5,
) -> None:
    """Write coefficients, attention and embedding of each view, and means of the heads and of the embedding's parts.

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
    exported = read_weights(readout)
    weights, model = exported.readout, exported.model
    source = open_features(features, exported)
    views, spatial = source["activation"].shape[:2]
    pool = exported.pool_at(round(spatial**0.5))
    sizes = {
        "view": views,
        "head": weights.heads,
        "neuron": weights.neurons,
        "token": exported.prefix + spatial,
        "embed": weights.embed,
    }
    stamp, first = model.made_by(__name__), {"token": 1 - exported.prefix}
    attributes = {name: source.attributes[name] for name in ("shard", "shards", "images")} | {"tolerance": tolerance}
    attended, attention_mean, part_mean, part_product, largest_residual = Mean(), Mean(), Mean(), Mean(), 0.0
    with create_zarr(output, CONTRIBUTIONS, stamp, sizes, {"coefficient": dtype}, attributes=attributes, first=first) as store:
        store.write("image_id", source.read("image_id"))
        for start in track(range(0, views, batch_size), "decomposing", "batch"):
            rows = slice(start, start + batch_size)
            features_read = read_features(source, rows)
            trace = pooling.view_trace(features_read, pool)
            coefficient = circuit.coefficients(trace, weights)
            pairs, rest = circuit.sum_pairs(coefficient, weights), circuit.other_paths(trace, weights)
            embedding = pairs if rest is None else pairs + rest
            rest = torch.zeros_like(pairs) if rest is None else rest
            residual = circuit.residual(embedding, source.tensor("embedding", rows))
            _check_residual(residual, source.tensor("rounding", rows), tolerance, features, start)
            stored = store.as_stored("coefficient", coefficient)
            rounding = torch.zeros(len(pairs))
            if dtype != "float32":
                rounding = circuit.residual(circuit.sum_pairs(stored.float(), weights), pairs)
            if pool is None:
                streams = source.tensor("stream", rows)
                attended.add(circuit.attended_streams(trace.attention, streams, weights)[None], views=len(pairs))
            else:
                attended.add(circuit.attended_tokens(trace.attention, trace.activation)[None], views=len(pairs))
            attention_mean.add(trace.attention)
            parts = ledger.split_embedding(coefficient, weights, trace.gain, features_read.get("part"))
            part_mean.add(parts)
            part_product.add(torch.einsum("vpe,ve->vp", parts.double(), embedding.double()))
            largest_residual = max(largest_residual, float(residual.max()))
            store.append(coefficient=stored, attention=trace.attention, embedding=embedding, rest=rest)
            store.append(residual=residual, rounding=rounding)
    sizes["width"] = weights.width
    part_names = ledger.name_parts(weights, [(name, layer) for name, layer in source.attributes["parts"]])
    sizes["part"] = len(part_names)
    attributes |= {"views": views, "largest_residual": largest_residual, "parts": part_names}
    precise = dict.fromkeys(("part_mean", "part_product"), "float64")  # their differences count
    with create_zarr(output_means, SHARD_MEANS, stamp, sizes, precise, attributes=attributes, first=first) as store:
        shares = attention_mean.result().float()
        store.write("attention_mean", shares)
        store.write("value_mean", circuit.project_attended(attended.result().float(), shares, weights))
        store.write("part_mean", part_mean.result())
        store.write("part_product", part_product.result())


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
