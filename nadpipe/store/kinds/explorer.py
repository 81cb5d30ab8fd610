"""Schemas of what the explorer shows of each pair."""

from nadpipe.store.kinds.features import VIEW_TABLE
from nadpipe.store.schema import Array, StoreKind

_PAIR = ("head", "neuron")
EXTREMES = StoreKind(
    "extremes",
    "results/artifacts/explorer/extremes.zarr",
    {
        "row": Array((*_PAIR, "shown"), "int", "row of image_id", "views with the largest, then the smallest coefficients"),
        "value": Array((*_PAIR, "shown"), "float", "activation", "sign · s[h, n] of these views"),
        "count": Array((*_PAIR, "bin"), "int", "views", "histogram of sign · s[h, n] over equal bins of its range"),
        "range": Array((*_PAIR, "end"), "float", "activation", "smallest and largest sign · s[h, n]"),
        "image_id": VIEW_TABLE["image_id"],
    },
)
FIRING = StoreKind(
    "firing",
    "results/artifacts/explorer/firing/<shard>.zarr",
    {
        "position": Array(("map",), "int", "index", "place of the map in (head, neuron, shown) of the extremes, flattened"),
        "step": Array(("map", "token"), "int", "scale / 127", "sign · a[h, t] x_t[n] at the spatial tokens of the view"),
        "scale": Array(("map",), "float", "activation", "largest magnitude in the map"),
        **VIEW_TABLE,
    },
    first={"token": 1},
)
