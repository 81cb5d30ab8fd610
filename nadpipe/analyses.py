"""Analyses: the final tables and their plots, derived from the schemas in nadpipe.store.kinds.

A table is final if its kind has a record of a result. It has a plot if nadpipe.pages.figures has a module with the name of the
kind. This module imports nothing heavy, because the Snakefile reads it at every start.
"""

from collections.abc import Collection
from pathlib import Path

from nadpipe.store.kinds import all_kinds
from nadpipe.store.schema import Final, StoreKind

_FIGURES = Path(__file__).parent / "pages" / "figures"

_KINDS = [(kind, kind.final) for kind in all_kinds() if not isinstance(kind, StoreKind) and kind.final is not None]
FINAL: dict[str, Final] = {kind.path: record for kind, record in _KINDS}  # by the path of the table
PLOTTED: dict[str, str] = {kind.name: kind.path for kind, _ in _KINDS if (_FIGURES / f"{kind.name}.py").is_file()}


def final_tables(missing: Collection[str] = ()) -> list[str]:
    """Return the paths of the final tables that need none of the `missing` needs."""
    return [path for path, record in FINAL.items() if not set(record.needs) & set(missing)]


def final_plots(missing: Collection[str] = ()) -> list[str]:
    """Return the paths of the plots of these tables."""
    tables = final_tables(missing)
    return [f"results/{name}.png" for name, path in PLOTTED.items() if path in tables]


def needs_of(path: str) -> tuple[str, ...]:
    """Return the needs of a final table, of its plot, or of the table of a batch; none for other paths."""
    if path.startswith("results/shift/batches/"):
        return FINAL["results/shift.csv"].needs  # a batch is compared with the scores of the groups
    plotted = {f"results/{name}.png": table for name, table in PLOTTED.items()}
    table = plotted.get(path, path)
    return FINAL[table].needs if table in FINAL else ()


def captions() -> dict[str, str]:
    """Return the captions of the final tables, which are those of their plots, by the name of the file without suffix."""
    return {Path(path).stem: record.caption for path, record in FINAL.items()}
