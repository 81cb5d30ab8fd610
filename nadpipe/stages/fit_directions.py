"""Fit the direction that each pair, neuron or head writes along."""

import dataclasses
from pathlib import Path
from typing import Literal

import torch

from nadpipe import directions
from nadpipe.artifacts import Stamp, ZarrStore, create_zarr
from nadpipe.attnpool import AttentionPool, pair_constants, write_vectors
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint
from nadpipe.inputs import blocks, count_blocks, merged_moments, open_shards, read_pool
from nadpipe.progress import track

_UNITS_AT_ONCE = 256  # neurons whose write vectors are held at a time


def fit_directions(
    unit: Literal["pair", "neuron", "head"],
    moments: tuple[Path, ...],
    attnpool_store: Path,
    output: Path,
    contributions: tuple[Path, ...] = (),
    components: int = 3,
) -> None:
    """Write the directions of all units of a kind with the numbers that describe them.

    Args:
        unit: pair, neuron or head.
        moments: Accumulated pairs of all shards of the discovery contributions.
        attnpool_store: Exported attention pool.
        output: Zarr store.
        contributions: The contributions themselves, all shards; not for pairs, whose moments say it all.
        components: Directions per neuron or head; a pair has one.
    """
    pool, model = read_pool(attnpool_store)
    parts = open_shards(moments, "pair moments", model)
    merged = merged_moments(parts)
    stamp = dataclasses.replace(model, code=code_fingerprint(__name__))
    about = {"top_images": merged.keep, "views": merged.mean.count}
    if unit == "pair":
        _fit_pairs(merged, pool, stamp, output, about)
        return
    stores = open_shards(contributions, "contributions", model)
    if any(stores[0].attributes[name] != parts[0].attributes[name] for name in ("images", "shards")):
        raise NadpipeError(
            f"{stores[0].path}: is of other images than {parts[0].path}; give the moments of these contributions"
        )
    _fit_subspaces(unit, stores, merged, pool, stamp, output, components, about)


def _fit_pairs(extremes: directions.Extremes, pool: AttentionPool, stamp: Stamp, output: Path, about: dict) -> None:
    deviation, mean, std = extremes.farthest(), extremes.mean.value().float(), extremes.std().float()
    constant = pair_constants(pool)
    sizes = {"head": pool.heads, "neuron": pool.neurons, "embed": len(pool.c_bias)}
    with create_zarr(output, "pair directions", stamp, sizes, {"sign": "int8"}, attributes=about) as store:
        store.write("coefficient_mean", mean)
        store.write("coefficient_std", std)
        for head in track(range(pool.heads), "fitting pairs", "head"):
            write = write_vectors(pool, head)
            fit = directions.fit_pairs(deviation[:, head], write)
            norms = {
                "write_norm": fit.write_norm,
                "mean_norm": (mean[head][:, None] * write + constant[head]).norm(dim=1),
                "std_norm": std[head] * fit.write_norm,
                "top_norm": fit.top_norm,
            }
            rows = {"direction": fit.direction, "sign": fit.sign, **norms}
            store.append(**{name: row[None] for name, row in rows.items()})


def _fit_subspaces(
    unit: Literal["neuron", "head"],
    stores: list[ZarrStore],
    extremes: directions.Extremes,
    pool: AttentionPool,
    stamp: Stamp,
    output: Path,
    components: int,
    about: dict,
) -> None:
    mean = extremes.mean.value()
    units = pool.neurons if unit == "neuron" else pool.heads
    parts = [slice(start, start + _UNITS_AT_ONCE) for start in range(0, units, _UNITS_AT_ONCE)]
    root = torch.cat([directions.orthonormal_basis(directions.unit_writes(unit, pool, part))[1] for part in parts])
    top = directions.TopByNorm(extremes.keep)
    count = count_blocks(stores, "coefficient")
    for (coefficient,) in track(blocks(stores, "coefficient"), f"finding top images of {unit}s", "block", count):
        top.add(directions.unit_factors(unit, directions.centred(coefficient.float(), mean), pool), root)
    mean_factor = directions.unit_factors(unit, mean.float()[None], pool)[0]
    constant = directions.unit_constants(unit, pool)
    sizes = {unit: units, "component": components, "embed": len(pool.c_bias)}
    with create_zarr(output, f"{unit} directions", stamp, sizes, attributes=about) as store:
        store.write("std_norm", top.energy.value().sqrt().float())
        for part in track(parts, f"fitting {unit}s", "part"):
            write = directions.unit_writes(unit, pool, part)
            basis, _ = directions.orthonormal_basis(write)
            fit = directions.fit_subspaces(top.of(part), basis, root[part], components)
            whole = torch.einsum("ur,ure->ue", mean_factor[part], write) + constant[part]
            store.append(direction=fit.direction, explained=fit.explained, top_norm=fit.top_norm, mean_norm=whole.norm(dim=1))
