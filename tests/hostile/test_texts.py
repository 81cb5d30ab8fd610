"""Texts, names and paths of the config reach the stages as they are, whatever they look like."""

import functools
import html.parser
import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path

import jinja2
import pandas as pd
import pytest
import yaml
from conftest import TINY
from PIL import Image

from nadpipe.circuit.shift import groups_of
from nadpipe.cli import commands, main
from nadpipe.config import Config, check
from nadpipe.data.classes import read_class_file
from nadpipe.data.dictionaries import read_dictionary
from nadpipe.errors import BAD_INPUT, NadpipeError, visible
from nadpipe.pages import plots
from nadpipe.pages.explorer import Explorer
from nadpipe.pages.report import _script
from nadpipe.stages.index_images import index_images
from nadpipe.store.kinds.shift import SHIFT as SHIFT_TABLE
from nadpipe.store.manifest import read_images
from nadpipe.store.results import read_csv
from nadpipe.store.tables import write_csv

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
        "monitoring": {"layout": "table", "path": "-m.csv", "path_column": "-p", "group_column": "{unit}"},
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
    keys = [key for key in DATASETS[name] if key != "classes"]
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
    (folder / seen["discovery"]["path"]).write_text(
        "--output,None\n" + "".join(f"{image},x\n" for image in (images, "b.png", "c.png", "d.png"))
    )
    (folder / seen["discovery"]["labels"]).write_text(f"image,red\n{images},1\n")
    (folder / seen["monitoring"]["path"]).write_text(f"-p,{{unit}}\n{images},2018\nb.png,{SHIFT['reference']}\n")
    (folder / seen["listed"]["path"]).write_text(f"path,--mask=\n{images},{images}\n")
    (folder / seen["filed"]["classes"]).write_text("names\ncat\ndog\n")
    (folder / TEXT["dictionary"]).write_text("--help\n{set}\n")
    for name in ("images", "masks", "splits"):
        (folder / seen["foldered"]["path"] / name).mkdir(parents=True)
    (folder / seen["foldered"]["path"] / "classes.csv").write_text("names\ncat\ndog\n")
    (folder / seen["foldered"]["path"] / "splits" / f"{seen['foldered']['split']}.txt").write_text("a\n")
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


# ---------------------------------------------------------------------------------------- pages, plots and the terminal


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "<!--", "<script>", "]]>", "\u2028", '"', "\\", "&lt;"])
def test_no_text_ends_the_script_that_holds_a_chart(tally, text):
    script = _script({"title": text})
    assert "<" not in script
    assert json.loads(script) == {"title": text}
    page = environment("<script>{{ chart|safe }}</script><p>end</p>", chart=script)
    assert parsed_texts(page) == {"script": script, "p": "end"}
    tally("texts in pages", False)


def environment(template, **content):
    return jinja2.Environment(autoescape=True).from_string(template).render(**content)


def parsed_texts(page):
    """Return the text of each element of a page, as a browser reads it."""

    class Reader(html.parser.HTMLParser):
        element, texts = "", {}

        def handle_starttag(self, tag, attributes):
            self.element = tag

        def handle_data(self, data):
            self.texts[self.element] = self.texts.get(self.element, "") + data

    reader = Reader()
    reader.texts = {}
    reader.feed(page)
    reader.close()
    return reader.texts


@pytest.mark.parametrize("text", ["$", "$$", "$a$", r"$\frac{$", r"a\$b$c$", "{x}", "%s", "_a", "京都", "x" * 1000])
def test_names_in_plots_are_no_formulas(tmp_path, tally, text):
    table = pd.DataFrame({"method": "nad", "class": [text, "b"], "iou": [0.5, 0.6]})
    figure = plots.per_class_bars(table)
    plots.save(figure, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown == [plots.plain(text), "b"]
    assert plots.plain(text).replace(r"\$", "$")[:59] == text[:59]
    tally("texts in plots", False)


CONTROLS = "\x1b[31m\x07\x9b2J\r\u202e\u2066\x00\ud800"


def test_control_characters_do_not_reach_the_terminal(tmp_path, tally, capsys):
    escaped = visible(f"a\tb\nc ü 京 {CONTROLS}")
    assert escaped.startswith("a\tb\nc ü 京 \\x1b[31m\\x07\\x9b2J\\r\\u202e")
    assert escaped.replace("\t", "").replace("\n", "").isprintable()
    explorer = Explorer(tmp_path)
    vars(explorer)["texts"] = ["a", CONTROLS]  # a cached property
    assert explorer.format_texts([[0, 0.5], [1, 0.25]]).isprintable()
    table = tmp_path / "\x1b[31m.csv"
    table.write_text("path\n\x1b[32m.png\n")
    assert (
        main(["index-images", "--layout", "table", "--path", str(table), "--output", str(tmp_path / "i.parquet")]) == BAD_INPUT
    )
    assert capsys.readouterr().err.splitlines()[-1].isprintable()
    for _ in CONTROLS:
        tally("control characters for the terminal", False)


def test_groups_and_concepts_are_read_back_as_text(tmp_path, tally):
    """Numbers would merge groups: 8 of them would be 4."""
    groups = ["1.10", "1.1", "1e3", "1000", "01", "1", "12345678901234567", "12345678901234568"]
    table = pd.DataFrame(0, index=range(8), columns=list(SHIFT_TABLE.columns)).assign(group=groups, concept=groups)
    write_csv(tmp_path / "s.csv", SHIFT_TABLE, table)
    read = read_csv(tmp_path / "s.csv", SHIFT_TABLE)
    assert read["group"].tolist() == read["concept"].tolist() == groups
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    for number in range(1, 8):
        (tmp_path / f"{number}.png").hardlink_to(tmp_path / "0.png")
    pd.DataFrame({"path": [f"{number}.png" for number in range(8)], "group": groups}).to_csv(tmp_path / "t.csv", index=False)
    index_images("table", tmp_path / "t.csv", tmp_path / "i.parquet", group_column="group")
    assert set(groups_of(read_images(tmp_path / "i.parquet")["group"], "01", "t")) == set(groups)
    tally("groups that look like numbers", False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('{"none": 1}', "no option 'none'"),
        ("[1]", "not a JSON object"),
        ("{", "not a JSON object"),
        ('{"small_group": "many"}', "small_group is invalid"),
    ],
)
def test_invalid_settings_of_a_command_are_refused(capsys, tally, settings, message):
    assert main(["score-shift", f"--settings={settings}"]) == BAD_INPUT
    reported = capsys.readouterr().err
    assert reported.startswith(f"nadpipe score-shift: --settings: {message}")
    assert reported.count("\n") == 1
    tally("settings of commands", True)
