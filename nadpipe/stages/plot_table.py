"""Plot the table of an analysis."""

import importlib
import pkgutil
from pathlib import Path

from nadpipe.errors import NadpipeError
from nadpipe.pages import figures, plots
from nadpipe.store.atomic import atomic_path
from nadpipe.store.results import read_result


def plot_table(name: str, table: Path, output: Path) -> None:
    """Draw an analysis's figure from its table alone.

    Args:
        name: Analysis: a module of nadpipe.pages.figures.
        table: CSV or Parquet table.
        output: PNG.
    """
    # Imported by name, so that this stage's fingerprint covers no figure: the rule adds the one that it draws.
    names = [module.name for module in pkgutil.iter_modules(figures.__path__)]
    if name not in names:
        raise NadpipeError(f"--name: no figure of {name!r}; use one of {', '.join(names)}")
    figure = importlib.import_module(f"nadpipe.pages.figures.{name}")
    drawing = figure.draw(read_result(table, figure.KIND))
    with atomic_path(output) as partial:
        plots.save(drawing, partial)
