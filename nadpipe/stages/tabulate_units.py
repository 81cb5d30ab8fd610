"""Tabulate units: one row per unit with its size, how well one direction describes it, and its names."""

from pathlib import Path

import numpy as np
import pandas as pd

from nadpipe.circuit.unit_kinds import UNITS, UnitName, layer_heads
from nadpipe.errors import NadpipeError
from nadpipe.progress import track
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.units import ASSIGNMENTS, CORRELATIONS, DIRECTIONS, LAYER_COLUMNS, UNIT_TABLES, explained_column
from nadpipe.store.schema import Column
from nadpipe.store.tables import read_parquet, write_parquet

_NORMS = ("mean_norm", "std_norm", "top_norm")
_RANK_ONE_NUMBERS = ("write_norm", "coefficient_mean", "coefficient_std", "sign")


def tabulate_units(
    unit: UnitName,
    directions: Path,
    assignments: Path,
    output: Path,
    correlated: Path | None = None,
) -> None:
    """Write the table of all units of a kind.

    Args:
        unit: Kind of unit.
        directions: Directions of the units.
        assignments: Texts of the units.
        output: Parquet table.
        correlated: Texts of the pairs by correlation with their images. Required for pairs, and only for pairs.
    """
    kind = UNITS[unit]
    if kind.rank_one != (correlated is not None):
        raise NadpipeError("--correlated: required for pairs, not allowed for other units; correct the command")
    store = open_zarr(directions, DIRECTIONS[unit])
    model, keys = store.stamp, kind.table_keys
    grid = np.indices(store["top_norm"].shape).reshape(len(keys), -1)
    table = pd.DataFrame(dict(zip(keys, grid, strict=True)))
    for name in track([*(_RANK_ONE_NUMBERS if kind.rank_one else ()), *_NORMS], f"tabulating {unit}s", "column"):
        table[name] = store.read(name).ravel()
    extra_columns: dict[str, Column] = {}
    layer = store.attributes["layer"]
    if "head" in keys and any(layer):
        extra_columns |= LAYER_COLUMNS
        table["layer"], table["layer_head"] = (np.array(values)[table["head"]] for values in (layer, layer_heads(layer)))
    if kind.rank_one:
        table["explained"] = np.where(table["std_norm"] > 0, 1.0, np.nan)
    else:
        for component, share in enumerate(store.read("explained").T, start=1):
            table[f"explained_{component}"] = share
            extra_columns[f"explained_{component}"] = explained_column(component)
    table["contribution_rank"] = table["std_norm"].rank(method="first", ascending=False).astype("int32")
    texts = ASSIGNMENTS[unit]
    best = read_parquet(assignments, texts, model, filters=[("rank", "==", 1)]).set_index(keys)
    nearest, first = (best[best["kind"] == name] for name in ("nearest", "sparse"))
    sparse = read_parquet(assignments, texts, model, [*keys, "explained"], [("kind", "==", "sparse")])
    table = table.join(nearest[["text", "weight"]].set_axis(["nearest_text", "nearest_cosine"], axis=1), on=keys)
    table = table.join(first["text"].rename("sparse_text"), on=keys)
    table = table.join(sparse.groupby(keys)["explained"].max().rename("sparse_explained"), on=keys)
    if correlated is not None:
        active = read_parquet(correlated, CORRELATIONS, model, filters=[("rank", "==", 1)]).set_index(keys)
        table = table.join(active[["text", "correlation"]].set_axis(["active_text", "active_correlation"], axis=1), on=keys)
    write_parquet(output, UNIT_TABLES[unit], table, model.made_by(__name__), extra_columns)
