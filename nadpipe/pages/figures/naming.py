"""Plot of the share of pairs with correct names."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nadpipe.pages.plots import COLOURS
from nadpipe.store.kinds.analyses import NAMING

KIND = NAMING


def draw(table: pd.DataFrame) -> Figure:
    """Draw the share of correct names by naming rule and share of the pairs, with the share expected by chance."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    rules = list(table["rule"].unique())
    shares = sorted(table["share"].unique())
    thickness = 0.8 / len(shares)
    for index, share in enumerate(shares):
        rows = table[table["share"] == share].set_index("rule").loc[rules]
        centre = np.arange(len(rules)) + thickness * (index - (len(shares) - 1) / 2)
        axes.bar(centre, rows["agreement"], thickness, color=COLOURS[index], label=f"largest {share:.0%} of the pairs")
        axes.hlines(rows["chance"], centre - thickness / 2, centre + thickness / 2, color="black")
    axes.set(ylim=(0, 1), ylabel="share of correct names (line: chance)")
    axes.set_xticks(range(len(rules)), labels=rules)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure
