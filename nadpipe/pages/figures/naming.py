"""Plot of how far the names of pairs, and of units that mean nothing, are right."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nadpipe.pages.plots import COLOURS
from nadpipe.store.kinds.analyses import NAMING

KIND = NAMING


def draw(table: pd.DataFrame) -> Figure:
    """Draw the share of right words with its interval by naming rule and kind of unit; one panel per share of the units."""
    shares, rules, units = (list(table[name].unique()) for name in ("share", "rule", "units"))
    figure = Figure(figsize=(3 * len(shares) + 3, 3.6), layout="constrained")
    panels = figure.subplots(1, len(shares), sharey=True, squeeze=False)[0]
    thickness = 0.85 / len(units)
    for axes, share in zip(panels, shares, strict=True):
        for index, unit in enumerate(units):
            rows = table[(table["share"] == share) & (table["units"] == unit)].set_index("rule").reindex(rules)
            centre = np.arange(len(rules)) + thickness * (index - (len(units) - 1) / 2)
            reach = [rows["agreement"] - rows["agreement_low"], rows["agreement_high"] - rows["agreement"]]
            style = {"ecolor": "0.35", "error_kw": {"elinewidth": 1}, "color": COLOURS[index % len(COLOURS)]}
            axes.bar(centre, rows["agreement"], thickness, yerr=reach, label=unit, **style)
        axes.set(title=f"largest {share:.0%}", ylim=(0, 1))
        axes.set_xticks(range(len(rules)), labels=rules)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("share of right words")
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure
