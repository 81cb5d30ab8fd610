"""Fingerprints of the code behind a stage's numbers.

Snakemake reruns a job if a param changes, but does not see edits in imported modules. A fingerprint as a param makes such edits
visible. It covers the stage's module and all definitions (functions, classes, constants) of the package that it uses, directly
or through others. It excludes everything that changes no number: comments, docstrings, formatting, error messages, printed
lines, progress labels, and plumbing (errors, progress, store, the check of model configs). The store is guarded by a format
version per kind of artifact instead: the fingerprint includes the names, axes, types and formats of the schemas that the stage
uses, not their descriptions.
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
_PLUMBING = ("nadpipe.errors", "nadpipe.progress", "nadpipe.fingerprint", "nadpipe.store", "nadpipe.towers.model_config")
_ALWAYS = ""  # name of those statements of a module that define nothing


@dataclasses.dataclass(frozen=True, order=True)
class Definition:
    """A function, class or constant at the top level of a module. All statements that define nothing have the name ''."""

    module: str
    name: str


_REGISTRIES = (Definition("nadpipe.data.layouts", "LAYOUTS"),)  # a stage uses one record; its rule adds record_fingerprint
_TEXT_ARGUMENTS = ("summary", "description")  # keyword arguments that only people read


@functools.cache
def code_fingerprint(module: str, package: Path = PACKAGE) -> str:
    """Return twelve hex digits that change with the code that a module uses and with the schemas of its artifacts."""
    return _digest(used_definitions(module, package), package)


def record_fingerprint(record: Any, package: Path = PACKAGE) -> str:
    """Return twelve hex digits that change with a record of a registry, except its description, and with its class's code."""
    fields = {name: value for name, value in dataclasses.asdict(record).items() if name not in _TEXT_ARGUMENTS}
    return _digest(record_definitions(record, package), package, repr(fields))


def _digest(definitions: list[Definition], package: Path, text: str = "") -> str:
    digest = hashlib.sha256(text.encode())
    for definition in definitions:
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
    return _reachable([Definition(module, name) for name in _source(module, package).definitions], package)


def record_definitions(record: Any, package: Path = PACKAGE) -> list[Definition]:
    """Return the definitions that the class of a registry's record uses, sorted."""
    return _reachable([Definition(type(record).__module__, type(record).__name__)], package)


def _reachable(roots: list[Definition], package: Path) -> list[Definition]:
    """Return definitions and those that they use directly or through others, sorted, without registries."""
    used: set[Definition] = set()
    pending = roots
    while pending:
        definition, *pending = pending
        if definition not in used and definition not in _REGISTRIES:
            used.add(definition)
            pending += _references(definition, package)
    return sorted(used)


def is_plumbing(module: str) -> bool:
    """Return True for a module that can change no number of any stage."""
    return any(module == name or module.startswith(f"{name}.") for name in _PLUMBING)


@dataclasses.dataclass(frozen=True)
class _Source:
    """A module as text: by the name that they define, statements and the names that these use; and the module's imports."""

    definitions: dict[str, list[ast.stmt]]
    uses: dict[str, set[tuple[str, str | None]]]  # names, each with an attribute that is read from it, or None
    imports: dict[str, tuple[str, str | None]]  # module and, for `from` imports, the name in it, by local name


@functools.cache
def _source(module: str, package: Path) -> _Source:
    path = _path(module, package)
    assert path is not None, module
    return _parse(path.read_text(encoding="utf-8"))


@functools.cache
def _parse(text: str) -> _Source:
    source = _Source({_ALWAYS: []}, {_ALWAYS: set()}, {})
    for statement in ast.parse(text).body:
        uses = _uses(statement, source.imports)
        for name in _defined_names(statement):
            source.definitions.setdefault(name, []).append(statement)
            source.uses.setdefault(name, set()).update(uses)
    return source


