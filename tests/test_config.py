import copy
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from nadpipe.circuit import segmentation, shift
from nadpipe.circuit.methods import METHODS
from nadpipe.config import Config, Dataset, Shift, check
from nadpipe.data.layouts import LAYOUTS
from nadpipe.errors import NadpipeError
from nadpipe.stages.select_pairs import select_pairs

ROOT = Path(__file__).parents[1]
DEMO = yaml.safe_load((ROOT / "config.yaml").read_text())
GOOD = check(DEMO)  # with every key
MINIMAL = {
    "model": {"architecture": "RN50", "pretrained": "openai"},
    "datasets": {"discovery": {"layout": "tree", "path": "docs"}},
}


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


def test_defaults_fill_the_keys_that_a_config_leaves_out():
    checked = check(MINIMAL)
    assert set(checked) == set(Config.model_fields)
    assert list(checked["datasets"]) == ["discovery"]
    assert checked["segmentation"]["datasets"] == checked["shift"]["concepts"] == []
    assert checked["analyses"]["dataset"] is None
    assert check(checked) == checked


def test_the_demo_config_sets_only_keys_that_differ_from_the_defaults():
    for name, section in DEMO.items():
        if name not in ("model", "datasets"):
            assert not [key for key, value in section.items() if check(MINIMAL)[name][key] == value]


