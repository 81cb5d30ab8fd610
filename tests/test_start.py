"""Studies that `nadpipe init` starts, and the workflow without a clone: from a wheel, and inside another workflow."""

import contextlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from hatchling.build import build_wheel
from PIL import Image

from nadpipe.cli import main
from nadpipe.config import check
from nadpipe.errors import BAD_INPUT
from nadpipe.preflight import check_images

ROOT = Path(__file__).parents[1]


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Return an empty working folder, with photographs and a table beside it as `nadpipe init` expects them."""
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        path = tmp_path / "photos" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 48), (20 * number, 0, 0)).save(path)
    rows = "".join(f"photos/{number}.png,photos/{number}.png,{2020 + number % 2}\n" for number in range(12))
    for name in ("segmentation.csv", "monitoring.csv"):
        (tmp_path / name).write_text(f"path,mask,group\n{rows}")
    return tmp_path


@pytest.mark.parametrize("case", ["images", "segmentation", "monitoring"])
def test_a_new_config_suits_its_case_and_is_kept(study, capsys, case):
    assert main(["init", case]) == 0
    assert "nadpipe run" in capsys.readouterr().out
    text = (study / "config.yaml").read_text()
    complete = check(yaml.safe_load(text))
    check_images(complete)
    assert complete["segmentation"]["datasets"] == (["own"] if case == "segmentation" else [])
    assert ("monitoring" in complete["datasets"]) == (case == "monitoring") == bool(complete["shift"]["concepts"])
    assert main(["init", "demo"]) == BAD_INPUT
    assert capsys.readouterr().err == "nadpipe init: config.yaml: exists and is kept; remove it, or give another --folder\n"
    assert (study / "config.yaml").read_text() == text


def test_a_new_config_of_the_demo_is_the_demos(study):
    assert main(["init", "demo", "--folder", "new/demo"]) == 0
    assert (study / "new/demo/config.yaml").read_bytes() == (ROOT / "config.yaml").read_bytes()


@pytest.mark.parametrize("text", ["a b", "it's: 1", '"', "$photos", "${path}", "#1", "C:\\new", "\u5199\u771f", "null", "07"])
def test_paths_reach_the_config_as_they_are(study, text):
    assert main(["init", "monitoring", "--photos", text, "--path", text, "--architecture", "hf-hub:a/b"]) == 0
    config = yaml.safe_load((study / "config.yaml").read_text(encoding="utf-8"))
    assert [source["path"] for source in config["datasets"].values()] == [text, text]
    assert config["model"] == {"architecture": "hf-hub:a/b", "pretrained": None}


@pytest.fixture
def snakemake(monkeypatch):
    """Replace Snakemake by a list of its arguments; it exits with 3."""
    given = []
    monkeypatch.setattr("snakemake.cli.main", lambda arguments: (given.extend(arguments), sys.exit(3)))
    monkeypatch.setenv("PATH", "/nowhere")
    return given


@pytest.mark.parametrize(
    "words",
    ["", "all", "a.csv -n", "--cores 2", "--cores=2", "-c2", "-j 4", "-nq", "--profile p", "--executor slurm", "--quiet", "-q"],
)
def test_run_passes_everything_on_and_uses_all_cores_by_default(study, snakemake, capsys, words):
    assert main(["run", *words.split()]) == 3
    snakefile, *rest = snakemake[1:]
    assert snakemake[0] == "--snakefile"
    assert Path(snakefile) == ROOT / "Snakefile"
    chosen = words not in ("", "all", "--quiet", "-q")
    assert rest == words.split() + ([] if chosen else ["--cores", "all"])
    assert os.environ["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert ("demo" in capsys.readouterr().err) == ("--profile" not in words)


def test_run_says_nothing_about_the_demo_where_there_is_a_config(study, snakemake, capsys):
    main(["init"])
    assert main(["run"]) == 3
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("words", ["-s Snakefile", "--snakefile=a", "-sa"])
def test_run_refuses_another_snakefile(study, snakemake, capsys, words):
    assert main(["run", *words.split()]) == BAD_INPUT
    assert capsys.readouterr().err.startswith("nadpipe run: --snakefile: ")
    assert snakemake == []


@pytest.mark.parametrize("option", ["--configfile", "--configfiles", "--configfile good.yaml"])
def test_run_refuses_a_config_that_snakemake_would_expand_without_end(study, snakemake, capsys, option):
    lines = ["a0: &a0 {x: 1}", *(f"a{number}: &a{number} {{l: *a{number - 1}, r: *a{number - 1}}}" for number in range(1, 60))]
    (study / "bomb.yaml").write_text("\n".join(lines))
    (study / "good.yaml").write_text("seed: 1\n")
    assert main(["run", "results/pairs.parquet", "-n", *option.split(), "bomb.yaml"]) == BAD_INPUT
    assert capsys.readouterr().err.startswith("nadpipe run: bomb.yaml: more than 100,000 values")
    assert snakemake == []
    assert main(["run", "-n", "--configfile", "good.yaml"]) == 3


def test_run_explains_itself(capsys):
    assert main(["run", "--help"]) == 0
    text = capsys.readouterr().out
    assert f"--profile FOLDER    a profile, such as {ROOT}/profiles/slurm" in text
    assert all(option in text for option in ("--cores", "-n ", "--configfile", "--directory"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Return a folder with the installed files of a wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    with contextlib.chdir(ROOT):
        name = build_wheel(str(folder))
    with zipfile.ZipFile(folder / name) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
def test_a_wheel_has_the_whole_workflow(wheel):
    for name in ("Snakefile", "config.yaml", "envs/nadpipe.yaml", "profiles/slurm/config.yaml"):
        assert (wheel / "nadpipe/workflow" / name).read_bytes() == (ROOT / name).read_bytes()
    names = {str(path.relative_to(ROOT)) for path in (ROOT / "rules").rglob("*") if path.is_file()}
    assert names == {
        str(path.relative_to(wheel / "nadpipe/workflow")) for path in (wheel / "nadpipe/workflow/rules").rglob("*.*")
    }


@pytest.mark.slow
def test_a_wheel_runs_in_an_empty_folder(wheel, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(wheel), "PATH": os.defpath}
    target = "results/artifacts/segmentation/classes.parquet"
    words = [sys.executable, "-m", "nadpipe", "run", target, "--cores", "1"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.startswith("no config.yaml in this folder: running the embedded demo")
    assert (tmp_path / target).exists()
    assert str(ROOT) not in done.stderr


IMPORTING = """
from nadpipe.start.run import workflow_folder

