"""Plot of how ablating pairs changes the scores of concepts and of controls."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nadpipe.pages.plots import COLOURS, MARKERS, plain, remove_box
from nadpipe.store.kinds.analyses import FAITHFULNESS

KIND = FAITHFULNESS
_CONTROL = r"^(random \w+) \d+$"


def draw(table: pd.DataFrame) -> Figure:
    """Draw the effect of the selected pairs on all concepts and on controls, and AUROC over numbers of pairs."""
    table = table.assign(kind=table["ablated"].str.extract(_CONTROL)[0].fillna("concept"))
    selected = table[table["rule"] == "selected"]
    concepts = list(selected.loc[selected["kind"] == "concept", "measured"].unique())
    matrix = selected[selected["measured"].isin(concepts)]
    wide = matrix.pivot(index="ablated", columns="measured", values="change_highest")
    wide = wide.loc[list(matrix["ablated"].unique()), concepts]
    width = 2.5 + 0.6 * len(concepts)
    figure = Figure(figsize=(width + 14, max(4, 1.6 + 0.4 * len(wide))), layout="constrained")
    panels = figure.subplots(1, 4, width_ratios=[width, 4, 5, 5])
    _draw_matrix(panels[0], wide)
    _draw_kinds(panels[1], selected)
    curves = table[table["rule"] != "selected"]
    of_concepts = curves[curves["measured"].isin(concepts)]
    if of_concepts["auroc_ablated"].notna().any():
        _draw_curves(panels[2], of_concepts, "rule", "auroc_ablated", "AUROC of the labels, mean of the concepts")
    else:
        _draw_curves(panels[2], of_concepts, "rule", "auroc_highest", "AUROC of the highest tenth, mean of the concepts")
    by_effect = curves[curves["rule"] == "effect"]
    _draw_curves(panels[3], by_effect, "kind", "auroc_highest", "AUROC of the highest tenth, pairs by effect")
    return figure


def _draw_matrix(axes: Axes, wide: pd.DataFrame) -> None:
    largest = max(float(np.nanmax(np.abs(wide.to_numpy()))), 1e-9)
    matrix = axes.imshow(wide, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
    axes.set(yticks=range(len(wide)), yticklabels=map(plain, wide.index))
    axes.set_xticks(range(wide.shape[1]), labels=[plain(concept) for concept in wide.columns], rotation=45, ha="right")
    axes.set(xlabel="concept measured", ylabel="pairs at their mean")
    for row, values in enumerate(wide.to_numpy()):
        for column, value in enumerate(values):
            colour = "white" if abs(value) > 0.7 * largest else "black"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color=colour)
    axes.figure.colorbar(matrix, ax=axes, label="change of the score, standard deviations")


def _draw_kinds(axes: Axes, selected: pd.DataFrame) -> None:
    own = selected[(selected["ablated"] == selected["measured"]) | (selected["kind"] == "random pairs")]
    kinds = list(own["kind"].unique())
    for index, kind in enumerate(kinds):
        change = own.loc[own["kind"] == kind, "change_highest"]
        axes.scatter(np.full(len(change), index), change, color=COLOURS[index], marker=MARKERS[index], alpha=0.7)
    axes.axhline(0, color="0.7", linewidth=1)
    axes.set_xticks(range(len(kinds)), labels=kinds, rotation=30, ha="right")
    axes.set(xlim=(-0.5, len(kinds) - 0.5), title="own score in the highest tenth", ylabel="change, standard deviations")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_curves(axes: Axes, curves: pd.DataFrame, group: str, column: str, title: str) -> None:
    """Draw the mean of a column over numbers of pairs, one line per value of column `group`."""
    for index, (name, rows) in enumerate(curves.groupby(group, sort=False)):
        mean = rows.groupby("k")[column].mean()
        axes.plot(mean.index, mean, color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)], label=name)
    axes.axhline(0.5, color="0.7", linewidth=1)
    axes.set(xscale="log", ylim=(-0.02, 1.02), xlabel="pairs at their mean", title=title)
    remove_box(axes)
    axes.legend(frameon=False)
