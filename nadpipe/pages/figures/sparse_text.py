"""Plot of accuracy and precision by the number of atoms in each unit's code, for texts and for random atoms."""

import pandas as pd
from matplotlib.figure import Figure

from nadpipe.pages.plots import accuracy_curves
from nadpipe.store.kinds.analyses import SPARSE_TEXT

KIND = SPARSE_TEXT


def draw(table: pd.DataFrame) -> Figure:
    """Draw accuracy, precision and explained variance against the number of atoms, one line per unit and dictionary.

    If only the largest units are compared with random atoms, lines for them state their number.
    """
    shown = table[table["atoms"] > 0]
    fewer = shown["units"] < shown.groupby("unit")["units"].transform("max")
    named = shown["dictionary"].where(shown["dictionary"] != "random", "random atoms")
    named = named.where(~fewer, named + ", largest " + shown["units"].astype(str))
    return accuracy_curves(
        shown.assign(dictionary=named), "atoms", "unit", "atoms in the code of each unit", control="dictionary"
    )
