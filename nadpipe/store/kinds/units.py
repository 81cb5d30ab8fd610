"""Schemas of directions, selections and tables of units, derived from the registry of unit kinds."""

from nadpipe.circuit.unit_kinds import UNITS, UnitKind, UnitName
from nadpipe.store.schema import Array, Column, Final, StoreKind, TableKind

AXIS_COLUMNS = {
    "head": Column("int32", "head that is read out"),
    "neuron": Column("int32", "neuron: channel of the last residual block, or MLP neuron of model.block"),
}


def _pair_arrays(axes: tuple[str, ...]) -> dict[str, Array]:
    return {
        "sign": Array(axes, "int", "1 or -1", "direction is sign · w / ‖w‖; most kept images project on it positively"),
        "write_norm": Array(axes, "float", "embedding units per activation", "‖w[h, n]‖"),
        "coefficient_mean": Array(axes, "float", "activation", "mean of s[h, n] over views"),
        "coefficient_std": Array(axes, "float", "activation", "standard deviation of s[h, n] over views"),
        "mean_norm": Array(axes, "float", "embedding units", "‖mean s · w + b‖"),
        "std_norm": Array(axes, "float", "embedding units", "std s · ‖w‖"),
        "top_norm": Array(axes, "float", "embedding units", "mean of |s - mean s| ‖w‖ over the kept images"),
    }


def _subspace_arrays(axes: tuple[str, ...]) -> dict[str, Array]:
    return {
        "direction": Array(
            (*axes, "component", "embed"), "float", "unit length", "docs/method.md, Directions: first right-singular vectors"
        ),
        "explained": Array(
            (*axes, "component"), "float", "share of the kept images' centred energy", "docs/method.md, Directions"
        ),
        "mean_norm": Array(axes, "float", "embedding units", "norm of the mean contribution"),
        "std_norm": Array(axes, "float", "embedding units", "root mean square norm of centred contributions"),
        "top_norm": Array(axes, "float", "embedding units", "mean norm of the kept images' centred contributions"),
    }


def _directions(name: UnitName, kind: UnitKind) -> StoreKind:
    arrays = _pair_arrays(kind.axes) if kind.rank_one else _subspace_arrays(kind.axes)
    return StoreKind(f"{name} directions", f"results/artifacts/directions/{name}.zarr", arrays)


DIRECTIONS: dict[UnitName, StoreKind] = {name: _directions(name, kind) for name, kind in UNITS.items()}

SELECTION = StoreKind(
    "selection",
    "results/artifacts/selection/<set>.zarr",
    {
        "head": Array(("text", "rank"), "int", "index", "head of the pair of this rank"),
        "neuron": Array(("text", "rank"), "int", "index", "neuron of the pair of this rank"),
        "cosine": Array(("text", "rank"), "float", "cosine", "cosine of the pair's direction to the query"),
        "query": Array(("text", "embed"), "float", "unit length", "the text, centred unless shift.centre is none"),
        "text": Array(("text",), "text", "text", "config"),
    },
)

_RANK_ONE_COLUMNS = {
    "write_norm": Column("float32", "‖w[h, n]‖: embedding units per unit of coefficient"),
    "coefficient_mean": Column("float32", "mean of the coefficient over all discovery views"),
    "coefficient_std": Column("float32", "standard deviation of the coefficient over all discovery views"),
    "sign": Column("int8", "1 if the direction is w / ‖w‖, -1 if it is its opposite"),
    "explained": Column("float32", "share of centred energy on the direction: 1 for every pair that varies, else null"),
}
_SIZE_COLUMNS = {
    "mean_norm": Column("float32", "norm of the mean contribution, embedding units"),
    "std_norm": Column("float32", "root mean square norm of the centred contributions over all discovery views"),
    "top_norm": Column("float32", "mean norm of the centred contributions over the kept (top) images"),
    "contribution_rank": Column("int32", "1 for the unit with the largest std_norm"),
    "nearest_text": Column("text", "dictionary text with the largest cosine to the direction; null for a zero direction"),
    "nearest_cosine": Column("float32", "that cosine"),
    "sparse_text": Column("text", "first atom of the sparse code"),
    "sparse_explained": Column("float32", "share of the direction's energy that the whole sparse code explains"),
}
_ACTIVE_COLUMNS = {
    "active_text": Column("text", "text whose similarity to the discovery images correlates most with the pair's coefficient"),
    "active_correlation": Column("float32", "that correlation"),
}


def _unit_table(name: UnitName, kind: UnitKind) -> TableKind:
    columns = {axis: AXIS_COLUMNS[axis] for axis in kind.axes} | (_RANK_ONE_COLUMNS if kind.rank_one else {}) | _SIZE_COLUMNS
    columns |= _ACTIVE_COLUMNS if kind.rank_one else {}
    final = Final("tabulate_units", "Units", f"Size, direction and names of every {name}.")
    return TableKind(f"{name}s", f"results/{name}s.parquet", columns, final)


UNIT_TABLES: dict[UnitName, TableKind] = {name: _unit_table(name, kind) for name, kind in UNITS.items()}


def assignments_path(name: UnitName) -> str:
    """Return the path of a unit kind's texts. Those of pairs are a result; the others only feed their tables."""
    return "results/assignments.parquet" if UNITS[name].rank_one else f"results/artifacts/assignments/{name}.parquet"


_MATCH_COLUMNS = {
    "kind": Column("text", "nearest: by cosine; sparse: by orthogonal matching pursuit"),
    "rank": Column("int32", "from 1, best first (nearest) or in the order chosen (sparse)"),
    "text": Column("text", "text of the dictionary"),
    "weight": Column("float32", "cosine (nearest) or weight of the atom (sparse)"),
    "explained": Column("float32", "share of the direction's energy: this text alone (nearest), up to this rank (sparse)"),
}
_ASSIGNMENTS_RESULT = Final("assign_texts", "Units", "Texts of every pair by direction: nearest texts and sparse code.")
ASSIGNMENTS: dict[UnitName, TableKind] = {
    name: TableKind(
        f"{name} assignments",
        assignments_path(name),
        {axis: AXIS_COLUMNS[axis] for axis in kind.axes} | _MATCH_COLUMNS,
        _ASSIGNMENTS_RESULT if kind.rank_one else None,
    )
    for name, kind in UNITS.items()
}
CORRELATIONS = TableKind(
    "pair correlations",
    "results/artifacts/assignments/correlated.parquet",
    {
        **AXIS_COLUMNS,
        "rank": Column("int32", "from 1, best first"),
        "text": Column("text", "text of the dictionary"),
        "correlation": Column(
            "float32",
            "correlation over the discovery images of the coefficient along the direction with the image-text similarity",
        ),
    },
)


LAYER_COLUMNS = {  # only if the heads are those of a tower's blocks
    "layer": Column("int32", "block of the head, from 0"),
    "layer_head": Column("int32", "number of the head in its block, from 0"),
}


def explained_column(component: int) -> Column:
    """Return the column for the share of energy on one direction; a table has `directions.components` of them."""
    return Column("float32", f"share of the kept images' centred energy that direction {component} explains")
