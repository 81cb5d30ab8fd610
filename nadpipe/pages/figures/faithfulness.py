"""Plot of how ablating each concept's pairs changes every concept's score."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nadpipe.store.kinds.analyses import FAITHFULNESS

KIND = FAITHFULNESS


def draw(table: pd.DataFrame) -> Figure:
    """Draw a matrix: change of each concept's score (columns) after ablating each concept's pairs, or random ones (rows)."""
    wide = table.pivot(index="ablated", columns="measured", values="change")
    wide = wide.loc[list(table["ablated"].unique()), list(table["measured"].unique())]
    figure = Figure(figsize=(2.5 + 0.6 * wide.shape[1], 1.6 + 0.4 * len(wide)), layout="constrained")
    axes = figure.add_subplot()
    largest = max(float(np.nanmax(np.abs(wide.to_numpy()))), 1e-9)
    matrix = axes.imshow(wide, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
    axes.set(xticks=range(wide.shape[1]), yticks=range(len(wide)), yticklabels=wide.index)
    axes.set_xticks(range(wide.shape[1]), labels=wide.columns, rotation=45, ha="right")
    axes.set(xlabel="concept measured", ylabel="pairs at their mean")
    for row, values in enumerate(wide.to_numpy()):
        for column, value in enumerate(values):
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8)
    figure.colorbar(matrix, ax=axes, label="change of the score, standard deviations")
    return figure
