"""Fingerprints cover all code that a stage's numbers depend on, and nothing else."""

import ast
import dataclasses
import importlib
import pkgutil
import shutil
import sys

import numpy as np
import pytest
import stage_run
from PIL import Image

import nadpipe.stages
from nadpipe.circuit.unit_kinds import UNITS
from nadpipe.data.layouts import LAYOUTS
from nadpipe.fingerprint import (
    PACKAGE,
    Definition,
    code_fingerprint,
    is_plumbing,
    record_definitions,
    record_fingerprint,
    used_definitions,
)

STAGES = [module.name for module in pkgutil.iter_modules(nadpipe.stages.__path__)]


@pytest.fixture
def edit(tmp_path):
    """Return a function that makes a copy of the package with some texts (module, old, new) replaced."""
    copies = map(str, range(100))

    def replace(*edits):
        copy = tmp_path / next(copies) / "nadpipe"
        shutil.copytree(PACKAGE, copy, ignore=lambda _, names: [name for name in names if "." in name and name[-3:] != ".py"])
        for module, old, new in edits:
            path = copy / module
            source = path.read_text()
            assert old in source
            path.write_text(source.replace(old, new))
        return copy

    return replace


def prints(stage, package):
    return code_fingerprint(f"nadpipe.stages.{stage}", package)


def test_an_edit_of_numerics_changes_only_the_fingerprints_of_their_users(edit):
    edited = edit(("circuit/directions.py", "_ZERO = 1e-6", "_ZERO = 1e-7"))
    assert prints("fit_directions", edited) != prints("fit_directions", PACKAGE)
    for stage in ("select_pairs", "assign_texts", "compute_contributions"):  # use other functions of the same module, or none
        assert prints(stage, edited) == prints(stage, PACKAGE)


def test_numerics_that_the_store_uses_change_fingerprints_and_the_store_does_not(edit):
    numerics = edit(("circuit/directions.py", "normalise(write_vectors(readout, head)) *", "write_vectors(readout, head) *"))
    assert prints("assign_texts", numerics) != prints("assign_texts", PACKAGE)  # by PairDirections of store/pairs.py
    store = edit(("store/pairs.py", "return self.store.tensor", "return 1 * self.store.tensor"))
    assert prints("assign_texts", store) == prints("assign_texts", PACKAGE)


WORDS = [
    ("circuit/naming.py", '"""Scale each row', '"""In other words, scale each row'),
    ("circuit/naming.py", "def normalise(", "# a remark\n\n\ndef normalise("),
    ("stages/correlate_texts.py", '"correlating pairs"', '"comparing"'),
    ("stages/extract_features.py", "print(result", 'print("news", result'),
    ("data/views.py", "replace the file or", "repair the file or"),
    ("circuit/methods.py", 'summary="', 'summary="Once more: '),
    ("circuit/readout.py", "lower it", "choose fewer"),
    ("errors.py", "Exception", "RuntimeError"),
    ("progress.py", "mininterval=10", "mininterval=1"),
]


def test_texts_for_people_change_no_fingerprint(edit):
    edited = edit(*WORDS)
    assert {stage: prints(stage, edited) for stage in STAGES} == {stage: prints(stage, PACKAGE) for stage in STAGES}


def test_types_of_schemas_change_fingerprints_and_comments_do_not(monkeypatch):

    from nadpipe.store.kinds import segmentation

    def with_columns(**changes):
        columns = {name: dataclasses.replace(column, **changes) for name, column in segmentation.CONFUSION.columns.items()}
        code_fingerprint.cache_clear()
        monkeypatch.setattr(segmentation, "CONFUSION", dataclasses.replace(segmentation.CONFUSION, columns=columns))
        return {stage for stage in STAGES if prints(stage, PACKAGE) != before[stage]}

    before = {stage: prints(stage, PACKAGE) for stage in STAGES}
    assert with_columns(comment="other words") == set()
    assert with_columns(type="string") == {"segment_images", "score_segmentation", "draw_contact_sheets", "measure_shares"}
    monkeypatch.undo()
    code_fingerprint.cache_clear()


def test_stages_have_different_fingerprints():
    assert len({prints(stage, PACKAGE) for stage in STAGES}) == len(STAGES)


def test_every_import_of_the_package_can_be_resolved():
    """An import that the fingerprint cannot follow would hide the code behind it."""
    for stage in STAGES:
        for definition in used_definitions(f"nadpipe.stages.{stage}"):
            importlib.import_module(definition.module)
            assert definition.name == "" or hasattr(sys.modules[definition.module], definition.name)


def top_level_definitions():
    """Return, by file, the lines of every function and class of the package with its definition."""
    tops = {}
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                tops.setdefault(str(path), []).append((first, node.end_lineno, Definition(module, node.name)))
    return tops


class Recorder:
    """Recorder of the definitions of the package whose code runs, per stage."""

    def __init__(self):
        self.tops = top_level_definitions()
        self.executed = {}

    def record(self, stage):
        """Return the stage as a function that records the definitions it runs."""

        def run(*arguments, **options):
            codes = set()
            sys.setprofile(lambda frame, event, _: codes.add(frame.f_code) if event == "call" else None)
            try:
                return stage(*arguments, **options)
            finally:
                sys.setprofile(None)
                self.executed.setdefault(stage.__name__, set()).update(self.definitions(codes))

        return run

    def definitions(self, codes):
        """Return the definitions that these code objects belong to."""
        return {
            definition
            for code in codes
            for first, last, definition in self.tops.get(code.co_filename, [])
            if first <= code.co_firstlineno <= last and code.co_name != "<module>" and not is_plumbing(definition.module)
        }


def test_fingerprints_cover_all_code_that_runs(run, monkeypatch):
    """Stages run on the tiny model. Their fingerprints must include every definition that they call."""
    recorder = Recorder()
    for stage in set(STAGES) & set(vars(stage_run)):
        monkeypatch.setattr(stage_run, stage, recorder.record(getattr(stage_run, stage)))
    masks = [Image.fromarray(np.full((70, 90), 1, np.uint8)) for _ in range(8)]
    for number, mask in enumerate(masks):
        mask.save(run.folder / f"mask {number}.png")
    run.write_images(stage_run.noise(8), mask=[f"mask {number}.png" for number in range(8)])
    contributions = run.decompose(shards=2, views="sliding")
    for unit in UNITS:
        run.tabulate(unit, contributions)
    run.classes()
    run.select(contributions)
    run.segment(contributions)
    run.score(run.folder / "c-0.parquet")
    assert len(recorder.executed) >= 14
    for stage, executed in recorder.executed.items():
        assert executed, stage
        record = record_definitions(LAYOUTS["table"]) if stage in ("index_images", "index_classes") else []
        assert executed - {*used_definitions(f"nadpipe.stages.{stage}"), *record} == set(), stage


def test_a_record_of_the_registry_counts_only_for_data_sets_of_its_layout():
    prints = {name: record_fingerprint(layout) for name, layout in LAYOUTS.items()}
    assert len(set(prints.values())) == len(LAYOUTS)
    described = dataclasses.replace(LAYOUTS["tree"], description="in other words")
    assert record_fingerprint(described) == prints["tree"]
    assert record_fingerprint(dataclasses.replace(LAYOUTS["tree"], splits=("train",))) != prints["tree"]
    other = {definition.name for definition in record_definitions(LAYOUTS["tree"])}
    assert "Tree" in other
    assert "StanfordCars" not in other
