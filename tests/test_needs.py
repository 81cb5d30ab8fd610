"""A config shows which results it cannot give, and which key would give them."""

import pandas as pd
import pytest

from nadpipe.analyses import final_tables, needs_of
from nadpipe.config import check
from nadpipe.needs import missing_masks, missing_needs

MODEL = {"architecture": "RN50", "pretrained": "openai"}


def missing(tmp_path, monkeypatch, datasets, **sections):
    """Return the missing needs of a config with a tree of photographs as `discovery`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir(exist_ok=True)
    discovery = {"layout": "tree", "path": "photos"}
    return missing_needs(check({"model": MODEL, "datasets": {"discovery": discovery, **datasets}, **sections}))


def test_a_folder_of_images_alone_lacks_everything_else(tmp_path, monkeypatch):
    assert missing(tmp_path, monkeypatch, {}) == {
        "segmentation": "segmentation.datasets: empty; list data sets to segment",
        "concepts": "shift.concepts: empty; list texts to score",
        "groups": "datasets.monitoring: missing; add a data set whose images have groups",
        "analyses": "analyses.dataset: not set; name a data set",
        "labels": "analyses.dataset: not set; name a data set with labels",
        "attributes": "analyses.dataset: not set; name a data set with 0/1 columns",
    }


def test_folders_of_a_tree_are_groups_and_labels(tmp_path, monkeypatch):
    sections = {"shift": {"concepts": ["cat"]}, "analyses": {"dataset": "monitoring"}}
    tree = {"monitoring": {"layout": "tree", "path": "photos"}}
    flat = missing(tmp_path, monkeypatch, tree, **sections)
    assert flat == {
        "segmentation": "segmentation.datasets: empty; list data sets to segment",
        "groups": "datasets.monitoring.path: photos has no folders with images, which would be the groups",
        "labels": "datasets.monitoring.path: photos has no folders with images, which would be the labels",
        "attributes": "datasets.monitoring.labels: not set; give a CSV file with 0/1 columns",
    }

    def lacking(*images):
        for path in images:
            (tmp_path / "photos" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "photos" / path).touch()
        found = missing(tmp_path, monkeypatch, tree, **sections)
        return {need: found[need].split("path: ")[1] for need in ("groups", "labels") if need in found}

    assert lacking("2025/notes.txt", "2024/cat/a.JPG") == {
        "groups": "photos gives only 2024 as groups; at least two are needed",
        "labels": "photos gives only cat as labels; at least two are needed",
    }
    assert lacking("2024/dog/b.png") == {"groups": "photos gives only 2024 as groups; at least two are needed"}
    assert lacking("2025/cat/c.png") == {}
    assert lacking("d.png") == {"groups": "photos/d.png is in no folder, which would be its group; move it to one"}


@pytest.mark.parametrize(
    ("keys", "lacking"),
    [
        ({}, {"groups": "group_column", "labels": "label_column"}),
        ({"group_column": "year"}, {"labels": "label_column"}),
        ({"group_column": "year", "label_column": "kind"}, {}),
    ],
)
def test_columns_of_a_table_are_named(tmp_path, monkeypatch, keys, lacking):
    (tmp_path / "t.csv").write_text("path,year,kind,fish\n1.png,2020,a,0\n2.png,2021,b,0\n")
    table = {"monitoring": {"layout": "table", "path": "t.csv", **keys}}
    found = missing(tmp_path, monkeypatch, table, analyses={"dataset": "monitoring"})
    assert {need: found[need] for need in ("groups", "labels") if need in found} == {
        need: f"datasets.monitoring.{key}: not set; name the column with the {need}" for need, key in lacking.items()
    }
    assert "attributes" not in found


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("years", "kinds", "lacking"),
    [
        (["2020", "2021"], ["a", "b"], {}),
        (
            ["2020", "2020"],
            ["a", "b"],
            {"groups": "group_column: column year of t gives only 2020 as groups; at least two are"},
        ),
        (["2020", None], ["a", "b"], {"groups": "group_column: column year of t is empty in row 2; fill it"}),
        (["2020", "2021"], ["a", None], {"labels": "label_column: column kind of t gives only a as labels; at least two are"}),
        (["2020", "2021"], [None, None], {"labels": "label_column: column kind of t gives none as labels; at least two are"}),
    ],
)
def test_columns_without_two_values_are_known(tmp_path, monkeypatch, form, years, kinds, lacking):
    table = pd.DataFrame({"path": ["1.png", "2.png"], "year": years, "kind": kinds, "fish": [0, 1]})
    path = tmp_path / f"t.{form}"
    table.to_csv(path, index=False) if form == "csv" else table.to_parquet(path)
    keys = {"layout": "table", "path": path.name, "group_column": "year", "label_column": "kind"}
    found = missing(tmp_path, monkeypatch, {"monitoring": keys}, analyses={"dataset": "monitoring"})
    expected = {need: f"datasets.monitoring.{text.replace(' of t ', f' of {path.name} ')}" for need, text in lacking.items()}
    assert found.keys() - {"segmentation", "concepts"} == expected.keys()
    assert all(found[need].startswith(text) for need, text in expected.items())


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("column", "lacks"), [([0, 1], False), ([True, False], False), ([0.0, 1.0], False), ([0, 2], True), ([0, None], True)]
)
def test_a_table_needs_a_column_of_0_and_1_for_attributes(tmp_path, monkeypatch, form, column, lacks):
    table = pd.DataFrame({"path": ["1.png", "2.png"], "kind": ["a", "b"], "fish": column})
    path = tmp_path / f"t.{form}"
    table.to_csv(path, index=False) if form == "csv" else table.to_parquet(path)
    keys = {"layout": "table", "path": path.name, "label_column": "kind"}
    found = missing(tmp_path, monkeypatch, {"own": keys}, analyses={"dataset": "own"})
    assert ("attributes" in found) == lacks
    if lacks:
        assert found["attributes"].startswith(f"datasets.own.path: t.{form} has no 0/1 column; ")


def test_data_sets_without_masks_are_segmented_but_not_scored(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text("path,mask\n1.png,m.png\n")
    classes = {"classes": ["cat", "dog"]}
    datasets = {
        "tree": {"layout": "tree", "path": "photos", **classes},
        "table": {"layout": "table", "path": "t.csv", **classes},
        "masks": {"layout": "table", "path": "t.csv", "mask_column": "mask", **classes},
    }
    reasons = {
        "tree": "datasets.tree.layout: tree has no masks; use a layout that has them, such as a table",
        "table": "datasets.table.mask_column: not set; name the column with the masks",
    }
    without = missing(tmp_path, monkeypatch, datasets, segmentation={"datasets": ["tree", "table"]})
    assert without["masks"] == reasons["tree"]
    assert "segmentation" not in without
    assert {"results/shares.csv", "results/segmentation/image_shares.parquet"} <= set(final_tables(without))
    assert "results/segmentation.csv" not in final_tables(without)
    segmented = {"segmentation": {"datasets": ["tree", "table", "masks"]}}
    assert "masks" not in missing(tmp_path, monkeypatch, datasets, **segmented)
    config = {"model": MODEL, "datasets": {"discovery": datasets["tree"], **datasets}, **segmented}
    assert missing_masks(check(config)) == reasons


@pytest.mark.parametrize(
    ("layout", "lacking"),
    [("cityscapes", {"labels"}), ("voc21", {"groups", "labels"}), ("folder", {"groups", "labels"}), ("stanford_cars", set())],
)
def test_layouts_know_what_they_have(tmp_path, monkeypatch, layout, lacking):
    found = missing(
        tmp_path, monkeypatch, {"monitoring": {"layout": layout, "path": "photos"}}, analyses={"dataset": "monitoring"}
    )
    assert found.keys() & {"groups", "labels"} == lacking


def test_plots_and_batches_need_what_their_tables_need():
    assert needs_of("results/shift.csv") == needs_of("results/shift/batches/april.csv") == ("groups", "concepts")
    assert needs_of("results/naming.png") == needs_of("results/naming.csv") != ()
    assert needs_of("results/pairs.parquet") == needs_of("all") == ()
