"""The console command: `nadpipe <stage> --option …`, one command a stage, as the rules call them; and commands that look at
results."""

import ast
import errno
import importlib
import pkgutil
import sys
from pathlib import Path

from nadpipe import __version__
from nadpipe.errors import NadpipeError

_HERE = Path(__file__).parent
_GROUPS = {"stages": "stages, as the workflow runs them", "looks": "looking at results"}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)  # of the user's disk, not of the code


def commands() -> dict[str, str]:
    """Command names with the module of each, found without importing anything heavy."""
    found = {}
    for group in _GROUPS:
        for module in pkgutil.iter_modules([str(_HERE / group)]):
            found[module.name.replace("_", "-")] = f"nadpipe.{group}.{module.name}"
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for bad input (one line on standard error), 2 for wrong usage."""
    arguments = sys.argv[1:] if arguments is None else arguments
    known = commands()
    if arguments[:1] == ["--version"]:
        print(f"nadpipe {__version__}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview(known))
        return 0 if arguments else 2
    command, *options = arguments
    if command not in known:
        print(f"nadpipe: no command {command}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    stage = getattr(importlib.import_module(known[command]), command.replace("-", "_"))
    import tyro

    try:
        tyro.cli(stage, prog=f"nadpipe {command}", args=options)
    except NadpipeError as error:
        print(f"nadpipe {command}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        told = f"{error.filename or 'results'}: {error.strerror}; make room, or change its permissions"
        print(f"nadpipe {command}: {told}", file=sys.stderr)
        return 1
    return 0


def _overview(known: dict[str, str]) -> str:
    width = max(map(len, known))
    lines = ["usage: nadpipe COMMAND [OPTIONS]   (nadpipe COMMAND --help)"]
    for group, title in _GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:<{width}}  {_about(module)}" for name, module in known.items() if f".{group}." in module]
    return "\n".join(lines)


def _about(module: str) -> str:
    """The first line of a module's docstring."""
    path = _HERE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
