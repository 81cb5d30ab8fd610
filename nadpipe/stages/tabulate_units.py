"""One row a unit: how large it is, how well one direction describes it, and what it is called."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from nadpipe.artifacts import explained_column, open_zarr, read_parquet, write_parquet
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint
from nadpipe.progress import track


def tabulate_units(
    unit: Literal["pair", "neuron", "head"],
    directions: Path,
    assignments: Path,
    attnpool_store: Path,
    output: Path,
    correlated: Path | None = None,
) -> None:
    """Write the table of all units of a kind.

    Args:
        unit: pair, neuron or head.
        directions: Directions of the units.
        assignments: Texts of the units.
        attnpool_store: Exported attention pool.
        output: Parquet table.
        correlated: Texts of the pairs by correlation with their images; for pairs alone, and for them needed.
    """
    if (unit == "pair") != (correlated is not None):
        raise NadpipeError("give --correlated for pairs, and for them alone")
    model = open_zarr(attnpool_store, "attention pool").stamp
    store = open_zarr(directions, f"{unit} directions", model)
    keys = ["head", "neuron"] if unit == "pair" else [unit]
    grid = np.indices(store["top_norm"].shape).reshape(len(keys), -1)
    numbers = [name for name in ("write_norm", "coefficient_mean", "coefficient_std", "sign") if unit == "pair"]
    table = pd.DataFrame(dict(zip(keys, grid, strict=True)))
    for name in track([*numbers, "mean_norm", "std_norm", "top_norm"], f"tabulating {unit}s", "column"):
        table[name] = store[name][:].ravel()
    more = {}
    if unit == "pair":
        table["explained"] = np.where(table["std_norm"] > 0, 1.0, np.nan)
    else:
        for component, share in enumerate(store["explained"][:].T, start=1):
            table[f"explained_{component}"] = share
            more[f"explained_{component}"] = explained_column(component)
    table["contribution_rank"] = table["std_norm"].rank(method="first", ascending=False).astype("int32")
    kind = f"{unit} assignments"
    best = read_parquet(assignments, kind, model, filters=[("rank", "==", 1)]).set_index(keys)
    nearest, first = (best[best["kind"] == name] for name in ("nearest", "sparse"))
    sparse = read_parquet(assignments, kind, model, [*keys, "explained"], [("kind", "==", "sparse")])
    table = table.join(nearest[["text", "weight"]].set_axis(["nearest_text", "nearest_cosine"], axis=1), on=keys)
    table = table.join(first["text"].rename("sparse_text"), on=keys)
    table = table.join(sparse.groupby(keys)["explained"].max().rename("sparse_explained"), on=keys)
    if correlated is not None:
        active = read_parquet(correlated, "pair correlations", model, filters=[("rank", "==", 1)]).set_index(keys)
        table = table.join(active[["text", "correlation"]].set_axis(["active_text", "active_correlation"], axis=1), on=keys)
    stamp = dataclasses.replace(model, code=code_fingerprint(__name__))
    write_parquet(output, f"{unit}s", table, stamp, more)
