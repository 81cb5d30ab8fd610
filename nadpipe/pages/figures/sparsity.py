"""Plot of zero-shot accuracy by the share of units that are kept."""

import pandas as pd
from matplotlib.figure import Figure

from nadpipe.pages.plots import accuracy_curves
from nadpipe.store.kinds.analyses import SPARSITY

KIND = SPARSITY


def draw(table: pd.DataFrame) -> Figure:
    """Draw accuracy and explained variance against the share of units kept, one line per ranking and unit."""
    named = table.assign(kept=table["kept"] + " " + table["unit"] + "s")
    return accuracy_curves(named, "share", "kept", "share of units kept, others at their mean")
