"""Plot of accuracy and precision by the share of units that are kept."""

import pandas as pd
from matplotlib.figure import Figure

from nadpipe.pages.plots import accuracy_curves
from nadpipe.store.kinds.analyses import SPARSITY

KIND = SPARSITY


def draw(table: pd.DataFrame) -> Figure:
    """Draw accuracy, precision and explained variance against the share of units kept, one line per unit and ranking."""
    named = table.assign(unit=table["unit"] + "s")
    return accuracy_curves(named, "share", "unit", "share of units kept, others at their mean", control="kept")
