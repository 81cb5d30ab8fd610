"""Fingerprints of the code behind a stage's numbers.

Snakemake reruns a job if a param changes, but does not see edits in imported modules. A fingerprint as a param makes it see them. It
covers the stage's module and all modules of the package that it imports, directly or through others. Comments, docstrings, layout,
error messages, printed lines and progress labels do not count, because they change no number. Plumbing (errors, progress, store) does
not count either: a format version per kind of artifact guards it. Of the store's schemas, the signatures of the imported kinds count:
names, axes, types and formats, but no descriptions.
"""

import ast
import functools
import hashlib
import importlib
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
_KINDS = "nadpipe.store.kinds"
_PLUMBING = ("nadpipe.errors", "nadpipe.progress", "nadpipe.fingerprint", "nadpipe.store")


def module_closure(module: str, package: Path = PACKAGE) -> list[str]:
    """Return the modules of the package that a module's fingerprint covers, itself included, sorted."""
    return [name for name in _reachable(module, package) if not is_plumbing(name)]


@functools.cache
def _reachable(module: str, package: Path) -> list[str]:
    """Return a module and all modules of the package that it imports, directly or through others, sorted."""
    reachable: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name not in reachable:
            reachable.add(name)
            pending += [imported for imported in _imports(name, package) if imported not in reachable]
    return sorted(reachable)


@functools.cache
def code_fingerprint(module: str, package: Path = PACKAGE) -> str:
    """Return twelve hex digits that change with the code that a module runs and with the schemas that it uses."""
    digest = hashlib.sha256()
    signatures = set()
    for name in _reachable(module, package):
        if not is_plumbing(name):
            digest.update(f"{name}\n{_normal_source(name, package)}\n".encode())
        signatures |= set(_signatures(name, package))
    for signature in sorted(signatures):
        digest.update(f"{signature}\n".encode())
    return digest.hexdigest()[:12]


def files_fingerprint(folder: str, package: Path = PACKAGE) -> str:
    """Return twelve hex digits that change with the files in a folder of the package."""
    digest = hashlib.sha256()
    for path in sorted((package / folder).iterdir()):
        if path.is_file():
            digest.update(path.name.encode() + b"\n" + path.read_bytes())
    return digest.hexdigest()[:12]


def is_plumbing(module: str) -> bool:
    """Return whether a module changes no number of any stage."""
    return any(module == name or module.startswith(f"{name}.") for name in _PLUMBING)


def _path(module: str, package: Path) -> Path | None:
    """Return the file of a module of the package, or None if there is no such module."""
    root, *parts = module.split(".")
    if root != "nadpipe":
        return None
    base = package.joinpath(*parts)
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _tree(module: str, package: Path) -> ast.Module:
    path = _path(module, package)
    assert path is not None
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def _imported_names(module: str, package: Path) -> list[tuple[str, str | None]]:
    """Return imported modules, with the imported name for `from` imports."""
    names: list[tuple[str, str | None]] = []
    for node in ast.walk(_tree(module, package)):
        if isinstance(node, ast.Import):
            names += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names += [(node.module, alias.name) for alias in node.names]
    return names


@functools.cache
def _imports(module: str, package: Path) -> list[str]:
    names = []
    for imported, name in _imported_names(module, package):
        names += [imported] if name is None else [imported, f"{imported}.{name}"]
    return [name for name in names if _counts(name) and _path(name, package) is not None]


def _counts(module: str) -> bool:
    """Return whether imports of a module are followed. Kinds count by their signatures instead."""
    return module != "nadpipe" and not module.startswith(_KINDS)


def _signatures(module: str, package: Path) -> Iterator[str]:
    """Yield the signatures of the kinds of artifacts that a module imports."""
    for imported, name in _imported_names(module, package):
        if name is not None and imported.startswith(f"{_KINDS}."):
            constant = getattr(importlib.import_module(imported), name)
            for kind in constant.values() if isinstance(constant, dict) else [constant]:
                if hasattr(kind, "signature"):
                    yield kind.signature


class _WithoutMessages(ast.NodeTransformer):
    """Removes docstrings, and texts that people read: of errors raised, lines printed and progress shown."""

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """Keep the class of an error, not its message."""
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        """Remove printed lines."""
        call = node.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "print":
            return ast.Pass()
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Keep what a progress bar goes through, not its labels."""
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "track":
            return node.args[0]
        return node


@functools.cache
def _normal_source(module: str, package: Path) -> str:
    tree = _tree(module, package)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(ast.fix_missing_locations(_WithoutMessages().visit(tree)))
