import copy
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nadpipe.config import Config, Dataset, Layout, check
from nadpipe.errors import NadpipeError
from nadpipe.layouts import LAYOUTS
from nadpipe.segmentation import METHODS

ROOT = Path(__file__).parents[1]
GOOD = yaml.safe_load((ROOT / "config.yaml").read_text())


def changed(key, value):
    """The shipped config with one key set, or deleted if the value is `...`."""
    config = copy.deepcopy(GOOD)
    *sections, last = key.split(".")
    section = config
    for name in sections:
        section = section[name]
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return config


def test_the_shipped_config_is_complete():
    whole = check(GOOD)
    assert {name: section for name, section in whole.items() if name != "datasets"} == {
        name: section for name, section in GOOD.items() if name != "datasets"
    }
    for name, section in GOOD["datasets"].items():
        assert whole["datasets"][name] == Dataset.model_validate(section).model_dump()
        assert set(section) <= set(whole["datasets"][name])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sed", 1, "sed: unknown key; allowed here: seed, device, model, datasets, demo"),
        ("segmentation.kk", 1, "segmentation.kk: unknown key; allowed here: datasets, methods, k, select_by"),
        ("datasets.discovery.tabel", "x", "datasets.discovery.tabel: unknown key; allowed here: layout, path, split"),
        ("datasets.more", {"layout": "tree"}, "datasets.more.path: missing"),
        (
            "datasets.More",
            {"layout": "tree", "path": "docs"},
            "datasets.More: small letters, digits and _, and none of assignments",
        ),
        (
            "datasets.text",
            {"layout": "tree", "path": "docs"},
            "datasets.text: small letters, digits and _, and none of assignments",
        ),
        ("datasets.discovery.layout", "voc", "datasets.discovery.layout: input should be 'table', 'tree', 'stanford_cars'"),
        ("datasets.monitoring", ..., "datasets: no data set monitoring; datasets has discovery, segmentation"),
        ("datasets.segmentation.classes", None, "datasets.segmentation.classes: missing; a table has none of its own"),
        ("datasets.segmentation.classes", "no.csv", "datasets.segmentation.classes: no such file or folder: no.csv"),
        ("datasets.segmentation.area_threshold", 1, "datasets.segmentation.area_threshold: input should be less than 1"),
        ("segmentation.datasets", ["voc"], "segmentation.datasets: no data set voc; datasets has discovery, segmentation"),
        (
            "segmentation.datasets",
            ["discovery"],
            "segmentation.datasets: discovery is looked at by single crops; list its images",
        ),
        ("dense.datasets", ["voc"], "dense.datasets: no data set voc; datasets has discovery"),
        ("segmentation.crop", 2, "segmentation.crop: at most segmentation.scale, 1.0"),
        ("segmentation.scale", 0.5, "segmentation.scale: input should be greater than or equal to 1"),
        ("segmentation.block", -1, "segmentation.block: input should be greater than or equal to 0"),
        ("segmentation.k", [5, 5], "segmentation.k: listed twice: 5"),
        ("registers.sink_factor", 1, "registers.sink_factor: input should be greater than 1"),
        ("segmentation.k", ..., "segmentation.k: missing"),
        ("model", ..., "model: missing"),
        ("segmentation.k", 0, "segmentation.k.0: input should be greater than or equal to 1, not 0"),
        ("segmentation.k", "many", "segmentation.k.0: input should be a valid integer, unable to parse string as an integer"),
        ("segmentation.k", 2.5, "segmentation.k.0: input should be a valid integer"),
        ("segmentation.k", True, "segmentation.k.0: input should be a valid number, not True"),
        ("segmentation.stride", 1.5, "segmentation.stride: input should be less than or equal to 1, not 1.5"),
        ("segmentation.select_by", "x", "segmentation.select_by: input should be 'direction' or 'write', not 'x'"),
        ("segmentation.methods", ["nad", "x"], "segmentation.methods.1: input should be 'nad', 'nad_centred', 'nad_shifted'"),
        ("segmentation.methods", [], "segmentation.methods: list should have at least 1 item"),
        ("segmentation.methods", ["nad", "nad"], "segmentation.methods: listed twice: nad"),
        ("segmentation.sink", "last", "segmentation.sink: auto, none or the index of a spatial token from 0, not 'last'"),
        ("segmentation.sink", -1, "segmentation.sink: auto, none or the index of a spatial token from 0, not -1"),
        ("datasets.segmentation.classes", ["a", " "], "datasets.segmentation.classes.1: one line of text, not empty"),
        ("text.templates", ["a photo"], "text.templates: each template holds {} once"),
        ("text.templates", "imagnet", "text.templates: each template holds {} once, where the text goes; 'imagnet' does not"),
        ("text.templates", ["imagenet", "{}"], "text.templates: each template holds {} once"),
        ("text.templates", [], "text.templates: list should have at least 1 item"),
        ("text.templates", None, "text.templates: input should be a valid list, not None"),
        ("text.dictionary", "wordfreq:x", "text.dictionary: wordfreq:x: write wordfreq:<count>, such as wordfreq:30000"),
        ("text.dictionary", "imagenet-21k", "text.dictionary: no such file or folder: imagenet-21k"),
        ("text.dictionary", 3, "text.dictionary: input should be a valid string, not 3"),
        ("text.cache", "", "text.cache: string should have at least 1 character, not ''"),
        ("text.cache", False, "text.cache: input should be a valid string, not False"),
        ("text.cache", ..., "text.cache: missing"),
        ("text.dictionary", "no/such.txt", "text.dictionary: no such file or folder: no/such.txt"),
        ("model.architecture", "no/model.json", "model.architecture: no such file or folder: no/model.json"),
        ("model.pretrained", "no/model.pt", "model.pretrained: no such file or folder: no/model.pt"),
        ("datasets.discovery.path", "no.csv", "datasets.discovery.path: no such file or folder: no.csv"),
        ("shift.confidence", 1, "shift.confidence: input should be less than 1"),
        ("contributions.tolerance", "x", "contributions.tolerance: input should be a valid number"),
        ("seed", -1, "seed: input should be greater than or equal to 0"),
        ("features", 3, "features: input should be"),
        ("device", "gpu", "device: auto, cpu, mps, cuda or cuda:<number>, not 'gpu'"),
        ("segmentation.temperature", float("inf"), "segmentation.temperature: input should be a finite number"),
        ("segmentation.temperature", True, "segmentation.temperature: input should be a valid number, not True"),
        ("datasets.segmentation.classes", ["a"], "datasets.segmentation.classes: list should have at least 2 items"),
        (
            "datasets.segmentation.classes",
            [f"c{at}" for at in range(257)],
            "datasets.segmentation.classes: list should have at most 256 items",
        ),
        ("text.dictionary", "results/demo/typo.txt", "text.dictionary: no such file or folder"),
    ],
)
def test_a_fault_is_one_line_with_the_keys_full_path(key, value, message):
    with pytest.raises(NadpipeError) as error:
        check(changed(key, value), "my.yaml")
    lines = str(error.value).split("\n")
    assert any(line.startswith(f"my.yaml: {message}") for line in lines), lines
    assert len(lines) == 1