def _uses(statement: ast.stmt, imports: dict[str, tuple[str, str | None]]) -> set[tuple[str, str | None]]:
    """Return the names in a statement, each with an attribute that is read from it or None. Add the statement's imports."""
    names: dict[int, tuple[str, str | None]] = {}
    nodes: list[ast.AST] = [statement]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Name):
            names.setdefault(id(node), (node.id, None))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names[id(node.value)] = node.value.id, node.attr
        elif isinstance(node, ast.Import):
            imports |= {alias.asname or alias.name.partition(".")[0]: (alias.name, None) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            imports |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        for child in vars(node).values():  # several times as fast as ast.walk
            if isinstance(child, list):
                nodes += [item for item in child if isinstance(item, ast.AST)]
            elif isinstance(child, ast.AST):
                nodes.append(child)
    return set(names.values())


def _defined_names(statement: ast.stmt) -> list[str]:
    """Return the names that a top-level statement defines; imports define none."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return []
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    names = [node.id for target in targets if target is not None for node in ast.walk(target) if isinstance(node, ast.Name)]
    return names if isinstance(statement, ast.Assign | ast.AnnAssign) and names else [_ALWAYS]


@functools.cache
def _references(definition: Definition, package: Path) -> list[Definition]:
    """Return the definitions of the package that a definition uses."""
    if definition.module.startswith(_KINDS):
        return []  # signatures stand for kinds
    source = _source(definition.module, package)
    references = [Definition(definition.module, _ALWAYS)]
    for name, attribute in source.uses.get(definition.name, ()):
        if name in source.definitions:
            references.append(Definition(definition.module, name))
        elif name in source.imports:
            references += _resolve(*source.imports[name], attribute, package)
    return references


def _resolve(module: str, name: str | None, attribute: str | None, package: Path) -> Iterator[Definition]:
    """Yield the definitions behind an imported name, or behind an attribute of an imported module."""
    if name is not None and _path(f"{module}.{name}", package) is not None:
        module, name = f"{module}.{name}", None
    if module == "nadpipe" or _path(module, package) is None:
        return
    source, target = _source(module, package), name if name is not None else attribute
    if target is None:  # the module as a value: any of its definitions may be used
        yield from (Definition(module, definition) for definition in source.definitions)
    elif target in source.definitions:
        yield Definition(module, target)
    elif target in source.imports:
        yield from _resolve(*source.imports[target], None, package)


def _content(definition: Definition, package: Path) -> Iterator[str]:
    """Yield the text by which a fingerprint covers a definition: code, signatures of kinds of artifacts, or none (plumbing)."""
    if definition.module.startswith(_KINDS):
        value: Any = getattr(importlib.import_module(definition.module), definition.name, None)
        for kind in value.values() if isinstance(value, dict) else [value]:
            if hasattr(kind, "signature"):
                yield kind.signature
    elif not is_plumbing(definition.module):
        statements = _source(definition.module, package).definitions.get(definition.name, [])
        yield from filter(None, map(_unparse, statements))


class _WithoutMessages(ast.NodeTransformer):
    """Remove docstrings, descriptions, and the texts of errors, printed lines and progress bars."""

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
        """Remove descriptions, and replace a progress bar by the items that it counts."""
        self.generic_visit(node)
        node.keywords = [keyword for keyword in node.keywords if keyword.arg not in _TEXT_ARGUMENTS]
        tracked = isinstance(node.func, ast.Name) and node.func.id == "track"
        return node.args[0] if tracked else node


@functools.cache
def _unparse(statement: ast.stmt) -> str | None:
    """Return the text of a statement without messages, which are removed from it; None if nothing remains."""
    normal = _WithoutMessages().visit(statement)
    return ast.unparse(normal) if normal else None


@functools.cache
def _path(module: str, package: Path) -> Path | None:
    """Return the file of a module of the package, or None if there is no such module."""
    root, *names = module.split(".")
    if root != "nadpipe":
        return None
    base = package.joinpath(*names)
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)
