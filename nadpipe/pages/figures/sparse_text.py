"""Plot of zero-shot accuracy by the number of texts in each unit's code."""

import pandas as pd
from matplotlib.figure import Figure

from nadpipe.pages.plots import accuracy_curves
from nadpipe.store.kinds.analyses import SPARSE_TEXT

KIND = SPARSE_TEXT


def draw(table: pd.DataFrame) -> Figure:
    """Draw accuracy and explained variance against the number of texts, one line per unit."""
    return accuracy_curves(table[table["atoms"] > 0], "atoms", "unit", "texts in the code of each unit")