configfile: "config.yaml"

module clip:
    snakefile: f"{{workflow_folder()}}/Snakefile"
    {statements}

use rule * from clip as clip_*

rule own:
    default_target: True
    input: "{prefix}results/segmentation.csv"
    output: "own.txt"
    shell: "nadpipe {{input}} > {{output}}"
"""
SMALL = """
other: setting
clip:
  model: {architecture: results/demo/model.json, pretrained: results/demo/model.safetensors}
  datasets:
    discovery: {layout: table, path: results/demo/discovery.csv, shards: 3}
    segmentation: {layout: table, path: results/demo/segmentation.csv, mask_column: mask_path, classes: [fish, leaf]}
  text: {dictionary: results/demo/dictionary.txt}
  segmentation: {datasets: [segmentation]}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statements", "prefix", "shards"),
    [("", "", 2), ('config: config["clip"]\n    prefix: "a/clip"', "a/clip/", 3)],
)
def test_another_workflow_imports_this_one(tmp_path, statements, prefix, shards):
    (tmp_path / "Snakefile").write_text(IMPORTING.format(statements=statements, prefix=prefix))
    (tmp_path / "config.yaml").write_text(SMALL)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.defpath])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path}
    words = [sys.executable, "-m", "snakemake", "-n", "--printshellcmds"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    commands = "\n".join(re.findall(r"nadpipe [a-z].*", done.stdout))
    assert f"nadpipe {prefix}results/segmentation.csv > own.txt" in commands
    paths = set(re.findall(r"[\w/.-]*results/[\w/.-]+", commands))
    assert {path for path in paths if not path.startswith(f"{prefix}results/")} == set()
    assert {f"{prefix}results/{name}" for name in ("demo/model.json", "demo/segmentation.csv", "artifacts/text/cache")} <= paths
    assert len([path for path in paths if "discovery/features/" in path]) == shards


@pytest.mark.slow
def test_an_importing_workflow_needs_the_command(tmp_path):
    (tmp_path / "Snakefile").write_text(IMPORTING.format(statements="", prefix=""))
    (tmp_path / "config.yaml").write_text("{}")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": os.defpath}
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == BAD_INPUT
    assert done.stderr.splitlines()[-1].endswith("install nadpipe in the same environment")