TREE = {"layout": "tree", "path": "docs"}
NAMED = {"classes": ["cat", "dog"]}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sed", 1, "sed: unknown key; .*seed, device, model, datasets, demo"),
        ("segmentation.kk", 1, "segmentation.kk: unknown key; .*datasets, methods, k, select_by"),
        ("datasets.discovery.tabel", "x", "datasets.discovery.tabel: unknown key; .*layout, path, split"),
        ("datasets.more", {"layout": "tree"}, "datasets.more.path: missing; "),
        ("datasets.int", {"layout": "tree"}, "datasets.int.path: missing; "),
        ("datasets.int", {**TREE, "tabel": 1}, "datasets.int.tabel: unknown key; .*layout, path, split"),
        ("datasets.More", TREE, "datasets.More: .*invalid; use lower-case letters, digits and _"),
        ("datasets.text", TREE, "datasets.text: .*reserved; .*assignments"),
        ("datasets.discovery.layout", "voc", "datasets.discovery.layout: 'voc' .*; .*'table', 'tree', 'stanford_cars'"),
        ("datasets.discovery", ..., "datasets: no data set 'discovery'; .*segmentation, monitoring"),
        ("datasets.segmentation.classes", None, "datasets.segmentation.classes: missing; .*table"),
        ("datasets.segmentation.classes", "no.csv", "datasets.segmentation.classes: 'no.csv' does not exist; "),
        ("datasets.segmentation.classes", ["a: ", "b"], "datasets.segmentation.classes: .*title: name"),
        ("datasets.segmentation.area_threshold", 1, "datasets.segmentation.area_threshold: 1 .*; .*less than 1"),
        ("segmentation.datasets", ["voc"], "segmentation.datasets: no data set 'voc'; .*discovery, segmentation"),
        ("segmentation.datasets", ["discovery"], "segmentation.datasets: discovery .*one view.*; .*another name"),
        ("dense.datasets", ["voc"], "dense.datasets: no data set 'voc'; .*discovery"),
        ("analyses.dataset", "voc", "analyses.dataset: no data set 'voc'; .*discovery"),
        ("directions.top_images", 601, "directions.top_images: 601 exceeds demo.discovery_images, 600; lower it$"),
        ("directions.top_images", 0, "directions.top_images: 0 .*; .*greater than or equal to 1"),
        ("directions.top_share", 0, "directions.top_share: 0 .*; .*greater than 0"),
        ("shift.centre", "set", "shift.centre: 'set' .*; .*'dictionary' or 'none'"),
        ("segmentation.crop", 2, "segmentation.crop: 2.0 .*segmentation.scale, 1.0; .*fit"),
        ("segmentation.scale", 0.5, "segmentation.scale: 0.5 .*; .*greater than or equal to 1"),
        ("segmentation.block", -1, "segmentation.block: -1 .*; .*greater than or equal to 0"),
        ("segmentation.k", [5, 5], "segmentation.k: 5 .*more than once; "),
        ("registers.sink_factor", 1, "registers.sink_factor: 1 .*; .*greater than 1"),
        ("segmentation.k", [0.1, 5], r"segmentation.k: \[0.1, 5\] .*shares; "),
        ("datasets.discovery.split", "val", "datasets.discovery.split: the layout table does not read it; "),
        ("datasets.discovery.ignore", 3, "datasets.discovery.ignore: .* listed in the config; "),
        ("datasets.discovery.reduce_zero_label", True, "datasets.discovery.reduce_zero_label: .*; remove it"),
        ("datasets.more", {**TREE, **NAMED, "ignore": 9}, "datasets.more.ignore: it applies only to masks, .*; remove it"),
        ("datasets.more", {**TREE, **NAMED, "reduce_zero_label": True}, "datasets.more.reduce_zero_label: .* masks, .*; "),
        ("datasets.more", {**TREE, "group_column": "year"}, "datasets.more.group_column: the layout tree does not read it; "),
        ("model", ..., "model: missing; "),
        ("segmentation.k", 0, "segmentation.k.0: 0 .*; .*integer from 1.*share"),
        ("segmentation.k", "many", "segmentation.k.0: 'many' .*; .*integer from 1"),
        ("segmentation.k", 2.5, "segmentation.k.0: 2.5 .*; .*integer from 1"),
        ("segmentation.k", True, "segmentation.k.0: True is not a number of pairs; "),
        ("segmentation.stride", 1.5, "segmentation.stride: 1.5 .*; .*less than or equal to 1"),
        ("segmentation.select_by", "x", "segmentation.select_by: 'x' .*; .*'direction' or 'write'"),
        ("segmentation.methods", ["nad", "x"], "segmentation.methods.1: 'x' .*; .*'nad', 'nad_centred', 'nad_shifted'"),
        ("segmentation.methods", [], "segmentation.methods: 0 items .*; .*at least 1"),
        ("segmentation.methods", ["nad", "nad"], "segmentation.methods: 'nad' .*more than once; "),
        ("segmentation.sink", "first", "segmentation.sink: 'first' .*; .*auto, none, last.*index"),
        ("datasets.discovery.shards", 10**6, "datasets.discovery.shards: 1000000 .*; .*less than or equal to 1000"),
        ("datasets.discovery.path", "", "datasets.discovery.path: '' is empty; give an existing path or a URL"),
        (
            "datasets.segmentation.classes",
            ["a, b", "b"],
            "datasets.segmentation.classes: more than one class has the name 'b'; ",
        ),
        (
            "datasets.segmentation.classes",
            ["a", "a "],
            "datasets.segmentation.classes: more than one class has the title 'a'; ",
        ),
        ("shift.reference", True, "shift.reference: True is invalid; it should be a valid string"),
        ("datasets.discovery.path", "x" * 300, "datasets.discovery.path: 'x*' does not exist; "),
        ("segmentation.sink", -1, "segmentation.sink: -1 .*; .*auto, none, last.*index"),
        ("datasets.segmentation.classes", ["a", " "], "datasets.segmentation.classes.1: ' ' .*one line.*; "),
        ("text.templates", ["a photo"], "text.templates: .*{}.* once"),
        ("text.templates", "imagnet", "text.templates: .*'imagnet'.* {} once"),
        ("text.templates", ["imagenet", "{}"], "text.templates: .*{}.* once"),
        ("text.templates", [], "text.templates: 0 items .*; .*at least 1"),
        ("text.templates", None, "text.templates: None .*; .*list"),
        ("text.dictionary", "wordfreq:x", "text.dictionary: wordfreq:x: .*wordfreq:<count>"),
        ("text.dictionary", "imagenet-21k", "text.dictionary: 'imagenet-21k' does not exist; "),
        ("text.dictionary", 3, "text.dictionary: 3 .*; .*string"),
        ("text.cache", "", "text.cache: '' .*; .*at least 1 character"),
        ("text.cache", False, "text.cache: False .*; .*string"),
        ("text.dictionary", "no/such.txt", "text.dictionary: 'no/such.txt' does not exist; "),
        ("model.architecture", "RN50x61", "model.architecture: open_clip has no model 'RN50x61'; .* RN50x16 or "),
        ("model.architecture", "", "model.architecture: open_clip has no model ''; correct the name, for example "),
        ("model.pretrained", None, "model.pretrained: no weights given; "),
        ("model.architecture", "no/model.json", "model.architecture: 'no/model.json' does not exist; "),
        ("model.pretrained", "no/model.pt", "model.pretrained: 'no/model.pt' does not exist; "),
        ("datasets.discovery.path", "no.csv", "datasets.discovery.path: 'no.csv' does not exist; "),
        ("shift.confidence", 1, "shift.confidence: 1 .*; .*less than 1"),
        ("shift.reference", "rolling:0", "shift.reference: 'rolling:0' .*; .*rolling:<n>"),
        ("contributions.tolerance", "x", "contributions.tolerance: 'x' .*; .*valid number$"),
        ("seed", -1, "seed: -1 .*; .*greater than or equal to 0"),
        ("features", 3, "features: 3 .*; .*section with keys$"),
        ("device", "gpu", "device: 'gpu' .*; .*auto, cpu, mps, cuda or cuda:<number>"),
        ("segmentation.temperature", float("inf"), "segmentation.temperature: inf .*; .*finite number"),
        ("segmentation.temperature", True, "segmentation.temperature: True is not a number; "),
        ("datasets.segmentation.classes", ["a"], "datasets.segmentation.classes: 1 items .*; .*at least 2"),
        (
            "datasets.segmentation.classes",
            [f"c{number}" for number in range(257)],
            "datasets.segmentation.classes: .*too long; .*at most 256",
        ),
        ("text.dictionary", "results/demo/typo.txt", "text.dictionary: 'results/demo/typo.txt' does not exist; "),
    ],
)
def test_an_error_is_one_line_with_the_full_key(key, value, message):
    with pytest.raises(NadpipeError) as error:
        check(changed(key, value), "my.yaml")
    assert re.match(f"my.yaml: {message}", str(error.value)), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("block", "heads"), [(None, 12), (10, 12), (8, 36), (0, 132)])
