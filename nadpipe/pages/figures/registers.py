"""Plot of the attention sink and the neurons behind it."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nadpipe.pages.plots import COLOURS, remove_box
from nadpipe.store.kinds.segmentation import REGISTERS

KIND = REGISTERS
_TOP = 20  # neurons that are named


def draw(table: pd.DataFrame) -> Figure:
    """Draw the mean attention of the spatial tokens, with the sink (or the strongest) framed, and the neurons behind it.

    table: registers.parquet, one row per spatial token of a square grid and one per neuron.
    """
    tokens = table[table["kind"] == "token"].sort_values("index")
    neurons = table[table["kind"] == "neuron"]
    side = round(len(tokens) ** 0.5)
    attention = tokens["attention"].to_numpy(np.float32).reshape(side, side)
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.1, 1.2, 1))
    heatmap = left.imshow(attention, cmap="viridis", vmin=0)
    framed = int(neurons["token"].iloc[0])
    row, column = divmod(framed, side)
    left.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=COLOURS[3], linewidth=2.5))
    state = "attention sink" if tokens["sink"].astype(bool).any() else "no attention sink; strongest"
    left.set_title(f"mean attention, {state}: token {framed}", fontsize=10)
    left.set(xlabel="column", ylabel="row")
    figure.colorbar(heatmap, ax=left, shrink=0.8)
    ranked = neurons.sort_values("rank").reset_index(drop=True)
    measure, title = ("decrease of its attention", "neurons that it depends on most")
    effect = ranked["attention_drop"]
    if effect.isna().all():  # attention is recorded
        measure, title = ("activation there - elsewhere", "neurons that are most active there")
        effect = ranked["activation"] - ranked["elsewhere"]
    top = ranked.head(_TOP)[::-1]
    middle.barh(range(len(top)), effect[top.index], color=COLOURS[0])
    middle.set(yticks=range(len(top)), yticklabels=top["index"], ylabel="neuron", xlabel=measure)
    middle.locator_params(axis="x", nbins=4)
    middle.set_title(title, fontsize=10)
    right.plot(np.arange(1, len(ranked) + 1), effect, color=COLOURS[0])
    right.axhline(0, color="0.7", linewidth=0.8)
    right.set(xscale="log", xlabel="neurons by rank", ylabel=measure)
    right.set_title("all neurons", fontsize=10)
    for axes in (middle, right):
        remove_box(axes)
    return figure
