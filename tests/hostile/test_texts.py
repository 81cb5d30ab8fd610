"""Texts, names and paths of the config reach the stages as they are, whatever they look like."""

import functools
import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import TINY

from nadpipe.cli import commands, main
from nadpipe.config import Config, check
from nadpipe.data.classes import read_class_file
from nadpipe.data.dictionaries import read_dictionary
from nadpipe.errors import BAD_INPUT, NadpipeError

ROOT = Path(__file__).parents[2]
WORDS = [
    "--help",
    "--cache=/tmp/x",
    "-o",
    "None",
    "null",
    "{set}",
    "{}{dataset}",
    "$(touch x)",
    "`touch x`",
    "a'b\"c",
    "\\",
    "*",
    "@x",
]
CONFIG = {
    "model": {"architecture": "--help {} .json", "pretrained": "-x {}.safetensors"},
    "datasets": {
        "discovery": {
            "layout": "table",
            "path": "--path {}.csv",
            "path_column": "--output",
            "label_column": "None",
            "labels": "--labels {}.csv",
        },
        "monitoring": {"layout": "table", "path": "-m.csv", "path_column": "-o", "group_column": "{unit}"},
        "listed": {"layout": "table", "path": "-l.csv", "mask_column": "--mask=", "classes": WORDS},
        "filed": {"layout": "table", "path": "-l.csv", "mask_column": "--mask=", "classes": "--class {}.csv"},
        "foldered": {"layout": "folder", "path": "--folder {}", "split": "--reduce-zero"},
    },
    "text": {
        "dictionary": "--dictionary {}.txt",
        "templates": [f"{word.replace('{}', '')} {{}}" for word in WORDS],
        "cache": "--cache {set} $(touch x)",
    },
    "segmentation": {"datasets": ["listed", "filed", "foldered"]},
    "shift": {"concepts": WORDS, "reference": "--test=ks"},
    "analyses": {"dataset": "discovery"},
}
DATASETS, TEXT, SHIFT = CONFIG["datasets"], CONFIG["text"], CONFIG["shift"]


def source(name):
    """Return what the stage that lists a data set must receive."""
    keys = DATASETS[name].keys() - {"classes"}
    return [("index_images", {"dataset": name}, key, DATASETS[name][key]) for key in keys]


