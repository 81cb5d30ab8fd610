"""Plot of how much the top images of pairs and neurons differ."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nadpipe.pages.plots import COLOURS
from nadpipe.store.kinds.analyses import POLYSEMANTICITY

KIND = POLYSEMANTICITY


def draw(table: pd.DataFrame) -> Figure:
    """Draw the distribution of the top images' spread for pairs and neurons, and each pair's spread against its neuron's."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    pairs = table[table["unit"] == "pair"].dropna(subset="spread")
    bins = np.linspace(0, max(1.0, float(table["spread"].max())) + 1e-6, 41)
    for index, unit in enumerate(("neuron", "pair")):
        spread = table.loc[table["unit"] == unit, "spread"].dropna()
        left.hist(spread, bins, density=True, histtype="step", color=COLOURS[index], label=unit)
    left.set(xlabel="spread of the top images", ylabel="density")
    left.legend(frameon=False)
    counts = right.hist2d(pairs["parent_spread"], pairs["spread"], bins=[bins, bins], cmap="Blues", norm="log")[3]
    right.plot(bins[[0, -1]], bins[[0, -1]], color="0.5", linewidth=0.8)
    right.set(xlabel="of the neuron", ylabel="of the pair")
    figure.colorbar(counts, ax=right, label="pairs")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