def test_all_faults_are_told_at_once():
    config = changed("segmentation.k", 0)
    config["shift"]["k"] = "x"
    with pytest.raises(NadpipeError) as error:
        check(config)
    assert [line.split(":")[1].strip() for line in str(error.value).split("\n")] == ["segmentation.k.0", "shift.k"]


def test_numbers_that_come_as_text_from_the_command_line_are_numbers():
    assert check(changed("segmentation.k", "300"))["segmentation"]["k"] == [300]
    assert check(changed("segmentation.sink", "5"))["segmentation"]["sink"] == 5
    assert check(changed("segmentation.temperature", "2"))["segmentation"]["temperature"] == 2.0


def test_pretrained_tags_are_no_paths():
    assert check(changed("model.pretrained", "openai"))["model"]["pretrained"] == "openai"
    assert check(changed("model.architecture", "RN50x16"))["model"]["architecture"] == "RN50x16"


@pytest.mark.parametrize("given", ["imagenet", ["imagenet"], "imagenet-simple", "a photo of {}"])
def test_templates_may_be_a_set_by_name(given):
    assert check(changed("text.templates", given))["text"]["templates"] == ([given] if isinstance(given, str) else given)


def test_dictionaries_may_be_named_and_the_cache_left_out():
    for dictionary in ("wordfreq:30000", "imagenet", "README.md"):
        assert check(changed("text.dictionary", dictionary))["text"]["dictionary"] == dictionary
    for none in (None, "null"):  # as text from snakemake --config
        assert check(changed("text.cache", none))["text"]["cache"] is None


def test_every_layout_and_class_file_may_be_asked_for():
    assert set(get_args(Layout)) == {"table", "tree", "stanford_cars", *LAYOUTS}
    given = {"layout": "voc21", "path": "docs", "classes": "README.md"}
    config = changed("datasets.voc", given)
    config["segmentation"]["datasets"] = ["voc"]
    assert check(config)["datasets"]["voc"] | given == check(config)["datasets"]["voc"]


def test_every_registered_method_may_be_asked_for():
    assert check(changed("segmentation.methods", list(METHODS)))["segmentation"]["methods"] == list(METHODS)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.sampled_from([f"{section}.{key}" for section, content in GOOD.items() if isinstance(content, dict) for key in content]),
    json_like,
)
def test_any_value_is_accepted_or_refused_in_lines_that_name_its_section(key, value):
    try:
        check(changed(key, value))
    except NadpipeError as error:
        for line in str(error).split("\n"):
            assert line.startswith(f"config: {key}")


def test_every_section_is_in_the_contract():
    assert set(Config.model_fields) == set(GOOD)


def test_what_a_url_names_need_not_be_on_this_disk_but_lies_apart_from_folders_that_are_fetched():
    config = changed("model.pretrained", "s3://bucket/models/own.safetensors")
    config["datasets"]["discovery"] = {"layout": "tree", "path": "s3://bucket/photos"}
    config["datasets"]["segmentation"]["path"] = "s3://bucket/scenes/all.csv"
    assert check(config)["datasets"]["discovery"]["path"] == "s3://bucket/photos"
    config["datasets"]["discovery"]["path"] = "s3://bucket//photos/"
    assert check(config)["datasets"]["discovery"]["path"] == "s3://bucket/photos"
    for key, value, message in [
        (
            "text",
            {**config["text"], "dictionary": "s3://bucket/photos/words.txt"},
            "text.dictionary: s3://bucket/photos/words.txt is in",
        ),
        (
            "model",
            {**config["model"], "pretrained": "s3://bucket/scenes/m.pt"},
            "which datasets.segmentation.path fetches whole; keep them apart",
        ),
        (
            "datasets",
            {**config["datasets"], "more": {"layout": "table", "path": "s3://bucket/all.csv"}},
            "datasets.more.path: images must be in a folder of s3://bucket",
        ),
    ]:
        with pytest.raises(NadpipeError, match=re.escape(message)):
            check({**config, key: value})
