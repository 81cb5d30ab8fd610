"""What a stage's code is: a hash of its module and of everything that it imports from the package.

Snakemake reruns a job when a param changes but does not see an edit in an imported module; with this hash as a param it
does. Comments, docstrings and layout do not count.
"""

import ast
import functools
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def module_closure(module: str) -> list[str]:
    """The package's modules that `module` needs, itself included, sorted by name."""
    found: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        todo += [imported for imported in _imports(name) if imported not in found]
    return sorted(found)


@functools.cache
def code_fingerprint(module: str) -> str:
    """Twelve hex digits that change when the code of the module's closure does."""
    digest = hashlib.sha256()
    for name in module_closure(module):
        digest.update(f"{name}\n{_normal_source(name)}\n".encode())
    return digest.hexdigest()[:12]


def files_fingerprint(folder: str) -> str:
    """Twelve hex digits that change when a file in a folder of the package does."""
    digest = hashlib.sha256()
    for path in sorted((PACKAGE / folder).iterdir()):
        digest.update(path.name.encode() + b"\n" + path.read_bytes())
    return digest.hexdigest()[:12]


def _path(module: str) -> Path | None:
    """The file of a module of this package, None if there is no such module."""
    parts = module.split(".")
    if parts[0] != PACKAGE.name:
        return None
    base = PACKAGE.joinpath(*parts[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _tree(module: str) -> ast.Module:
    return ast.parse(_path(module).read_text(encoding="utf-8"))


@functools.cache
def _imports(module: str) -> list[str]:
    names = []
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if _path(name) is not None and name != PACKAGE.name]


@functools.cache
def _normal_source(module: str) -> str:
    tree = _tree(module)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
