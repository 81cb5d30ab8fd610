"""The report's charts: from tables to Vega-Lite specifications, numbers and words alone, no files."""

from typing import Any

import altair as alt
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

_TALL = 260
_VIRIDIS = alt.Scale(scheme="viridis")


def explained_chart(units: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Mean share of a unit's centred energy that its first directions explain, units that vary alone.

    units: by kind, columns explained, or explained_1, explained_2, ….
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


def accuracy_chart(table: pd.DataFrame, over: str, by: str, title: str, log: bool) -> dict[str, Any]:
    """Zero-shot accuracy with its interval over a number, one line for each value of `by`; several draws as their mean."""
    values = table.groupby([by, over], observed=True)[["accuracy", "accuracy_low", "accuracy_high"]].mean().reset_index()
    chosen, scale = alt.selection_point(fields=[by], bind="legend"), alt.Scale(type="log" if log else "linear")
    base = alt.Chart(values).encode(
        x=alt.X(f"{over}:Q", title=title, scale=scale, axis=alt.Axis(format="~%") if log else alt.Axis(tickMinStep=1)),
        color=alt.Color(f"{by}:N", title=by),
        opacity=alt.when(chosen).then(alt.value(1)).otherwise(alt.value(0.15)),
        tooltip=[by, over, *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("accuracy", "accuracy_low", "accuracy_high"))],
    )
    accuracy = alt.Y("accuracy:Q", title="zero-shot accuracy", scale=alt.Scale(domain=[0, 1]))
    band = base.mark_rule(strokeWidth=4, strokeOpacity=0.35).encode(y=alt.Y("accuracy_low:Q"), y2="accuracy_high:Q")
    return _spec((band + base.mark_line(point=True).encode(y=accuracy)).add_params(chosen), height=_TALL)


def miou_chart(table: pd.DataFrame) -> dict[str, Any]:
    """mIoU of each method with its interval, one row of the chart for each data set."""
    base = alt.Chart(table).encode(
        y=alt.Y("name:N", title=None, sort=None),
        tooltip=["dataset", "name", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("miou", "miou_low", "miou_high"))],
    )
    at = alt.X("miou:Q", title="mIoU", scale=alt.Scale(zero=False))
    bars = base.mark_rule(strokeWidth=3, opacity=0.5).encode(x=alt.X("miou_low:Q", title="mIoU"), x2="miou_high:Q")
    return _spec(bars + base.mark_point(filled=True, size=70).encode(x=at), height=28 * table["name"].nunique())


def per_class_chart(table: pd.DataFrame) -> dict[str, Any]:
    """IoU of each class by every method, classes by their best IoU."""
    chosen = alt.selection_point(fields=["name"], bind="legend")
    order = table.groupby("class", observed=True)["iou"].max().sort_values(ascending=False).index.tolist()
    points = alt.Chart(table).mark_point(filled=True, size=60)
    return _spec(
        points.encode(
            x=alt.X("iou:Q", title="IoU", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("class:N", title=None, sort=order),
            color=alt.Color("name:N", title="method"),
            shape=alt.Shape("name:N", title="method"),
            opacity=alt.when(chosen).then(alt.value(1)).otherwise(alt.value(0.06)),
            tooltip=["class", "name", alt.Tooltip("iou:Q", format=".3f"), alt.Tooltip("accuracy:Q", format=".3f"), "pixels:Q"],
        ).add_params(chosen),
        height=24 * len(order),
    )


def shift_chart(table: pd.DataFrame) -> dict[str, Any]:
    """Mean score of each concept over the groups, in their order, with its interval."""
    chosen = alt.selection_point(fields=["concept"], bind="legend")
    base = alt.Chart(table).encode(
        x=alt.X("group:N", title="group", sort=None),
        color=alt.Color("concept:N"),
        opacity=alt.when(chosen).then(alt.value(1)).otherwise(alt.value(0.1)),
        tooltip=[
            *("concept", "group", "n:Q"),
            *(alt.Tooltip(f"{name}:Q", format=".3g") for name in ("mean", "mean_low", "mean_high", "effect", "q")),
        ],
    )
    rule = base.mark_rule(strokeWidth=4, strokeOpacity=0.4).encode(y=alt.Y("mean_low:Q", title="mean score"), y2="mean_high:Q")
    return _spec((rule + base.mark_line(point=True).encode(y="mean:Q")).add_params(chosen), height=_TALL)


def attention_chart(attention: Float[ndarray, "row column"], sink: int | None) -> dict[str, Any]:
    """Mean attention of every spatial token where it lies in the image; the sink, if there is one, framed."""
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
    picture = base.mark_rect().encode(
        color=alt.Color("attention:Q", title="mean attention", scale=_VIRIDIS, legend=alt.Legend(orient="bottom"))
    )
    frame = base.transform_filter(alt.datum.token == (-1 if sink is None else sink)).mark_rect(
        fillOpacity=0, stroke="#d33", strokeWidth=3
    )
    return _spec(picture + frame, height=_TALL, width=_TALL)


def _spec(chart: alt.TopLevelMixin, height: int, width: int | str = "container") -> dict[str, Any]:
    """The specification, with its data, in the width of the page."""
    return chart.properties(width=width, height=height).to_dict()
