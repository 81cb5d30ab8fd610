"""The kinds of units that nadpipe describes. This module imports nothing heavy: the Snakefile and the schemas read it."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

UnitName = Literal["pair", "neuron", "head"]


@dataclasses.dataclass(frozen=True)
class UnitKind:
    """One kind of unit: the axes that index its units, and its rank."""

    axes: tuple[str, ...]
    rank_one: bool  # a rank-one unit has one direction, known from the weights up to its sign

    @property
    def table_keys(self) -> list[str]:
        """Columns that identify a unit in tables."""
        return list(self.axes)


def layer_heads(layer: Sequence[int]) -> list[int]:
    """Return the number of each head within its layer, from 0. layer: of each head."""
    return [layer[:head].count(number) for head, number in enumerate(layer)]


def head_names(layer: Sequence[int]) -> list[str]:
    """Return the name of each head: its number, or <block>.<number in the block> if heads are those of a tower's blocks.

    layer: block of each head; 0 for the heads of a pool.
    """
    if not any(layer):
        return [str(head) for head in range(len(layer))]
    return [f"{block}.{head}" for block, head in zip(layer, layer_heads(layer), strict=True)]


_KINDS = (
    UnitKind(axes=("head", "neuron"), rank_one=True),
    UnitKind(axes=("neuron",), rank_one=False),
    UnitKind(axes=("head",), rank_one=False),
)
UNITS: dict[UnitName, UnitKind] = dict(zip(get_args(UnitName), _KINDS, strict=True))
RANK_ONE: tuple[UnitName, ...] = tuple(name for name, kind in UNITS.items() if kind.rank_one)
SUBSPACES: tuple[UnitName, ...] = tuple(name for name, kind in UNITS.items() if not kind.rank_one)
