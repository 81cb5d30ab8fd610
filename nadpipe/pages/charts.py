"""Charts of the report: Vega-Lite specifications with their data, made from tables."""

from typing import Any

import altair as alt
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

Chart = dict[str, Any]  # a Vega-Lite specification

_TALL = 260
_VIRIDIS = alt.Scale(scheme="viridis")


def explained_chart(units: dict[str, pd.DataFrame]) -> Chart:
    """Return bars of the mean share of a unit's centred energy that each of its first directions explains.

    units: a table per kind of unit, with the column explained, or explained_1, explained_2, …. Missing values (units that do
    not vary) are left out.
    """
    rows = [
        {
            "unit": unit,
            "direction": int(column.removeprefix("explained_")) if "_" in column else 1,
            "share": table[column].mean(),
        }
        for unit, table in units.items()
        for column in table
        if column.startswith("explained")
    ]
    bars = alt.Chart(pd.DataFrame(rows)).mark_bar()
    return _spec(
        bars.encode(
            x=alt.X(
                "sum(share):Q", title="share of energy explained", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%")
            ),
            y=alt.Y("unit:N", title=None, sort=list(units)),
            color=alt.Color("direction:O", title="direction", scale=alt.Scale(scheme="blues", reverse=True)),
            order="direction:O",
            tooltip=["unit", "direction", alt.Tooltip("share:Q", format=".1%")],
        ),
        height=120,
    )


def accuracy_chart(table: pd.DataFrame, x: str, group: str, title: str, log: bool) -> Chart:
    """Return lines of zero-shot accuracy with its interval against column x, one line per value of column group.

    Rows with the same x and group (random draws) are averaged.
    """
    values = table.groupby([group, x], observed=True)[["accuracy", "accuracy_low", "accuracy_high"]].mean().reset_index()
    selected, scale = alt.selection_point(fields=[group], bind="legend"), alt.Scale(type="log" if log else "linear")
    base = alt.Chart(values).encode(
        x=alt.X(f"{x}:Q", title=title, scale=scale, axis=alt.Axis(format="~%") if log else alt.Axis(tickMinStep=1)),
        color=alt.Color(f"{group}:N", title=group),
        opacity=alt.when(selected).then(alt.value(1)).otherwise(alt.value(0.15)),
        tooltip=[group, x, *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("accuracy", "accuracy_low", "accuracy_high"))],
    )
    accuracy = alt.Y("accuracy:Q", title="zero-shot accuracy", scale=alt.Scale(domain=[0, 1]))
    band = base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("accuracy_low:Q"), y2="accuracy_high:Q")
    return _spec((band + base.mark_line(point=True).encode(y=accuracy)).add_params(selected), height=_TALL)


def miou_chart(table: pd.DataFrame) -> Chart:
    """Return the mIoU of each method with its interval."""
    base = alt.Chart(table).encode(
        y=alt.Y("name:N", title=None, sort=None),
        tooltip=["dataset", "name", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("miou", "miou_low", "miou_high"))],
    )
    miou = alt.X("miou:Q", title="mIoU", scale=alt.Scale(zero=False))
    bars = base.mark_rule(strokeWidth=3, opacity=0.5).encode(x=alt.X("miou_low:Q", title="mIoU"), x2="miou_high:Q")
    return _spec(bars + base.mark_point(filled=True, opacity=1, size=70).encode(x=miou), height=28 * table["name"].nunique())


def per_class_chart(table: pd.DataFrame) -> Chart:
    """Return the IoU of each class by method. Classes are sorted by their best IoU."""
    selected = alt.selection_point(fields=["name"], bind="legend")
    order = table.groupby("class", observed=True)["iou"].max().sort_values(ascending=False).index.tolist()
    points = alt.Chart(table).mark_point(filled=True, size=60)
    return _spec(
        points.encode(
            x=alt.X("iou:Q", title="IoU", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("class:N", title=None, sort=order),
            color=alt.Color("name:N", title="method"),
            shape=alt.Shape("name:N", title="method"),
            opacity=alt.when(selected).then(alt.value(1)).otherwise(alt.value(0.06)),
            tooltip=["class", "name", alt.Tooltip("iou:Q", format=".3f"), alt.Tooltip("accuracy:Q", format=".3f"), "pixels:Q"],
        ).add_params(selected),
        height=24 * len(order),
    )


def shift_chart(table: pd.DataFrame) -> Chart:
    """Return the mean score of each concept with its interval, over the groups in the table's order."""
    selected = alt.selection_point(fields=["concept"], bind="legend")
    base = alt.Chart(table).encode(
        x=alt.X("group:N", title="group", sort=None),
        color=alt.Color("concept:N"),
        opacity=alt.when(selected).then(alt.value(1)).otherwise(alt.value(0.1)),
        tooltip=[
            *("concept", "group", "n:Q"),
            *(alt.Tooltip(f"{name}:Q", format=".3g") for name in ("mean", "mean_low", "mean_high", "effect", "q")),
        ],
    )
    rule = base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("mean_low:Q", title="mean score"), y2="mean_high:Q")
    return _spec((rule + base.mark_line(point=True).encode(y="mean:Q")).add_params(selected), height=_TALL)


def attention_chart(attention: Float[ndarray, "row column"], sink: int | None) -> Chart:
    """Return a map of the mean attention of the spatial tokens, with the attention sink framed."""
    rows, columns = attention.shape
    table = pd.DataFrame(
        [
            {"row": row, "column": column, "token": row * columns + column, "attention": float(attention[row, column])}
            for row in range(rows)
            for column in range(columns)
        ]
    )
    base = alt.Chart(table).encode(
        x=alt.X("column:O", axis=alt.Axis(labelAngle=0)),
        y="row:O",
        tooltip=["token", alt.Tooltip("attention:Q", format=".4f")],
    )
    heatmap = base.mark_rect().encode(
        color=alt.Color("attention:Q", title="mean attention", scale=_VIRIDIS, legend=alt.Legend(orient="bottom"))
    )
    frame = base.transform_filter(alt.datum.token == (-1 if sink is None else sink)).mark_rect(
        fillOpacity=0, stroke="#d33", strokeWidth=3
    )
    return _spec(heatmap + frame, height=_TALL, width=_TALL)


def _spec(chart: alt.TopLevelMixin, height: int, width: int | str = "container") -> Chart:
    """Return a chart's specification. The width "container" stands for that of the page."""
    return chart.properties(width=width, height=height).to_dict()
