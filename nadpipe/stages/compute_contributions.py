"""Take the attention pool apart for one shard: a coefficient per view and pair, exact."""

import dataclasses
from pathlib import Path
from typing import Literal

import torch

from nadpipe import attnpool
from nadpipe.artifacts import create_zarr, open_zarr
from nadpipe.directions import Mean
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint
from nadpipe.inputs import read_pool
from nadpipe.progress import track


def compute_contributions(
    features: Path,
    attnpool_store: Path,
    output: Path,
    dtype: Literal["float32", "float16"] = "float32",
    batch_size: int = 64,
    tolerance: float = 1e-5,
) -> None:
    """Write coefficients, attention and summed embedding of each view; fail when pairs do not sum to the embedding.

    Args:
        features: Features of the shard.
        attnpool_store: Exported attention pool.
        output: Zarr store.
        dtype: Of the stored coefficients; float16 takes half the space, and its error is stored for each view.
        batch_size: Views a step.
        tolerance: Largest allowed ‖sum over pairs - embedding‖ / ‖embedding‖ of a view, beyond what features of lower
            precision already differ by.
    """
    pool, model = read_pool(attnpool_store)
    source = open_zarr(features, "features", model)
    views, spatial = source["activation"].shape[:2]
    pool = attnpool.at_grid(pool, round(spatial**0.5))
    sizes = {
        "view": views,
        "head": pool.heads,
        "neuron": pool.neurons,
        "token": pool.tokens,
        "embed": len(pool.c_bias),
        "width": pool.neurons // pool.heads,
    }
    stamp = dataclasses.replace(model, code=code_fingerprint(__name__))
    about = {name: source.attributes[name] for name in ("shard", "shards", "images")}
    attended, attention_mean = Mean(), Mean()
    about["tolerance"] = tolerance
    with create_zarr(output, "contributions", stamp, sizes, {"coefficient": dtype}, attributes=about) as store:
        store.write("image_id", source["image_id"][:])
        for start in track(range(0, views, batch_size), "decomposing", "batch"):
            at = slice(start, start + batch_size)
            x = attnpool.tokens(torch.from_numpy(source["activation"][at]).float(), pool)
            attention = attnpool.attention(x, pool)
            coefficient = attnpool.coefficients(attention, x)
            embedding = attnpool.sum_pairs(coefficient, pool)
            residual = attnpool.residual(embedding, torch.from_numpy(source["embedding"][at]))
            _check(residual, torch.from_numpy(source["rounding"][at]), tolerance, features, start)
            stored = store.as_stored("coefficient", coefficient)
            rounding = torch.zeros(len(x))
            if dtype != "float32":
                rounding = attnpool.residual(attnpool.sum_pairs(stored.float(), pool), embedding)
            attended.add(attnpool.attended_tokens(attention, x)[None], views=len(x))
            attention_mean.add(attention)
            rows = {"attention": attention, "embedding": embedding, "residual": residual, "rounding": rounding}
            store.append(coefficient=stored, **rows)
        shares = attention_mean.value().float()
        store.write("attention_mean", shares)
        store.write("value_mean", attnpool.project_attended(attended.value().float(), shares, pool))


def _check(residual: torch.Tensor, rounding: torch.Tensor, tolerance: float, path: Path, start: int) -> None:
    excess = torch.nan_to_num(residual - rounding, nan=torch.inf)
    worst = int(excess.argmax())
    if not excess[worst] <= tolerance:
        beside = f" beside the {rounding[worst]:.1e} of the stored precision" if rounding[worst] else ""
        raise NadpipeError(
            f"{path}: pairs sum to the embedding of view {start + worst} only within {residual[worst]:.1e} of its norm, "
            f"contributions.tolerance is {tolerance:.1e}{beside}; the features are damaged or of too low a precision"
        )
