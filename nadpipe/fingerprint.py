"""Fingerprints of the code behind a stage's numbers.

Snakemake reruns a job if a param changes, but does not see edits in imported modules. A fingerprint as a param makes it see
them. It covers the stage's module and all definitions (functions, classes, constants) of the package that it uses, directly or
through others. It leaves out all that changes no number: comments, docstrings, layout, error messages, printed lines and
progress labels, and plumbing (errors, progress, store). A format version per kind of artifact guards the store instead: of the
schemas that the stage uses, names, axes, types and formats count, but no descriptions.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
_KINDS = "nadpipe.store.kinds."
_PLUMBING = ("nadpipe.errors", "nadpipe.progress", "nadpipe.fingerprint", "nadpipe.store")
_ALWAYS = ""  # name of the statements of a module that define nothing


@dataclasses.dataclass(frozen=True, order=True)
class Definition:
    """A function, class or constant at the top level of a module; all statements that define nothing have the name ''."""

    module: str
    name: str


@functools.cache
def code_fingerprint(module: str, package: Path = PACKAGE) -> str:
    """Return twelve hex digits that change with the code that a module uses and with the schemas of its artifacts."""
    digest = hashlib.sha256()
    for definition in used_definitions(module, package):
        for line in _content(definition, package):
            digest.update(f"{definition.module} {definition.name}\n{line}\n".encode())
    return digest.hexdigest()[:12]


def files_fingerprint(folder: str, package: Path = PACKAGE) -> str:
    """Return twelve hex digits that change with the files in a folder of the package."""
    digest = hashlib.sha256()
    for path in sorted((package / folder).iterdir()):
        if path.is_file():
            digest.update(path.name.encode() + b"\n" + path.read_bytes())
    return digest.hexdigest()[:12]


@functools.cache
def used_definitions(module: str, package: Path = PACKAGE) -> list[Definition]:
    """Return all definitions of a module, and those that they use directly or through others, sorted."""
    used: set[Definition] = set()
    pending = [Definition(module, name) for name in _source(module, package).definitions]
    while pending:
        definition = pending.pop()
        if definition not in used:
            used.add(definition)
            pending += _references(definition, package)
    return sorted(used)


def is_plumbing(module: str) -> bool:
    """Return whether a module changes no number of any stage."""
    return any(module == name or module.startswith(f"{name}.") for name in _PLUMBING)


@dataclasses.dataclass(frozen=True)
class _Source:
    """A module as text: statements by the name that they define, and what its imports bind."""

    definitions: dict[str, list[ast.stmt]]
    imports: dict[str, tuple[str, str | None]]  # module and, for `from` imports, the name in it, by local name


@functools.cache
def _source(module: str, package: Path) -> _Source:
    path = _path(module, package)
    assert path is not None, module
    tree = ast.parse(path.read_text(encoding="utf-8"))
    definitions: dict[str, list[ast.stmt]] = {_ALWAYS: []}
    for statement in tree.body:
        for name in _defined_names(statement):
            definitions.setdefault(name, []).append(statement)
    imports: dict[str, tuple[str, str | None]] = {}
    for node in ast.walk(tree):  # also those inside functions
        if isinstance(node, ast.Import):
            imports |= {alias.asname or alias.name.partition(".")[0]: (alias.name, None) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            for alias in node.names:
                imports[alias.asname or alias.name] = (node.module, alias.name)
    return _Source(definitions, imports)


def _defined_names(statement: ast.stmt) -> list[str]:
    """Return the names that a top-level statement defines; imports define none."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return []
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    names = [node.id for target in targets if target is not None for node in ast.walk(target) if isinstance(node, ast.Name)]
    return names if isinstance(statement, ast.Assign | ast.AnnAssign) and names else [_ALWAYS]


def _references(definition: Definition, package: Path) -> Iterator[Definition]:
    """Yield the definitions of the package that a definition uses."""
    if definition.module.startswith(_KINDS):
        return  # counted by their signatures
    source = _source(definition.module, package)
    yield Definition(definition.module, _ALWAYS)
    for statement in source.definitions.get(definition.name, []):
        attributes = {id(node.value): node for node in ast.walk(statement) if isinstance(node, ast.Attribute)}
        for node in ast.walk(statement):
            if not isinstance(node, ast.Name):
                continue
            if node.id in source.definitions:
                yield Definition(definition.module, node.id)
            elif node.id in source.imports:
                attribute = attributes.get(id(node))
                yield from _resolve(*source.imports[node.id], attribute.attr if attribute else None, package)


def _resolve(module: str, name: str | None, attribute: str | None, package: Path) -> Iterator[Definition]:
    """Yield the definitions behind an imported name, or behind an attribute of an imported module."""
    if name is not None and _path(f"{module}.{name}", package) is not None:
        module, name = f"{module}.{name}", None
    if module == "nadpipe" or _path(module, package) is None:
        return
    source, wanted = _source(module, package), name if name is not None else attribute
    if wanted is None:  # the module as a value: any of its definitions may be used
        yield from (Definition(module, definition) for definition in source.definitions)
    elif wanted in source.definitions:
        yield Definition(module, wanted)
    elif wanted in source.imports:
        yield from _resolve(*source.imports[wanted], None, package)


def _content(definition: Definition, package: Path) -> Iterator[str]:
    """Yield what counts of a definition: its code, the signatures of a kind of artifact, or nothing of plumbing."""
    if definition.module.startswith(_KINDS):
        value: Any = getattr(importlib.import_module(definition.module), definition.name, None)
        for kind in value.values() if isinstance(value, dict) else [value]:
            if hasattr(kind, "signature"):
                yield kind.signature
    elif not is_plumbing(definition.module):
        yield from map(_normal_source, _source(definition.module, package).definitions.get(definition.name, []))


_TEXT_ARGUMENTS = ("summary", "description")  # keyword arguments that only people read


class _WithoutMessages(ast.NodeTransformer):
    """Removes docstrings, descriptions, and the texts of errors, printed lines and progress bars."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Remove docstrings and printed lines."""
        printed = isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name) and node.value.func.id == "print"
        return None if printed or isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """Keep the class of an error, not its message."""
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Remove descriptions, and keep what a progress bar goes through, not its labels."""
        self.generic_visit(node)
        node.keywords = [keyword for keyword in node.keywords if keyword.arg not in _TEXT_ARGUMENTS]
        tracked = isinstance(node.func, ast.Name) and node.func.id == "track"
        return node.args[0] if tracked else node


def _normal_source(statement: ast.stmt) -> str:
    """Return a statement's code without what changes no number."""
    copy = ast.parse(ast.unparse(statement))
    return ast.unparse(_WithoutMessages().visit(copy))


def _path(module: str, package: Path) -> Path | None:
    """Return the file of a module of the package, or None if there is no such module."""
    root, *parts = module.split(".")
    if root != "nadpipe":
        return None
    base = package.joinpath(*parts)
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)
