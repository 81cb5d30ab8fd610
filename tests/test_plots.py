import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nadpipe import plots


def scores(methods, classes):
    iou = np.linspace(0.1, 0.9, len(methods) * len(classes))
    names = [(method, name) for method in methods for name in classes]
    return pd.DataFrame(names, columns=["method", "class"]).assign(iou=iou)


@pytest.mark.parametrize("methods", [["nad"], ["nad", "sclip", "maskclip"], [f"m{at}" for at in range(11)]])
def test_classes_are_sorted_and_methods_named_with_their_miou(methods):
    table = scores(methods, ["sky", "fish", "ball"])
    table.loc[table["class"] == "fish", "iou"] = np.nan  # on neither side
    figure = plots.per_class_bars(table)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["fish", "sky", "ball"]  # from below
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    means = table.groupby("method")["iou"].mean()
    assert shown == [f"{method}  ({means[method]:.3f})" for method in methods]


def test_many_classes_fit_one_figure(tmp_path):
    figure = plots.per_class_bars(scores(["nad", "sclip"], [f"class {at}" for at in range(171)]))
    plots.save(figure, tmp_path / "plot.partial")
    with Image.open(tmp_path / "plot.partial") as image:
        assert image.format == "PNG"
        assert image.height > 171 * 15


def test_the_strongest_token_and_the_neurons_behind_it_are_marked(tmp_path):
    attention = np.full((3, 4), 0.01)
    attention[2, 1] = 0.3
    neurons = pd.DataFrame({"index": range(50), "attention_drop": np.r_[0.001 * np.arange(49), 0.2]})
    figure = plots.register_plot(attention, neurons, sink=9)
    left, middle = figure.axes[:2]
    assert left.get_title() == "mean attention, attention sink: token 9"
    assert left.patches[0].get_xy() == (0.5, 1.5)
    assert [label.get_text() for label in middle.get_yticklabels()][-2:] == ["48", "49"]  # largest on top
    assert len(middle.patches) == 20
    assert "no attention sink; strongest" in plots.register_plot(attention, neurons, None).axes[0].get_title()
    for name in ("a.png", "b.png"):
        plots.save(plots.register_plot(attention, neurons, sink=9), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
