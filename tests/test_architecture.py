"""The package's imports go downwards only, as docs/architecture.md and CONTRIBUTING.md say."""

import ast
import functools
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nadpipe"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
MAY_IMPORT = {  # packages and top-level modules, besides the package itself
    "circuit": {"errors"},
    "store": {"circuit", "errors", "fingerprint"},
    "data": {"towers", "store", "circuit", "errors", "progress"},
    "towers": {"store", "circuit", "errors", "progress"},
    "pages": {"data", "store", "circuit", "errors", "progress"},
    "demo": {"errors", "progress"},
    "library": {"stages", "pages", "data", "towers", "store", "circuit", "errors", "progress"},
    "looks": {"library", "stages", "pages", "data", "towers", "store", "circuit", "errors", "progress"},
    "start": {"config_file", "errors"},
    "stages": {"pages", "data", "towers", "store", "circuit", "demo", "errors", "progress", "fingerprint"},
    "errors": set(),
    "progress": set(),
    "fingerprint": set(),
    "analyses": {"store"},
    "needs": {"data"},
    "outcome": set(),
    "preflight": {"config", "data", "errors"},
    "config": {"config_file", "circuit", "data", "store", "errors"},
    "config_file": {"store", "errors"},
    "cli": {"errors"},
    "__main__": {"cli"},
}
ALONE = {  # libraries that one package alone knows; the demo trains a model of open_clip
    "zarr": {"store"},
    "pyarrow": {"store"},
    "open_clip": {"towers", "demo.train"},
    "timm": {"towers"},
    "matplotlib": {"pages"},
    "altair": {"pages"},
    "snakemake": {"start"},
}


@functools.cache
def parse(path):
    return ast.parse(path.read_text())


def imports(path, lazy):
    """Yield the modules that a file imports, with those inside functions if lazy."""
    tree = parse(path)
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (name for alias in node.names for name in (node.module, f"{node.module}.{alias.name}"))


def area(module):
    """Return the package or top-level module below nadpipe that a module belongs to."""
    return module.split(".")[1] if "." in module else ""


def test_imports_go_downwards():
    upwards = {}
    for module in MODULES.keys() - {"nadpipe"}:
        allowed = MAY_IMPORT[area(module)] | {area(module)}
        imported = {area(name) for name in imports(MODULES[module], lazy=True) if name in MODULES and name != "nadpipe"}
        upwards[module] = imported - allowed
    assert {module: areas for module, areas in upwards.items() if areas} == {}


def test_there_are_no_import_cycles():
    graph = {
        module: {name for name in imports(path, lazy=False) if name in MODULES} - {module} for module, path in MODULES.items()
    }
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)  # raises CycleError otherwise


@pytest.mark.parametrize("library", ALONE)
def test_a_library_is_known_to_one_package_alone(library):
    users = {module for module, path in MODULES.items() if library in {name.split(".")[0] for name in imports(path, lazy=True)}}
    elsewhere = {name.removeprefix("nadpipe.") for name in users} - ALONE[library]
    assert {name for name in elsewhere if area(f"nadpipe.{name}") not in ALONE[library]} == set()


def test_no_job_reads_the_features_of_several_shards():
    """On remote storage, a job fetches its inputs, and features are the largest artifacts."""
    rules = "".join(path.read_text() for path in (PACKAGE.parent / "rules").rglob("*.smk"))
    assert set(re.findall(r"artifacts/[\w{}]+/features/([^.]+)\.zarr", rules)) == {"{shard}"}
    assert re.findall(r"shards\([^)]*\bfeatures\b[^)]*\)", rules) == []