def test_more_pairs_than_a_transformer_has_behind_its_block_are_refused(block, heads):
    config = {**MINIMAL, "model": {"architecture": "ViT-B-32", "pretrained": "openai", "block": block}}
    assert check({**config, "shift": {"k": heads * 3072}})
    with pytest.raises(
        NadpipeError, match=rf"^config: shift\.k: {heads * 3072 + 1} exceeds the {heads * 3072} pairs of ViT-B-32"
    ):
        check({**config, "shift": {"k": heads * 3072 + 1}})


def test_a_block_behind_which_no_head_reads_is_refused():
    for block in (11, 99):
        with pytest.raises(
            NadpipeError, match=rf"^config: model\.block: no head of ViT-B-32 reads the neurons of block {block}; lower it"
        ):
            check({**MINIMAL, "model": {"architecture": "ViT-B-32", "pretrained": "openai", "block": block}})
    with pytest.raises(NadpipeError, match=r"^config: model\.block"):
        check({**MINIMAL, "model": {"architecture": "ViT-B-32", "pretrained": "openai", "block": -1}})


@pytest.mark.parametrize(
    ("architecture", "pairs"),
    [
        ("RN50", 65_536),
        ("RN50x16-quickgelu", 147_456),
        ("model.json", 4 * 128),
        ("coca_ViT-B-32", 8 * 3072),
        ("ViT-B-16-SigLIP", None),
        ("hf-hub:o/m", None),
    ],
)
def test_more_pairs_than_the_model_has_are_refused_where_its_config_is_here(architecture, pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "model.json").write_text(json.dumps(TINY))
    config = {**MINIMAL, "model": {"architecture": architecture, "pretrained": "openai"}}
    for section in ("segmentation", "shift"):
        assert check({**config, section: {"k": pairs or 10**9}})
        if pairs is not None:
            with pytest.raises(NadpipeError, match=rf"^config: {section}\.k: {pairs + 1} exceeds the {pairs} pairs of "):
                check({**config, section: {"k": pairs + 1}})


