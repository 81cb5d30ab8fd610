"""Plot of zero-shot accuracy by the number of directions that each unit keeps."""

import pandas as pd
from matplotlib.figure import Figure

from nadpipe.pages.plots import accuracy_curves
from nadpipe.store.kinds.analyses import RECONSTRUCTION

KIND = RECONSTRUCTION


def draw(table: pd.DataFrame) -> Figure:
    """Draw accuracy, precision and explained variance against the number of directions, one line per unit."""
    shown = table[table["components"] > 0]
    return accuracy_curves(shown, "components", "unit", "directions kept of each unit", log=False)
