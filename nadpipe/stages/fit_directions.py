"""Fit the direction that each pair, neuron or head writes along."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nadpipe.circuit import directions
from nadpipe.circuit.accumulators import PairMoments, TopByNorm, subtract_mean
from nadpipe.circuit.readout import Readout, pair_constants, write_vectors
from nadpipe.circuit.unit_kinds import UNITS, UnitName
from nadpipe.circuit.units import SUBSPACE_UNITS
from nadpipe.errors import NadpipeError
from nadpipe.progress import track
from nadpipe.store.arrays import ZarrStore, create_zarr
from nadpipe.store.kinds.features import CONTRIBUTIONS, PAIR_MOMENTS
from nadpipe.store.kinds.units import DIRECTIONS
from nadpipe.store.moments import merged_moments
from nadpipe.store.readout import read_readout
from nadpipe.store.shards import blocks, count_blocks, open_shards
from nadpipe.store.stamp import Stamp

_UNITS_AT_ONCE = 256  # units whose write vectors are in memory at once


def fit_directions(
    unit: UnitName,
    moments: tuple[Path, ...],
    readout: Path,
    output: Path,
    contributions: tuple[Path, ...] = (),
    components: int = 3,
) -> None:
    """Write the directions of all units of a kind with their norms.

    Args:
        unit: Kind of unit.
        moments: Pair moments of all discovery shards.
        readout: Exported readout.
        output: Zarr store.
        contributions: Contributions of all discovery shards. Pairs do not need them.
        components: Directions per neuron or head. A pair has one.
    """
    weights, model = read_readout(readout)
    stores = open_shards(moments, PAIR_MOMENTS, model)
    pairs = merged_moments(stores).result()
    stamp = model.made_by(__name__)
    attributes = {"top_images": pairs.keep, "views": pairs.views, "layer": weights.layer.tolist()}
    if UNITS[unit].rank_one:
        _fit_pairs(unit, pairs, weights, stamp, output, attributes)
        return
    sources = open_shards(contributions, CONTRIBUTIONS, model)
    if any(sources[0].attributes[name] != stores[0].attributes[name] for name in ("images", "shards")):
        raise NadpipeError(
            f"{sources[0].path}: has other images than {stores[0].path}; give the moments of these contributions"
        )
    _fit_subspaces(unit, sources, pairs, weights, stamp, output, components, attributes)


def _fit_pairs(
    unit: UnitName, pairs: PairMoments, readout: Readout, stamp: Stamp, output: Path, attributes: Mapping[str, Any]
) -> None:
    """Fit pairs head by head."""
    mean, std, constant = pairs.mean.float(), pairs.std.float(), pair_constants(readout)
    sizes = {"head": readout.heads, "neuron": readout.neurons}
    with create_zarr(output, DIRECTIONS[unit], stamp, sizes, {"sign": "int8"}, attributes=attributes) as store:
        store.write("coefficient_mean", mean)
        store.write("coefficient_std", std)
        for head in track(range(readout.heads), "fitting pairs", "head"):
            write = write_vectors(readout, head)
            fit = directions.fit_pairs(pairs.farthest[:, head], write)
            mean_norm = (mean[head][:, None] * write + constant[head]).norm(dim=1)
            store.append(sign=fit.sign[None], write_norm=fit.write_norm[None], mean_norm=mean_norm[None])
            store.append(std_norm=(std[head] * fit.write_norm)[None], top_norm=fit.top_norm[None])


def _fit_subspaces(
    unit: UnitName,
    stores: Sequence[ZarrStore],
    pairs: PairMoments,
    readout: Readout,
    stamp: Stamp,
    output: Path,
    components: int,
    attributes: Mapping[str, Any],
) -> None:
    """Find the top images of units that are not rank one, then fit their directions, some units at a time."""
    kind = SUBSPACE_UNITS[unit]
    count = kind.count(readout)
    slices = [slice(start, start + _UNITS_AT_ONCE) for start in range(0, count, _UNITS_AT_ONCE)]
    root = torch.cat([directions.orthonormal_basis(kind.writes(readout, units))[1] for units in slices])
    accumulator = TopByNorm(pairs.keep)
    total = count_blocks(stores, "coefficient")
    for (coefficient,) in track(blocks(stores, "coefficient"), f"finding top images of {unit}s", "block", total):
        accumulator.add(kind.factors(subtract_mean(coefficient.float(), pairs.mean), readout), root)
    top = accumulator.result()
    mean_factor, constant = kind.factors(pairs.mean.float()[None], readout)[0], kind.constants(readout)
    sizes = {unit: count, "component": components, "embed": readout.embed}
    with create_zarr(output, DIRECTIONS[unit], stamp, sizes, attributes=attributes) as store:
        store.write("std_norm", top.energy.sqrt().float())
        for units in track(slices, f"fitting {unit}s", "block"):
            write = kind.writes(readout, units)
            basis, _ = directions.orthonormal_basis(write)
            fit = directions.fit_subspaces(top.of(units), basis, root[units], components)
            mean = torch.einsum("ur,ure->ue", mean_factor[units], write) + constant[units]
            store.append(direction=fit.direction, explained=fit.explained, top_norm=fit.top_norm, mean_norm=mean.norm(dim=1))