def test_tokens_and_blocks_that_the_model_lacks_are_refused_where_its_config_is_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "model.json").write_text(json.dumps(TINY))  # 2 × 2 tokens, 1 block in the last stage
    for architecture, key, last, what in [
        ("RN50x16", "sink", 143, "spatial token"),
        ("RN50x16", "block", 7, "block of the last stage"),
        ("model.json", "sink", 3, "spatial token"),
        ("model.json", "block", 0, "block of the last stage"),
    ]:
        config = {**MINIMAL, "model": {"architecture": architecture, "pretrained": "openai"}}
        assert check({**config, "segmentation": {key: last}})
        with pytest.raises(NadpipeError) as error:
            check({**config, "segmentation": {key: 9999}})
        line = f"config: segmentation.{key}: {architecture} has no {what} 9999; choose one from 0 to {last}"
        assert str(error.value) == line
    assert check({**MINIMAL, "model": {"architecture": "hf-hub:o/m"}, "segmentation": {"sink": 9999, "block": 99}})


@pytest.mark.parametrize("key", ["shift", "lol"])
def test_lists_that_repeat_each_other_are_refused_at_once(key):
    lines = ["a0: &a0 [lol, lol]", *(f"a{number}: &a{number} [*a{number - 1}, *a{number - 1}]" for number in range(1, 60))]
    bomb = yaml.safe_load("\n".join([*lines, f"{key}: {{concepts: *a59}}"]))  # 2^60 values
    with pytest.raises(NadpipeError, match=r"^my\.yaml: more than 100,000 values; remove aliases .*"):
        check(MINIMAL | bomb, "my.yaml")


def test_a_long_value_is_shortened_in_messages():
    with pytest.raises(NadpipeError) as error:
        check({**MINIMAL, "shift": {"concepts": [["fish"] * 10_000]}})
    assert re.fullmatch(
        r"config: shift\.concepts\.0: \[('fish', ){6}\.\.\.\] is invalid; it should be a valid string", str(error.value)
    )


@pytest.mark.parametrize(
    "content", ["path,ü\n1.png,1\n".encode("latin-1"), "path\n".encode("utf-16"), b'path\n"' + b"x" * 200_000]
)
def test_a_table_that_is_not_csv_in_utf_8_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content if b'"' not in content else content.replace(b"path\n", b""))
    config = {**MINIMAL, "datasets": {"discovery": {"layout": "table", "path": str(tmp_path / "t.csv")}}}
    with pytest.raises(
        NadpipeError, match=r"^config: datasets\.discovery\.path: .*t\.csv: not a readable CSV table in UTF-8 "
    ) as error:
        check(config)
    assert "\n" not in str(error.value)


def test_columns_of_a_table_and_classes_beside_a_class_file_are_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("path,year,kind\n1.png,2020,a\n")
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "classes.txt").write_text("road\nsky\n")
    table = {"layout": "table", "path": "t.csv", "group_column": "yaer", "label_column": "kind", "mask_column": "mask"}
    folder = {"layout": "folder", "path": "f", "classes": ["fish", "leaf"]}
    with pytest.raises(NadpipeError) as error:
        check({**MINIMAL, "datasets": {"discovery": table, "streets": folder}})
    assert str(error.value).split("\n") == [
        "config: datasets.discovery.mask_column: t.csv has no column mask; choose one of path, year, kind",
        "config: datasets.discovery.group_column: t.csv has no column yaer; choose one of path, year, kind",
        "config: datasets.streets.classes: f/classes.txt already names the classes; remove the key or the file",
    ]


def test_all_errors_are_reported_at_once():
    config = changed("segmentation.k", 0)
    config["shift"]["k"] = "x"
    with pytest.raises(NadpipeError) as error:
        check(config)
    assert [line.split(":")[1].strip() for line in str(error.value).split("\n")] == ["segmentation.k.0", "shift.k"]


def test_numbers_are_accepted_as_text_because_the_command_line_passes_text():
    assert check(changed("segmentation.k", "300"))["segmentation"]["k"] == [300]
    assert check(changed("segmentation.sink", "5"))["segmentation"]["sink"] == 5
    assert check(changed("segmentation.temperature", "2"))["segmentation"]["temperature"] == 2.0
    assert check(changed("shift.reference", 2020))["shift"]["reference"] == "2020"  # YAML reads a year as a number


def test_names_of_models_and_weights_are_not_paths():
    assert check(changed("model.pretrained", "openai"))["model"]["pretrained"] == "openai"
    assert check(changed("model.architecture", "RN50x16"))["model"]["architecture"] == "RN50x16"


