"""Figures and elements that several analyses use, and a function that saves figures. The same input gives the same bytes."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which most colour-blind readers can distinguish, ordered so that neighbours contrast
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#7F7F7F", "#000000", "#F0E442")
MARKERS = "osD^vP*Xh<>"
_LONGEST = 60  # characters of a name
_FEW = 4  # up to this many methods are drawn as bars, more as dots


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG for any suffix of the path. The file contains no date and no library version."""
    figure.savefig(path, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})


def plain(text: str) -> str:
    """Return a text of the user's for a figure: at most 60 characters, with dollar signs that start no formula."""
    return (text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…").replace("$", r"\$")


def per_class_bars(table: pd.DataFrame) -> Figure:
    """Draw the IoU of each class by method. Classes are sorted by their mean over methods, best first.

    table: columns method, class and iou, one row per method and class. An iou of NaN means that the class occurs neither in the
    masks nor in the label maps.
    """
    wide = table.pivot(index="class", columns="method", values="iou")[list(table["method"].unique())]
    wide = wide.loc[wide.mean(axis=1).sort_values(na_position="first", kind="stable").index]
    few = len(wide.columns) <= _FEW
    height = 0.12 + (0.09 + 0.13 * len(wide.columns) if few else 0.26)
    figure = Figure(figsize=(8, 1.4 + height * len(wide)), layout="constrained")
    axes = figure.add_subplot()
    rows = np.arange(len(wide))
    if not few:
        axes.hlines(rows, wide.min(axis=1), wide.max(axis=1), color="0.85", zorder=1)
    for index, method in enumerate(wide.columns):
        label = f"{method}  ({wide[method].mean():.3f})"
        colour = COLOURS[index % len(COLOURS)]
        if few:
            thickness = 0.8 / len(wide.columns)
            axes.barh(rows + 0.4 - thickness * (index + 0.5), wide[method], thickness, color=colour, label=label)
        else:
            marker = MARKERS[index % len(MARKERS)]
            axes.scatter(wide[method], rows, s=34, color=colour, marker=marker, label=label, zorder=2, alpha=0.9)
    axes.set(yticks=rows, yticklabels=map(plain, wide.index), xlim=(0, 1), ylim=(-0.7, len(wide) - 0.3), xlabel="IoU")
    remove_box(axes)
    axes.legend(title="method (mIoU)", loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure


def accuracy_curves(
    table: pd.DataFrame, x: str, group: str, label: str, log: bool = True, control: str | None = None
) -> Figure:
    """Draw zero-shot accuracy with its interval, average precision and the share of variance explained, against column x.

    Each value of column group has a colour. Each value of column control, if given, has a line style, so that a curve and its
    controls share a colour. Rows with the same x, group and control (random draws) are averaged. Without attributes, the panel
    of average precision is left out.
    """
    shown = {name: title for name, title in _PANELS.items() if table[name].notna().any()}
    keys = [group] if control is None else [group, control]
    colours = {value: (COLOURS[index], MARKERS[index]) for index, value in enumerate(table[group].unique())}
    styles = {value: _STYLES[index] for index, value in enumerate([] if control is None else table[control].unique())}
    figure = Figure(figsize=(4.2 * len(shown) + 1.8, 4), layout="constrained")
    panels = dict(zip(shown, figure.subplots(1, len(shown)), strict=True))
    for names, rows in table.groupby(keys, sort=False):
        mean = rows.groupby(x)[[*shown, "accuracy_low", "accuracy_high"]].mean()
        colour, marker = colours[names[0]]
        style = {"color": colour, "marker": marker, "linestyle": styles.get(names[-1], "-"), "label": ", ".join(names)}
        panels["accuracy"].fill_between(mean.index, mean["accuracy_low"], mean["accuracy_high"], color=colour, alpha=0.1)
        for name, axes in panels.items():
            axes.plot(mean.index, mean[name], **style)
    for name, axes in panels.items():
        axes.set(xlabel=label, title=shown[name], ylim=(-0.05, 1.05))
        if log:
            axes.set_xscale("log")
        remove_box(axes)
    figure.legend(handles=panels["accuracy"].get_lines(), loc="outside right center", frameon=False, handlelength=3.2)
    return figure


_PANELS = {
    "accuracy": "zero-shot accuracy",
    "average_precision": "mean average precision",
    "explained": "share of the embedding's variance",
}
_STYLES = ("-", "--", ":", "-.")


def remove_box(axes: Axes) -> None:
    """Hide the top and right edges and draw light vertical grid lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
