import importlib
import pkgutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nadpipe.analyses import PLOTTED, final_plots
from nadpipe.cli import main
from nadpipe.errors import BAD_INPUT
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


def test_naming_draws_pairs_beside_controls_with_intervals():
    keys = [("pairs", "nearest"), ("pairs", "correlated"), ("random sums", "correlated")]
    rows = [{"units": units, "rule": rule, "share": share} for units, rule in keys for share in (0.1, 1.0)]
    table = pd.DataFrame(rows).assign(agreement=[0.2, 0.3, 0.6, 0.7, 0.4, 0.5])
    small, every = naming.draw(table.assign(agreement_low=0.1, agreement_high=0.8)).axes
    assert [axes.get_title() for axes in (small, every)] == ["largest 10%", "largest 100%"]
    heights = [
        [round(bar.get_height(), 6) for bar in axes.patches if not np.isnan(bar.get_height())] for axes in (small, every)
    ]
    assert heights == [[0.2, 0.6, 0.4], [0.3, 0.7, 0.5]]
    assert [text.get_text() for text in every.get_legend().get_texts()] == ["pairs", "random sums"]
    low, high = small.containers[0].lines[2][0].get_segments()[0]
    assert [low[1], high[1]] == pytest.approx([0.1, 0.8])


def faithfulness_table():
    names = ("sky", "ball", "random pairs 1", "random mixture 1")
    rows = [{"rule": "selected", "ablated": name, "measured": other} for name in names[:3] for other in names[:2]]
    rows += [{"rule": "selected", "ablated": names[3], "measured": names[3]}]
    rows += [{"rule": "effect", "ablated": name, "measured": name} for name in (*names[:2], names[3]) for _ in range(2)]
    changes = [-2.0, 0.1, 0.2, -3.0, 0.0, 0.3, -0.5]
    aurocs = {"auroc_ablated": [0.9, 0.4, 0.7, 0.2, np.nan, np.nan], "auroc_highest": [0.9, 0.5, 0.9, 0.3, 0.8, 0.1]}
    table = pd.DataFrame(rows).assign(k=[3] * 7 + [1, 10] * 3, change_highest=changes + [np.nan] * 6)
    return table.assign(**{name: [np.nan] * 7 + values for name, values in aurocs.items()})


def test_faithfulness_keeps_the_order_of_concepts_and_draws_controls_beside_them():
    matrix, kinds, by_rule, by_kind, _ = faithfulness.draw(faithfulness_table()).axes
    assert [label.get_text() for label in matrix.get_yticklabels()] == ["sky", "ball", "random pairs 1"]
    assert [label.get_text() for label in matrix.get_xticklabels()] == ["sky", "ball"]
    assert [text.get_text() for text in matrix.texts] == ["-2.0", "0.1", "0.2", "-3.0", "0.0", "0.3"]
    drawn = [points.get_offsets()[:, 1].tolist() for points in kinds.collections]
    assert drawn == [[-2.0, -3.0], [0.0, 0.3], [-0.5]]
    assert [label.get_text() for label in kinds.get_xticklabels()] == ["concept", "random pairs", "random mixture"]
    assert {line.get_label(): line.get_ydata().round(6).tolist() for line in by_rule.lines[:-1]} == {"effect": [0.8, 0.3]}
    curves = {line.get_label(): line.get_ydata().round(6).tolist() for line in by_kind.lines[:-1]}
    assert curves == {"concept": [0.9, 0.4], "random mixture": [0.8, 0.1]}


def test_faithfulness_without_labels_draws_the_highest_scoring_tenth():
    by_rule = faithfulness.draw(faithfulness_table().assign(auroc_ablated=np.nan)).axes[2]
    assert by_rule.get_title() == "AUROC of the highest tenth, mean of the concepts"
    assert by_rule.lines[0].get_ydata().round(6).tolist() == [0.9, 0.4]


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
        figure = importlib.import_module(f"nadpipe.pages.figures.{name}")
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
    assert main(["plot-table", "--name", "sparse", *files]) == BAD_INPUT
    assert "use one of faithfulness, ledger, naming" in capsys.readouterr().err
    assert main(["plot-table", "--name", "naming", *files]) == BAD_INPUT
    assert "columns units, rule, " in capsys.readouterr().err