@pytest.mark.parametrize("templates", ["imagenet", ["imagenet"], "imagenet-simple", "a photo of {}"])
def test_a_template_set_is_accepted_by_name(templates):
    checked = check(changed("text.templates", templates))["text"]["templates"]
    assert checked == ([templates] if isinstance(templates, str) else templates)


def test_a_dictionary_is_accepted_by_name_and_the_cache_can_be_turned_off():
    for dictionary in ("wordfreq:30000", "imagenet", "README.md"):
        assert check(changed("text.dictionary", dictionary))["text"]["dictionary"] == dictionary
    for cache in (None, "null"):  # `snakemake --config` passes null as text
        assert check(changed("text.cache", cache))["text"]["cache"] is None


def test_the_number_of_top_images_is_compared_with_the_demo_only_if_it_is_used():
    for number in (None, "null"):  # `snakemake --config` passes null as text
        assert check(changed("directions.top_images", number))["directions"]["top_images"] is None
    config = changed("directions.top_images", 601)
    config["datasets"]["discovery"] = TREE  # a job counts these images
    assert check(config)["directions"]["top_images"] == 601


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_registered_layout_is_accepted_and_needs_class_names_only_if_it_has_none(layout):
    dataset = {"layout": layout, "path": "docs", "classes": "README.md"}
    config = changed("datasets.voc", dataset)
    config["segmentation"]["datasets"] = ["voc"]
    assert check(config)["datasets"]["voc"] == Dataset.model_validate(dataset).model_dump()
    del config["datasets"]["voc"]["classes"]
    if LAYOUTS[layout].has_classes:
        assert check(config)["datasets"]["voc"]["classes"] is None
    else:
        with pytest.raises(NadpipeError, match=r"^config: datasets.voc.classes: missing; [^\n]*$"):
            check(config)


def test_every_registered_method_is_accepted():
    assert all(callable(getattr(segmentation, method)) for method in METHODS)
    assert check(changed("segmentation.methods", list(METHODS)))["segmentation"]["methods"] == list(METHODS)


def test_the_config_accepts_what_the_code_implements():
    fields = {"shift.test": Shift.model_fields["test"], "select_by": Shift.model_fields["select_by"]}
    assert get_args(fields["shift.test"].annotation) == get_args(shift.Test)
    implemented = inspect.signature(select_pairs).parameters["select_by"].annotation
    assert get_args(fields["select_by"].annotation) == get_args(implemented)


def test_importing_the_config_is_fast_because_it_loads_no_heavy_library():
    heavy = "{'torch', 'numpy', 'pandas', 'scipy', 'PIL', 'zarr', 'pyarrow', 'open_clip', 'jaxtyping'}"
    code = f"import sys, nadpipe.config; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_key_has_a_description():
    def describe(section, prefix=""):
        for name, field in section.model_fields.items():
            if name == "datasets" and section is Config:
                yield from describe(Dataset, "datasets.*.")
            elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from describe(field.annotation, f"{name}.")
            else:
                yield f"{prefix}{name}", field.description

    descriptions = dict(describe(Config))
    assert {
        f"{name}.{key}" for name, keys in GOOD.items() if isinstance(keys, dict) and name != "datasets" for key in keys
    } <= set(descriptions)
    assert [key for key, text in descriptions.items() if not (text or "").endswith(".")] == []


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)  # a busy machine can exceed the default of 200 ms per example
@given(
    st.sampled_from([f"{section}.{key}" for section, content in GOOD.items() if isinstance(content, dict) for key in content]),
    json_like,
)
def test_any_value_is_accepted_or_refused_with_its_key(key, value):
    try:
        check(changed(key, value))
    except NadpipeError as error:
        for line in str(error).split("\n"):
            assert line.startswith(f"config: {key}")


def test_a_url_need_not_exist_on_disk_but_must_be_outside_of_fetched_folders():
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
            "text.dictionary: s3://bucket/photos/words.txt is inside",
        ),
        (
            "model",
            {**config["model"], "pretrained": "s3://bucket/scenes/m.pt"},
            "for datasets.segmentation.path; keep them apart",
        ),
        (
            "datasets",
            {**config["datasets"], "more": {"layout": "table", "path": "s3://bucket/all.csv"}},
            "datasets.more.path: s3://bucket is a whole bucket; ",
        ),
    ]:
        with pytest.raises(NadpipeError, match=re.escape(message)):
            check({**config, key: value})
