"""Figures: what the tables hold, to look at. The same input gives the same bytes."""

from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

# Okabe and Ito's colours, which most colour-blind readers tell apart, in an order that sets neighbours off
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#7F7F7F", "#000000", "#F0E442")
MARKERS = "osD^vP*Xh<>"
_FEW = 4  # methods that are drawn as bars; more as dots on a line a class
_TOP = 20  # neurons that are named


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whatever the name ends in, without a date or the library's version."""
    figure.savefig(path, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})


def per_class_bars(table: pd.DataFrame) -> Figure:
    """IoU by class and method: columns method, class and iou, one row each (NaN: the class is on neither side).

    Classes are sorted by their mean over methods, best first; the legend has each method's mIoU.
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
    for at, method in enumerate(wide.columns):
        label = f"{method}  ({wide[method].mean():.3f})"
        colour = COLOURS[at % len(COLOURS)]
        if few:
            thickness = 0.8 / len(wide.columns)
            place = rows + 0.4 - thickness * (at + 0.5)
            axes.barh(place, wide[method], thickness, color=colour, label=label)
        else:
            marker = MARKERS[at % len(MARKERS)]
            axes.scatter(wide[method], rows, s=34, color=colour, marker=marker, label=label, zorder=2, alpha=0.9)
    axes.set(yticks=rows, yticklabels=wide.index, xlim=(0, 1), ylim=(-0.7, len(wide) - 0.3), xlabel="IoU")
    _tidy(axes)
    axes.legend(title="method (mIoU)", loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure


def register_plot(attention: Float[np.ndarray, "row column"], neurons: pd.DataFrame, sink: int | None) -> Figure:
    """Mean attention over the spatial tokens with the sink marked, and the neurons without which its attention falls most.

    neurons: columns index and attention_drop.
    """
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.1, 1.2, 1))
    picture = left.imshow(attention, cmap="viridis", vmin=0)
    strongest = int(attention.argmax())
    row, column = divmod(strongest, attention.shape[1])
    left.add_patch(_frame(column, row))
    state = "attention sink" if sink is not None else "no attention sink; strongest"
    left.set_title(f"mean attention, {state}: token {strongest}", fontsize=10)
    left.set(xlabel="column", ylabel="row")
    figure.colorbar(picture, ax=left, shrink=0.8)
    ranked = neurons.sort_values("attention_drop", ascending=False, kind="stable").reset_index(drop=True)
    top = ranked.head(_TOP)[::-1]
    middle.barh(range(len(top)), top["attention_drop"], color=COLOURS[0])
    middle.set(yticks=range(len(top)), yticklabels=top["index"], ylabel="neuron", xlabel="fall of its attention")
    middle.locator_params(axis="x", nbins=4)
    middle.set_title("neurons that zeroing takes most from it", fontsize=10)
    right.plot(np.arange(1, len(ranked) + 1), ranked["attention_drop"], color=COLOURS[0])
    right.axhline(0, color="0.7", linewidth=0.8)
    right.set(xscale="log", xlabel="neurons by rank", ylabel="fall of its attention")
    right.set_title("all neurons", fontsize=10)
    for axes in (middle, right):
        _tidy(axes)
    return figure


def accuracy_curves(table: pd.DataFrame, over: str, by: str, label: str, log: bool = True) -> Figure:
    """Zero-shot accuracy, with its interval, and share of variance over a column; one line for each value of another, the mean
    over draws where there are several."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for at, (name, part) in enumerate(table.groupby(by, sort=False)):
        mean = part.groupby(over)[["accuracy", "accuracy_low", "accuracy_high", "explained"]].mean()
        style = {"color": COLOURS[at % len(COLOURS)], "marker": MARKERS[at % len(MARKERS)], "label": name}
        panels[0].plot(mean.index, mean["accuracy"], **style)
        panels[0].fill_between(mean.index, mean["accuracy_low"], mean["accuracy_high"], color=style["color"], alpha=0.15)
        panels[1].plot(mean.index, mean["explained"], **style)
    for axes, title in zip(panels, ("zero-shot accuracy", "share of the embedding's variance"), strict=True):
        axes.set(xlabel=label, title=title)
        if log:
            axes.set_xscale("log")
        _tidy(axes)
    panels[1].set_ylim(-0.05, 1.05)
    panels[0].legend(frameon=False)
    return figure


def agreement_bars(table: pd.DataFrame) -> Figure:
    """Share of right names by way of naming and share of the pairs, and what chance gives."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    rules = list(table["rule"].unique())
    shares = sorted(table["share"].unique())
    thickness = 0.8 / len(shares)
    for at, share in enumerate(shares):
        part = table[table["share"] == share].set_index("rule").loc[rules]
        place = np.arange(len(rules)) + thickness * (at - (len(shares) - 1) / 2)
        axes.bar(place, part["agreement"], thickness, color=COLOURS[at], label=f"largest {share:.0%} of the pairs")
        axes.hlines(part["chance"], place - thickness / 2, place + thickness / 2, color="black")
    axes.set(ylim=(0, 1), ylabel="share of right names (line: chance)")
    axes.set_xticks(range(len(rules)), labels=rules)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure


def spread_plot(table: pd.DataFrame) -> Figure:
    """Spread of top images: of pairs and neurons as distributions, and of each pair against its neuron."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    pairs = table[table["unit"] == "pair"].dropna(subset="spread")
    bins = np.linspace(0, max(1.0, float(table["spread"].max())) + 1e-6, 41)
    for at, unit in enumerate(("neuron", "pair")):
        left.hist(
            table.loc[table["unit"] == unit, "spread"].dropna(),
            bins,
            density=True,
            histtype="step",
            color=COLOURS[at],
            label=unit,
        )
    left.set(xlabel="spread of the top images", ylabel="density")
    left.legend(frameon=False)
    counts = right.hist2d(pairs["parent_spread"], pairs["spread"], bins=[bins, bins], cmap="Blues", norm="log")[3]
    right.plot(bins[[0, -1]], bins[[0, -1]], color="0.5", linewidth=0.8)
    right.set(xlabel="of the neuron", ylabel="of the pair")
    figure.colorbar(counts, ax=right, label="pairs")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def ablation_matrix(table: pd.DataFrame) -> Figure:
    """Change of each concept's score (columns) without the pairs of each concept (rows), random pairs below."""
    wide = table.pivot(index="ablated", columns="measured", values="change")
    wide = wide.loc[list(table["ablated"].unique()), list(table["measured"].unique())]
    figure = Figure(figsize=(2.5 + 0.6 * wide.shape[1], 1.6 + 0.4 * len(wide)), layout="constrained")
    axes = figure.add_subplot()
    most = max(float(np.nanmax(np.abs(wide.to_numpy()))), 1e-9)
    picture = axes.imshow(wide, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    axes.set(xticks=range(wide.shape[1]), yticks=range(len(wide)), yticklabels=wide.index)
    axes.set_xticks(range(wide.shape[1]), labels=wide.columns, rotation=45, ha="right")
    axes.set(xlabel="concept measured", ylabel="pairs at their mean")
    for row, values in enumerate(wide.to_numpy()):
        for column, value in enumerate(values):
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8)
    figure.colorbar(picture, ax=axes, label="change of the score, standard deviations")
    return figure


def _frame(column: int, row: int) -> Rectangle:
    return Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=COLOURS[3], linewidth=2.5)


def _tidy(axes: Axes) -> None:
    """No box, a light grid along the values."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
