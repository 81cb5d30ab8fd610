"""Settings that the images on disk do not allow are refused before the first job."""

import pytest

from nadpipe.config import check
from nadpipe.errors import NadpipeError
from nadpipe.preflight import check_images


@pytest.fixture
def lines(tmp_path, monkeypatch):
    """Return a function that checks a config with six photographs as `discovery`, and returns the lines of its error."""
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        folder = tmp_path / "photos" / f"{2020 + number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").touch()
    rows = "".join(f"photos/{2020 + number % 3}/{number}.png,{number % 2},{number}\n" for number in range(6))
    (tmp_path / "t.csv").write_text("path,fish,count\n" + rows)

    def lines(datasets=None, **sections):
        discovery = {"layout": "tree", "path": "photos"}
        config = {
            "model": {"architecture": "RN50", "pretrained": "openai"},
            "datasets": {"discovery": discovery, **(datasets or {})},
            **sections,
        }
        complete = check(config)
        assert check(complete) == complete
        try:
            check_images(complete, "my.yaml")
        except NadpipeError as error:
            return str(error).split("\n")
        return []

    return lines


SEGMENTED = {"layout": "table", "path": "t.csv", "mask_column": "path", "classes": ["a", "b"]}


def test_defaults_suit_any_number_of_images(lines):
    tree = {"layout": "tree", "path": "photos"}
    assert lines({"streets": SEGMENTED, "monitoring": tree}, segmentation={"datasets": ["streets"]}) == []
    assert lines({"discovery": {**tree, "shards": 6}}, directions={"top_images": 6}, analyses={"top": 3}) == []
    assert lines({"streets": SEGMENTED}, segmentation={"datasets": ["streets"], "overlays": 6, "extremes": 5}) == []


@pytest.mark.parametrize(
    ("datasets", "sections", "message"),
    [
        (
            {"discovery": {"layout": "tree", "path": "photos", "shards": 7}},
            {},
            "datasets.discovery.shards: 7 exceeds the 6 images ",
        ),
        (
            {"streets": {**SEGMENTED, "shards": 7}},
            {},
            "datasets.streets.shards: 7 exceeds the 6 images of t.csv; use at most one",
        ),
        (
            {},
            {"directions": {"top_images": 7}},
            "directions.top_images: 7 exceeds the 6 images of datasets.discovery; lower it",
        ),
        ({}, {"analyses": {"top": 4}}, "analyses.top: 4 exceeds half of the 6 images of datasets.discovery; lower it"),
        (
            {"streets": SEGMENTED},
            {"segmentation": {"datasets": ["streets"], "overlays": 7}},
            "segmentation.overlays: 7 exceeds the 6 images of the largest segmented data set; lower it",
        ),
        (
            {"streets": SEGMENTED},
            {"segmentation": {"datasets": ["streets"], "extremes": 7}},
            "segmentation.extremes: 7 exceeds the 6 images of the largest segmented data set; lower it",
        ),
        ({"discovery": {"layout": "tree", "path": "photos/2020"}}, {}, "datasets.discovery.path: photos/2020 lists 2 images; "),
        ({"other": {"layout": "tree", "path": "empty"}}, {}, "datasets.other.path: empty lists no images; correct the path"),
        ({"other": {"layout": "tree", "path": "t.csv"}}, {}, "datasets.other: t.csv: is a file; give the folder of the images"),
        (
            {"other": {"layout": "voc21", "path": "photos"}},
            {},
            "datasets.other: photos/JPEGImages: missing; expected the voc21 ",
        ),
        (
            {"other": {"layout": "ade20k", "path": "photos", "split": "test"}},
            {},
            "datasets.other: ade20k: no split test; choose ",
        ),
        (
            {"other": {"layout": "table", "path": "photos"}},
            {},
            "datasets.other: photos: not a readable CSV table in UTF-8 (it is not a file)",
        ),
        (
            {"monitoring": {"layout": "tree", "path": "photos"}},
            {"shift": {"reference": "2019"}},
            "shift.reference: datasets.monitoring has no group '2019'; choose one of 2020, 2021, 2022",
        ),
        (
            {"monitoring": {"layout": "table", "path": "t.csv", "group_column": "count"}},
            {"shift": {"concepts": ["fish", "count"]}},
            "shift.concepts: column count of t.csv is the label of the concept count, but holds other values than 0 and 1; ",
        ),
        (
            {"other": {"layout": "stanford_cars", "path": "photos"}},
            {},
            "datasets.other: photos/devkit/cars_meta.mat: missing; ",
        ),
        (
            {"streets": SEGMENTED | {"background_threshold": 0.1}},
            {"segmentation": {"datasets": ["streets"]}},
            "datasets.streets.background_threshold: no class is called background; name one background, or set 0",
        ),
        (
            {"streets": SEGMENTED | {"background_threshold": 0.1, "classes": "empty"}},
            {"segmentation": {"datasets": ["streets"]}},
            "datasets.streets.classes: empty: ",
        ),
        ({}, {"text": {"dictionary": "empty"}}, "text.dictionary: empty: not a readable UTF-8 text file"),
    ],
)
def test_what_the_images_do_not_allow_is_refused(lines, tmp_path, datasets, sections, message):
    (tmp_path / "empty").mkdir()
    found = lines(datasets, **sections)
    assert [line.startswith(f"my.yaml: {message}") for line in found] == [True], found


def test_all_lines_are_reported_at_once(lines):
    assert len(lines({"other": SEGMENTED | {"shards": 9}}, analyses={"top": 9}, directions={"top_images": 9})) == 3


def test_a_background_is_found_in_a_list_a_file_and_a_layout(lines, tmp_path):
    (tmp_path / "c.txt").write_text("background: wall, floor\nfish\n")
    for classes in (["background", "fish"], ["background: wall", "fish"], "c.txt"):
        streets = SEGMENTED | {"background_threshold": 0.1, "classes": classes}
        assert lines({"streets": streets}, segmentation={"datasets": ["streets"]}) == []


def test_references_that_exist_are_accepted(lines):
    for reference in ("2021", "rolling:2"):
        assert lines({"monitoring": {"layout": "tree", "path": "photos"}}, shift={"reference": reference}) == []


def test_urls_and_generated_files_are_not_looked_at(lines):
    assert lines({"discovery": {"layout": "tree", "path": "s3://bucket/photos", "shards": 1000}}) == []
    demo = {"layout": "table", "path": "results/demo/discovery.csv", "shards": 6}
    assert lines({"discovery": demo}, demo={"discovery_images": 6}) == []
    assert lines({"discovery": demo}, demo={"discovery_images": 5}) == [
        "my.yaml: datasets.discovery.shards: 6 exceeds the 5 images of results/demo/discovery.csv; "
        "use at most one shard per image"
    ]
