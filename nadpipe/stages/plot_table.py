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
        name: Name of the analysis and of its module in nadpipe.pages.figures.
        table: CSV or Parquet table.
        output: PNG.
    """
    # Imports by name keep figures out of this stage's fingerprint; the rule adds the fingerprint of the figure that it draws.
    names = [module.name for module in pkgutil.iter_modules(figures.__path__)]
    if name not in names:
        raise NadpipeError(f"--name: no figure of {name!r}; use one of {', '.join(names)}")
    figure = importlib.import_module(f"nadpipe.pages.figures.{name}")
    drawing = figure.draw(read_result(table, figure.KIND))
    with atomic_path(output) as partial:
        plots.save(drawing, partial)
