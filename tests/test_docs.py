"""Every command and every code block in README.md and docs/ runs, and their lists are complete."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pandas as pd
import pytest
import yaml
from changes import CHANGES
from checkout import Checkout, warm_server
from conftest import TINY
from PIL import Image
from safetensors.torch import save_file

from nadpipe.config import check, is_url
from nadpipe.data.classes import read_class_file
from nadpipe.store.kinds.units import UNIT_TABLES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "nadpipe" / "demo").glob("*.md"))]
BLOCK = re.compile(r"(<!-- (\w+) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
BLOCKS = [(page.name, *match.groups()[1:]) for page in PAGES for match in BLOCK.finditer(page.read_text())]
CONFIGS = [(page, content) for page, _, kind, content in BLOCKS if kind == "yaml"]
README = (ROOT / "README.md").read_text()


def shown(language, marked=False):
    return [(page, content) for page, marker, kind, content in BLOCKS if kind == language and (marker is not None) == marked]


def test_ci_runs_the_two_set_up_commands_of_the_readme():
    assert [(marker, kind) for page, marker, kind, _ in BLOCKS if marker and page == "README.md"] == [
        ("demo", "bash"),
        ("tests", "bash"),
    ]
    script = (ROOT / ".ci" / "run").read_text()
    for marker in ("demo", "tests"):
        assert f'bash -c "$(readme_command {marker})"' in script
    assert all(len(content.strip().splitlines()) == 1 for _, content in shown("bash", marked=True))


@pytest.fixture(scope="module")
def own_data(tmp_path_factory, tiny_clip):
    """Return a checkout with the files that the README's section on own data expects, and a model that needs no download."""
    checkout = Checkout(tmp_path_factory.mktemp("own"))
    (checkout.folder / "photos" / "cat").mkdir(parents=True)
    for number in range(5):
        Image.effect_noise((80 + number, 70), 60).save(checkout.folder / "photos" / "cat" / f"{number}.png")
    (checkout.folder / "words.txt").write_text("cat\ndog\n\nhouse on a hill\ntree\n", encoding="utf-8")
    save_file(
        {name: value.contiguous() for name, value in tiny_clip.state_dict().items()}, checkout.folder / "tiny.safetensors"
    )
    (checkout.folder / "tiny.json").write_text(json.dumps(TINY))
    mine, more = (yaml.safe_load(content) for page, content in CONFIGS if page == "README.md")
    assert mine["model"] == {"architecture": "RN50x16-quickgelu", "pretrained": "openai"}
    mine["model"] = {"architecture": "tiny.json", "pretrained": "tiny.safetensors"}
    mine["datasets"] |= more.pop("datasets")
    (checkout.folder / "my.yaml").write_text(yaml.safe_dump(mine | more))
    return checkout


@pytest.mark.parametrize(("page", "block"), shown("bash"), ids=lambda value: value.splitlines()[0])
def test_every_command_runs(checkout, request, page, block):
    for line in block.strip().splitlines():
        program, *arguments = shlex.split(line, comments=True)
        if program == "snakemake":
            run_in = request.getfixturevalue("own_data") if "my.yaml" in arguments else checkout
            run_in.run(*arguments)
        else:
            assert program == "nadpipe", f"{page}: {line}"
            python = warm_server().bin / "python"
            subprocess.run([python, "-m", "nadpipe", *arguments], cwd=checkout.folder, check=True, capture_output=True)


def test_the_own_data_command_named_the_units_of_the_other_model(own_data):
    own_data.run("results/pairs.parquet", "--configfile", "my.yaml")
    pairs = pd.read_parquet(own_data.folder / "results" / "pairs.parquet")
    assert len(pairs) == 4 * 128
    assert set(pairs["nearest_text"].dropna()) <= {"cat", "dog", "house on a hill", "tree"}


def test_the_own_photographs_without_masks_were_segmented(own_data):
    own_data.run("results/shares.csv", "--configfile", "my.yaml")
    shares = pd.read_csv(own_data.folder / "results" / "shares.csv")
    assert set(shares["class"]) == {"road", "vehicle", "sky"}
    assert set(shares["images"]) == {5}
    assert shares["mask_share"].isna().all()
    assert shares.groupby("method")["share"].sum().to_numpy() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("page", "block"), shown("python"), ids=lambda value: value.splitlines()[0])
