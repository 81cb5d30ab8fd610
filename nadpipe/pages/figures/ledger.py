"""Plot of the shares of the embedding that pairs and every other path carry."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nadpipe.pages.plots import COLOURS, remove_box
from nadpipe.store.kinds.analyses import LEDGER

KIND = LEDGER


def draw(table: pd.DataFrame) -> Figure:
    """Draw each part's share of the embeddings' energy and of their variance over images, one row per part and layer."""
    figure = Figure(figsize=(8, 1.2 + 0.3 * len(table)), layout="constrained")
    axes = figure.add_subplot()
    rows = np.arange(len(table))[::-1]
    for index, (name, title) in enumerate((("energy", "energy"), ("variance", "variance over images"))):
        axes.barh(rows + 0.2 - 0.4 * index, table[name].fillna(0), 0.4, color=COLOURS[index], label=title)
    labels = [row.part if pd.isna(row.layer) else f"{row.part}, block {int(row.layer)}" for row in table.itertuples()]
    axes.axvline(0, color="0.7", linewidth=0.8)
    axes.set(yticks=rows, yticklabels=labels, xlabel="share of the embedding")
    axes.legend(frameon=False)
    remove_box(axes)
    return figure