EXPECTED = [  # rule, wildcards, parameter of the stage, value
    *((rule, {}, *item) for item in CONFIG["model"].items() for rule in ("export_readout", "extract_features", "embed_texts")),
    *(expected for name in DATASETS for expected in source(name)),
    ("index_classes", {"dataset": "listed"}, "classes", tuple(WORDS)),
    ("index_classes", {"dataset": "filed"}, "class_file", DATASETS["filed"]["classes"]),
    ("index_classes", {"dataset": "foldered"}, "path", DATASETS["foldered"]["path"]),
    ("index_classes", {"dataset": "foldered"}, "split", DATASETS["foldered"]["split"]),
    ("embed_texts", {"set": "dictionary"}, "dictionary", TEXT["dictionary"]),
    ("embed_texts", {"set": "concepts"}, "texts", tuple(SHIFT["concepts"])),
    ("embed_texts", {}, "templates", tuple(TEXT["templates"])),
    ("embed_texts", {}, "cache", TEXT["cache"]),
    ("score_shift", {}, "reference", SHIFT["reference"]),
    ("rank_shifts", {}, "reference", SHIFT["reference"]),
    ("make_report", {}, "concepts", tuple(SHIFT["concepts"])),
]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Return a folder with the files that CONFIG names."""
    folder = tmp_path_factory.mktemp("study {name} {}")
    images, seen = "a.png", DATASETS
    (folder / CONFIG["model"]["architecture"]).write_text(json.dumps(TINY))
    (folder / CONFIG["model"]["pretrained"]).write_bytes(b"")
    (folder / seen["discovery"]["path"]).write_text(f"--output,None\n{images},x\n")
    (folder / seen["discovery"]["labels"]).write_text(f"image,red\n{images},1\n")
    (folder / seen["monitoring"]["path"]).write_text(f"-o,{{unit}}\n{images},2018\n")
    (folder / seen["listed"]["path"]).write_text(f"path,--mask=\n{images},{images}\n")
    (folder / seen["filed"]["classes"]).write_text("names\ncat\ndog\n")
    (folder / TEXT["dictionary"]).write_text("--help\n{set}\n")
    for name in ("images", "masks", "splits"):
        (folder / seen["foldered"]["path"] / name).mkdir(parents=True)
    (folder / seen["foldered"]["path"] / "classes.csv").write_text("names\ncat\ndog\n")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


def render(folder, *arguments):
    """Return the jobs of `all` in a folder."""
    script = ROOT / "tests" / "commands.py"
    done = subprocess.run([sys.executable, str(script), *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def recorder(function, received):
    """Return a function of the same signature that only records its arguments."""

    @functools.wraps(function)
    def record(**options):
        received.update({name: str(value) if isinstance(value, Path) else value for name, value in options.items()})

    return record


@pytest.fixture(scope="module")
def received(study):
    """Return rule, wildcards and the options that the stage receives, for every job."""
    jobs = []
    for job in render(study):
        program, *arguments = shlex.split(job["command"])
        assert program == "nadpipe"
        assert arguments.pop().startswith("2>logs/")
        module, name, options = importlib.import_module(commands()[arguments[0]]), arguments[0].replace("-", "_"), {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, recorder(getattr(module, name), options))
            assert main(arguments) == 0, job
        jobs.append((job["rule"], job["wildcards"], options))
    return jobs


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "wildcards", "name", "value"), EXPECTED, ids=lambda value: str(value)[:30])
def test_a_stage_receives_the_texts_of_the_config(received, tally, rule, wildcards, name, value):
    values = [options[name] for made, of, options in received if made == rule and wildcards.items() <= of.items()]
    assert values
    assert all(received == value for received in values)
    tally("texts, names and paths in commands", False)


@pytest.mark.slow
def test_results_stay_in_the_results_folder(received):
    outputs = [value for _, _, options in received for name, value in options.items() if name.startswith("output")]
    assert len(outputs) > 30
    assert [output for output in outputs if not output.startswith("results/")] == []


@pytest.mark.slow
def test_the_settings_in_the_provenance_are_those_of_the_config(received):
    [described] = [options["config"] for rule, _, options in received if rule == "describe_results"]
    assert json.loads(described)["text"]["templates"] == TEXT["templates"]
    assert json.loads(described)["datasets"]["discovery"]["path"] == DATASETS["discovery"]["path"]


RESTRICTED = {  # a pattern or the names of data sets allow no other texts
    *("device", "assignments.device", "segmentation.sink"),
    *("dense.datasets", "segmentation.datasets", "analyses.dataset"),
}


def free_texts(schema, section, prefix=""):
    """Yield the keys of a section that accept any text."""
    for name, field in section["properties"].items():
        options = [field, *field.get("anyOf", ()), *field.get("oneOf", ())]
        options += [option["items"] for option in options if "items" in option]
        for option in options:
            inner = option.get("additionalProperties") or option
            if isinstance(inner, dict) and "$ref" in inner:
                yield from free_texts(schema, schema["$defs"][inner["$ref"].rpartition("/")[2]], f"{prefix}{name}.")
            elif option.get("type") == "string" and "enum" not in option and "const" not in option:
                yield f"{prefix}{name}"


def test_every_key_that_accepts_any_text_is_tested():
    """The keys of a data set count once."""
    schema = Config.model_json_schema()
    keys = set(free_texts(schema, schema)) - RESTRICTED
    tested = {f"{section}.{key}" for section in ("model", "text", "shift") for key in CONFIG[section]}
    tested |= {f"datasets.{key}" for dataset in DATASETS.values() for key in dataset}
    assert keys <= tested
    assert len(keys) >= 13


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clone {}", "{name}"])
def test_a_clone_in_a_folder_with_braces_is_refused(study, tmp_path, tally, name):
    (tmp_path / name).symlink_to(ROOT)
    command = [sys.executable, "-m", "snakemake", "-n", "--snakefile", str(tmp_path / name / "Snakefile")]
    refused = subprocess.run(command, cwd=study, capture_output=True, text=True)
    assert refused.returncode == BAD_INPUT
    assert refused.stderr.splitlines()[-1].startswith(f"{tmp_path / name}: contains braces")
    assert "Traceback" not in refused.stderr
    tally("paths with braces", True)


def test_a_path_with_a_name_in_braces_is_refused(tmp_path, tally, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a {set}").mkdir()
    with pytest.raises(NadpipeError, match=r"datasets\.discovery\.path: 'a {set}' contains a name in braces"):
        check({"model": {"architecture": "RN50"}, "datasets": {"discovery": {"layout": "tree", "path": "a {set}"}}})
    tally("paths with braces", True)


@pytest.mark.parametrize(
    "text", ["a\x1b[31m", "a\0", "a\x9b", "a\ud800", "x" * 1001], ids=["escape", "nul", "c1", "surrogate", "long"]
)
@pytest.mark.parametrize("key", ["concepts", "templates", "classes", "dictionary", "class file"])
def test_texts_with_control_characters_and_endless_texts_are_refused(tmp_path, tally, monkeypatch, key, text):
    monkeypatch.chdir(tmp_path)
    config = {"model": {"architecture": "RN50"}, "datasets": {"discovery": {"layout": "tree", "path": "."}}}
    if key == "classes":
        config["datasets"]["discovery"]["classes"] = [text, "b"]
    elif key == "concepts":
        config["shift"] = {"concepts": [text]}
    elif key == "templates":
        config["text"] = {"templates": [f"{text} {{}}"]}
    with pytest.raises(NadpipeError) as error:
        if key in ("dictionary", "class file"):
            Path("t.txt").write_bytes(f"b\n{text}\n".encode("utf-8", "surrogatepass"))
            read_dictionary("t.txt") if key == "dictionary" else read_class_file(Path("t.txt"))
        check(config)
    assert "\n" not in str(error.value)
    assert str(error.value).isprintable()
    assert key in str(error.value) or "t.txt: " in str(error.value)
    tally("texts with control characters", True)


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path, tally):
    (tmp_path / "t.txt").write_bytes("\ufeffcat\r\ndog\rsky".encode())
    assert read_dictionary(str(tmp_path / "t.txt")) == ["cat", "dog", "sky"]
    tally("texts with control characters", False)
