"""The console command: `nadpipe <stage> --option …`, one command a stage; the rules call exactly these."""

import ast
import errno
import importlib
import pkgutil
import sys
from pathlib import Path

from nadpipe import __version__
from nadpipe.errors import NadpipeError

_STAGES = Path(__file__).parent / "stages"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)  # of the user's disk, not of the code


def commands() -> dict[str, str]:
    """Command names with the first line of what each does, read without importing anything heavy."""
    found = {}
    for module in pkgutil.iter_modules([str(_STAGES)]):
        text = ast.get_docstring(ast.parse((_STAGES / f"{module.name}.py").read_text(encoding="utf-8"))) or ""
        found[module.name.replace("_", "-")] = text.split("\n")[0]
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
    name = command.replace("-", "_")
    stage = getattr(importlib.import_module(f"nadpipe.stages.{name}"), name)
    import tyro

    try:
        tyro.cli(stage, prog=f"nadpipe {command}", args=options)
    except NadpipeError as error:
        print(f"nadpipe {command}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        told = f"{error.filename or 'results'}: {error.strerror}; make room or allow writing"
        print(f"nadpipe {command}: {told}", file=sys.stderr)
        return 1
    return 0


def _overview(known: dict[str, str]) -> str:
    width = max(map(len, known))
    lines = [f"  {name:<{width}}  {text}" for name, text in known.items()]
    return "\n".join(["usage: nadpipe COMMAND [OPTIONS]   (nadpipe COMMAND --help)", "", *lines])
