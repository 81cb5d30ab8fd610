"""A change of a setting or a module reruns exactly the rules that it affects, planned on a finished run of the small demo."""

import ast
from pathlib import Path

import pytest
import yaml
from changes import ALSO, BESIDE, CHANGES, EDITS, completed, followed
from plans import plan_edits, plan_settings

from nadpipe.config import Dataset

ROOT = Path(__file__).parents[1]
AGREES = "segmentation.k", "stages/fit_directions.py"  # one change of each table is also planned in a separate process


def keys(section, prefix=""):
    """Yield the full paths of all keys of the config."""
    for name, value in section.items():
        yield from keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]


def nested(key):
    """Return the change of a key as it is written in a config."""
    *sections, last = key.split(".")
    settings = {last: CHANGES[key][0], **BESIDE.get(key, {})}
    for name in reversed(sections):
        settings = {name: settings}
    return settings


class Edit(ast.NodeTransformer):
    """Edits every definition of a module, so that all code that uses any of them has changed."""

    def visit_FunctionDef(self, node):
        """Add a statement to a function."""
        node.body.append(ast.parse("_edited = True").body[0])
        return node

    visit_ClassDef = visit_FunctionDef

    def visit_Assign(self, node):
        """Wrap a constant in an expression of the same value."""
        value = ast.Tuple([node.value, ast.Constant("edited")], ast.Load())
        node.value = ast.Subscript(value, ast.Constant(0), ast.Load())
        return node

    def visit_AnnAssign(self, node):
        """Wrap a constant that has a type."""
        return node if node.value is None else self.visit_Assign(node)


def edited(folder, module):
    """Return a module of the package with every definition edited, by its path."""
    path = f"nadpipe/{module}"
    tree = Edit().visit(ast.parse((folder / path).read_text()))
    return {path: ast.unparse(ast.fix_missing_locations(tree))}


def test_every_key_of_the_config_is_in_the_table_of_changes(checkout):
    dataset_keys = {key for key in keys(checkout.config) if key.startswith("datasets.")}
    assert set(keys(checkout.config)) - dataset_keys == {key for key in CHANGES if not key.startswith("datasets.")}
    assert set(Dataset.model_fields) == {key.split(".")[2] for key in CHANGES if key.startswith("datasets.")}


@pytest.fixture(scope="module")
def changed_plans(checkout):
    """Return the plan after each change of a setting, laid over the config as users do."""
    return dict(zip(CHANGES, plan_settings(checkout.folder, [nested(key) for key in CHANGES]), strict=True))


@pytest.mark.parametrize("key", CHANGES)
def test_a_changed_setting_reruns_exactly_its_readers(checkout, changed_plans, key):
    value, expected = CHANGES[key]
    *sections, last = key.split(".")
    section = checkout.config
    for name in sections:
        section = section[name]
    assert section.get(last, ...) != value
    plan = changed_plans[key]
    assert plan == completed(followed(expected | ALSO.get(key, {}), plan.following), key)


def test_every_module_is_in_the_table_of_edits():
    package = ROOT / "nadpipe"
    assert {path.relative_to(package).as_posix() for path in package.rglob("*.py")} == EDITS.keys()


@pytest.fixture(scope="module")
def edited_plans(checkout):
    """Return the plan after each edit of a module. Edits that should rerun nothing are made together first."""

    def plan(modules):
        return plan_edits(checkout.folder, [edited(checkout.folder, module) for module in modules])

    inert = [module for module in EDITS if not EDITS[module]]
    together = {path: text for module in inert for path, text in edited(checkout.folder, module).items()}
    [joint] = plan_edits(checkout.folder, [together])
    single = [module for module in EDITS if module not in inert or joint]
    return dict.fromkeys(inert, joint) | dict(zip(single, plan(single), strict=True))


@pytest.mark.parametrize("module", EDITS)
def test_an_edited_module_reruns_exactly_the_stages_that_import_it(edited_plans, module):
    plan = edited_plans[module]
    assert plan == completed(followed(EDITS[module], plan.following))


def test_plans_in_one_process_equal_plans_in_separate_processes(checkout, changed_plans, edited_plans, tmp_path):
    key, module = AGREES
    settings = tmp_path / "change.yaml"
    settings.write_text(yaml.safe_dump(nested(key)))
    assert checkout.plan("--configfile", "config.yaml", str(settings)) == changed_plans[key] != {}
    path = checkout.folder / "nadpipe" / module
    source = path.read_text()
    path.write_text(*edited(checkout.folder, module).values())
    assert checkout.plan() == edited_plans[module] != {}
    path.write_text(source)
    assert checkout.plan() == {}


def test_an_edited_comment_reruns_nothing(checkout):
    path = "nadpipe/stages/fit_directions.py"
    assert plan_edits(checkout.folder, [{path: "# a remark\n" + (checkout.folder / path).read_text()}]) == [{}]
