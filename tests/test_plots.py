import pkgutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nadpipe.analyses import PLOTTED, final_plots
from nadpipe.cli import main
from nadpipe.pages import figures, plots
from nadpipe.pages.figures import faithfulness, naming, polysemanticity, reconstruction, registers, sparse_text, sparsity
from nadpipe.store.kinds.analyses import SPARSITY
from nadpipe.store.tables import write_csv


def scores(methods, classes):
    iou = np.linspace(0.1, 0.9, len(methods) * len(classes))
    names = [(method, name) for method in methods for name in classes]
    return pd.DataFrame(names, columns=["method", "class"]).assign(iou=iou)


@pytest.mark.parametrize("methods", [["nad"], ["nad", "sclip", "maskclip"], [f"m{number}" for number in range(11)]])
def test_classes_are_sorted_and_methods_named_with_their_miou(methods):
    table = scores(methods, ["sky", "fish", "ball"])
    table.loc[table["class"] == "fish", "iou"] = np.nan  # in neither masks nor label maps
    figure = plots.per_class_bars(table)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["fish", "sky", "ball"]  # from below
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    means = table.groupby("method")["iou"].mean()
    assert shown == [f"{method}  ({means[method]:.3f})" for method in methods]


def test_many_classes_fit_one_figure(tmp_path):
    figure = plots.per_class_bars(scores(["nad", "sclip"], [f"class {number}" for number in range(171)]))
    plots.save(figure, tmp_path / "plot.partial")
    with Image.open(tmp_path / "plot.partial") as image:
        assert image.format == "PNG"
        assert image.height > 171 * 15


def registers_table(sink):
    attention = np.full(16, 0.01)
    attention[9] = 0.3
    tokens = pd.DataFrame({"kind": "token", "index": range(16), "attention": attention})
    tokens["sink"] = tokens["index"] == sink
    neurons = pd.DataFrame({"kind": "neuron", "index": range(50), "attention_drop": np.r_[0.001 * np.arange(49), 0.2]})
    neurons["token"], neurons["rank"] = 9, range(50, 0, -1)
    return pd.concat([tokens, neurons], ignore_index=True)


def test_registers_mark_the_strongest_token_and_its_neurons(tmp_path):
    left, middle = registers.draw(registers_table(9)).axes[:2]
    assert left.get_title() == "mean attention, attention sink: token 9"
    assert left.patches[0].get_xy() == (0.5, 1.5)
    assert [label.get_text() for label in middle.get_yticklabels()][-2:] == ["48", "49"]  # largest on top
    assert len(middle.patches) == 20
    assert "no attention sink; strongest" in registers.draw(registers_table(None)).axes[0].get_title()
    for name in ("a.png", "b.png"):
        plots.save(registers.draw(registers_table(9)), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def fidelity(rows, **columns):
    """Return a table with one row per combination of values in rows, and made-up accuracies."""
    table = pd.DataFrame(rows).assign(**columns)
    table["accuracy"] = np.linspace(0.2, 0.8, len(table))
    ends = {"accuracy_low": table["accuracy"] - 0.1, "accuracy_high": table["accuracy"] + 0.1}
    return table.assign(**ends, explained=0.5, average_precision=0.7)


def lines(figure):
    """Return the points of each line of the left panel by its label."""
    return {line.get_label(): line.get_xydata().round(3).tolist() for line in figure.axes[0].get_lines()}


def test_sparsity_averages_draws_and_has_one_line_per_ranking_and_unit():
    rows = [
        {"unit": unit, "kept": kept, "draw": draw, "share": share}
        for unit in ("pair", "neuron")
        for kept, draw in (("top", 0), ("random", 1), ("random", 2))
        for share in (0.1, 1.0)
    ]
    table = fidelity(rows)
    drawn = lines(sparsity.draw(table))
    assert list(drawn) == ["pairs, top", "pairs, random", "neurons, top", "neurons, random"]
    random = table.query("unit == 'pair' and kept == 'random'").groupby("share")["accuracy"].mean()
    assert drawn["pairs, random"] == [[share, round(accuracy, 3)] for share, accuracy in random.items()]


def test_curves_over_counts_leave_out_zero():
    table = fidelity([{"unit": unit, "components": count} for unit in ("pair", "head") for count in (0, 1, 2)])
    drawn = lines(reconstruction.draw(table))
    assert list(drawn) == ["pair", "head"]
    assert [[count for count, _ in points] for points in drawn.values()] == [[1, 2], [1, 2]]


def test_codes_are_drawn_beside_codes_over_random_atoms_of_the_same_units():
    variants = [("pair", "texts", 0, 900), ("pair", "texts", 0, 400)]
    variants += [("pair", "random", draw, 400) for draw in (1, 2)]
    variants += [("head", "texts", 0, 12), ("head", "random", 1, 12)]
    names = ("unit", "dictionary", "draw", "units")
    rows = [dict(zip(names, variant, strict=True)) | {"atoms": atoms} for variant in variants for atoms in (0, 1, 2)]
    figure = sparse_text.draw(fidelity(rows))
    drawn = lines(figure)
    assert list(drawn) == [
        "pair, texts",
        "pair, texts, largest 400",
        "pair, random atoms, largest 400",
        "head, texts",
        "head, random atoms",
    ]
    assert all([count for count, _ in points] == [1, 2] for points in drawn.values())
    shown = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in figure.axes[0].get_lines()}
    assert len(set(shown.values())) == 5
    assert shown["pair, texts"][0] == shown["pair, random atoms, largest 400"][0] != shown["head, texts"][0]
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == list(drawn)


