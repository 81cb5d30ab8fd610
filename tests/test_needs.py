"""A config shows which results it cannot give, and which key would give them."""

import pytest

from nadpipe.config import check
from nadpipe.needs import missing_needs

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
        "groups": "datasets.monitoring.path: photos has no folders, which would be the groups",
        "labels": "datasets.monitoring.path: photos has no folders, which would be the labels",
        "attributes": "datasets.monitoring.labels: not set; give a CSV file with 0/1 columns",
    }
    (tmp_path / "photos" / "2024").mkdir()
    assert missing(tmp_path, monkeypatch, tree, **sections).keys() == {"segmentation", "attributes"}


@pytest.mark.parametrize(
    ("keys", "lacking"),
    [
        ({}, {"groups": "group_column", "labels": "label_column"}),
        ({"group_column": "year"}, {"labels": "label_column"}),
        ({"group_column": "year", "label_column": "kind"}, {}),
    ],
)
def test_columns_of_a_table_are_named(tmp_path, monkeypatch, keys, lacking):
    (tmp_path / "t.csv").write_text("path,year,kind\n1.png,2020,a\n")
    table = {"monitoring": {"layout": "table", "path": "t.csv", **keys}}
    found = missing(tmp_path, monkeypatch, table, analyses={"dataset": "monitoring"})
    assert {need: found[need] for need in ("groups", "labels") if need in found} == {
        need: f"datasets.monitoring.{key}: not set; name the column with the {need}" for need, key in lacking.items()
    }
    assert "attributes" not in found


@pytest.mark.parametrize(
    ("layout", "lacking"),
    [("cityscapes", {"labels"}), ("voc21", {"groups", "labels"}), ("folder", {"groups", "labels"}), ("stanford_cars", set())],
)
def test_layouts_know_what_they_have(tmp_path, monkeypatch, layout, lacking):
    found = missing(
        tmp_path, monkeypatch, {"monitoring": {"layout": layout, "path": "photos"}}, analyses={"dataset": "monitoring"}
    )
    assert found.keys() & {"groups", "labels"} == lacking