def test_every_piece_of_python_runs(finished, tmp_path, page, block):
    (tmp_path / "piece.py").write_text(block)
    words = [warm_server().bin / "python", "-m", "runpy", "piece"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(words, cwd=finished.folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{page}: {done.stderr}"
    assert done.stdout.strip()


def test_what_the_pages_import_is_installed_without_extras():
    """The README's first command installs the dependencies alone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = {re.match(r"[\w-]+", requirement)[0].lower().replace("_", "-") for requirement in project["dependencies"]}
    distributions = packages_distributions()
    trees = [ast.parse(block) for _, block in shown("python")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    packages = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"nadpipe"}
    assert {"pandas", "duckdb", "xarray"} <= packages
    assert {package for package in packages if not installed & {name.lower() for name in distributions[package]}} == set()


@pytest.mark.parametrize(("page", "block"), CONFIGS, ids=lambda value: value.splitlines()[0])
def test_the_example_configs_are_valid(page, block):
    own = {
        "model": {"architecture": "RN50", "pretrained": "openai"},
        "datasets": {"discovery": {"layout": "tree", "path": "photos"}},
    }
    config = own | yaml.safe_load(block)
    config["datasets"] = own["datasets"] | config["datasets"]
    for dataset in config["datasets"].values():  # files of the reader
        dataset["path"] = dataset["path"] if is_url(dataset["path"]) else str(ROOT)
    if "dictionary" in config.get("text", {}) and not is_url(config["text"]["dictionary"]):
        config["text"]["dictionary"] = str(ROOT)
    check(config)


def test_class_files_in_the_docs_can_be_read(tmp_path):
    first, second = (content for _, content in shown("text") if "road" in content)
    for name, content in (("classes.txt", first), ("classes.csv", second)):
        (tmp_path / name).write_text(content)
    text, table = (read_class_file(tmp_path / name) for name in ("classes.txt", "classes.csv"))
    assert text.titles == ("road", "vehicle", "sky")
    assert table.names == text.names[:2]
    assert table.ignored_values == (0, 255)


def printed(script):
    """Return what a script of this clone prints, whichever clone is installed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, script], cwd=ROOT, env=environment, capture_output=True, check=True).stdout


def test_the_page_of_artifacts_is_made_from_the_schemas():
    page = printed("docs/make_artifacts_page.py")
    assert page.decode() == (ROOT / "docs" / "artifacts.md").read_text()


def test_the_page_of_the_configuration_is_made_from_the_config():
    page = printed("docs/make_configuration_page.py")
    assert page.decode() == (ROOT / "docs" / "configuration.md").read_text()


def test_the_page_of_changes_is_what_the_tests_plan():
    page = printed("tests/changes.py")
    assert page.decode() == (ROOT / "docs" / "changes.md").read_text()


def test_every_column_of_pairs_is_explained_in_the_readme():
    section = README[README.index("## Reading the columns") : README.index("`segmentation.csv`: ")]
    assert all(f"`{column}`" in section for column in UNIT_TABLES["pair"].columns)


def test_every_key_is_on_the_page_of_the_configuration():
    page = (ROOT / "docs" / "configuration.md").read_text()
    for key in CHANGES:
        name = re.sub(r"^datasets\.\w+\.", "datasets.<dataset>.", key)
        assert f"`{name}`" in page


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            if target.startswith("https://"):
                continue
            path, _, anchor = target.partition("#")
            linked = page.parent / path if path else page
            assert linked.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(linked.read_text()), f"{page.name}: {target}"


def anchors(page):
    """Return the anchors that a page's headings get."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_environment_of_the_rules_has_the_packages_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    rules = yaml.safe_load((ROOT / "envs" / "nadpipe.yaml").read_text())["dependencies"][-1]["pip"]
    assert [name for name in project if not name.startswith("snakemake")] == rules


def test_the_constraints_hold_every_direct_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"], *project["optional-dependencies"]["lint"]]
    held = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {re.match(r"[\w-]+", name)[0].lower().replace("_", "-") for name in wanted} - {"nadpipe"} <= held