def test_average_precision_has_a_panel_if_there_are_attributes():
    table = fidelity([{"unit": "pair", "components": count} for count in (1, 2)])
    titles = ["zero-shot accuracy", "mean average precision", "share of the embedding's variance"]
    assert [axes.get_title() for axes in reconstruction.draw(table).axes] == titles
    without = reconstruction.draw(table.assign(average_precision=np.nan))
    assert [axes.get_title() for axes in without.axes] == [titles[0], titles[2]]


def test_naming_draws_agreement_and_chance():
    rows = [{"rule": rule, "share": share} for rule in ("nearest", "correlated") for share in (0.1, 1.0)]
    table = pd.DataFrame(rows).assign(agreement=[0.2, 0.3, 0.6, 0.7], chance=0.1)
    axes = naming.draw(table).axes[0]
    assert [bar.get_height() for bar in axes.patches] == [0.2, 0.6, 0.3, 0.7]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "largest 10% of the pairs",
        "largest 100% of the pairs",
    ]


def test_faithfulness_keeps_the_order_of_concepts():
    names = ("sky", "ball", "random 1")
    table = pd.DataFrame([{"ablated": ablated, "measured": measured} for ablated in names for measured in names[:2]])
    axes = faithfulness.draw(table.assign(change=[-2.0, 0.1, 0.2, -3.0, 0.0, 0.3])).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(names)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["sky", "ball"]
    assert [text.get_text() for text in axes.texts] == ["-2.0", "0.1", "0.2", "-3.0", "0.0", "0.3"]


def test_polysemanticity_leaves_out_units_that_do_not_vary():
    neurons = pd.DataFrame({"unit": "neuron", "spread": [0.5, 0.7], "parent_spread": np.nan})
    pairs = pd.DataFrame({"unit": "pair", "spread": [0.2, 0.4, np.nan], "parent_spread": [0.5, 0.7, np.nan]})
    figure = polysemanticity.draw(pd.concat([neurons, pairs], ignore_index=True))
    counts = figure.axes[1].collections[0].get_array()
    assert counts.sum() == 2


def test_every_figure_plots_the_final_table_of_its_name():
    modules = [module.name for module in pkgutil.iter_modules(figures.__path__)]
    assert sorted(PLOTTED) == sorted(modules)
    for name, path in PLOTTED.items():
        figure = getattr(figures, name)
        assert (figure.KIND.name, figure.KIND.path) == (name, path)
    assert final_plots() == [f"results/{name}.png" for name in PLOTTED]


def test_the_command_draws_a_table_and_names_the_figures(tmp_path, capsys):
    rows = [{"unit": "pair", "kept": "top", "draw": 0, "share": share} for share in (0.1, 1.0)]
    counts = {"images": 3, "classes": 2, "attributes": 1}
    table = fidelity(rows, dataset="d", pairs=1, energy=0.5, relative_error=0.1, prevalence=0.3, **counts)
    write_csv(tmp_path / "t.csv", SPARSITY, table)
    files = ["--table", str(tmp_path / "t.csv"), "--output", str(tmp_path / "p.png")]
    assert main(["plot-table", "--name", "sparsity", *files]) == 0
    plots.save(sparsity.draw(pd.read_csv(tmp_path / "t.csv")), tmp_path / "expected.png")
    assert (tmp_path / "p.png").read_bytes() == (tmp_path / "expected.png").read_bytes()
    assert main(["plot-table", "--name", "sparse", *files]) == 1
    assert "use one of faithfulness, naming" in capsys.readouterr().err
    assert main(["plot-table", "--name", "naming", *files]) == 1
    assert "columns rule, " in capsys.readouterr().err
