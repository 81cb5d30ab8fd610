"""Run `nadpipe COMMAND --option …`: commands that start a study, one per stage of the workflow, and those on results."""

import ast
import errno
import functools
import hashlib
import importlib
import inspect
import itertools
import json
import os
import pkgutil
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nadpipe import __version__
from nadpipe.errors import BAD_INPUT, NadpipeError, printable, visible

_PACKAGE = Path(__file__).parent
_GROUPS = {
    "start": "Commands that start a study:",
    "looks": "Commands on results:",
    "stages": "Stages, which the workflow runs:",
}
_UNPARSED = {"run"}  # commands that take all words as they are
# Errors of the user's disk and paths, not of the code, with what to do. Other errors keep their traceback.
_PERMISSION = "change its permissions"
_PATH = "correct the path"
_DISK_ERRORS = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or use another disk",
    errno.EROFS: _PERMISSION,
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.ENAMETOOLONG: "use a shorter path",
    errno.ELOOP: _PATH,
    errno.EEXIST: _PATH,
    errno.EISDIR: _PATH,
    errno.ENOTDIR: _PATH,
    errno.EIO: "check the disk",
}
_OK, _WRONG_USAGE, _INTERRUPTED, _CLOSED_OUTPUT = 0, 2, 130, 141  # the last two: what shells report after SIGINT and SIGPIPE
_SETTINGS = "--settings="
_RUN = "NADPIPE_RUN"  # folder of the workflow's current run, for refused commands


def commands() -> dict[str, str]:
    """Return the modules of all commands by the commands' names, without importing the modules."""
    return {
        module.name.replace("_", "-"): f"nadpipe.{group}.{module.name}"
        for group in _GROUPS
        for module in pkgutil.iter_modules([str(_PACKAGE / group)])
    }


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 is success, 65 is bad input (one line on standard error), 2 is wrong usage. 130 means that the user interrupted the
    command (one line as well), 141 that the reader of standard output, such as `head`, closed it early. Other codes are faults
    of the program or the machine.

    Snakemake repeats failed jobs, which may have lacked memory. A command that the same run has refused is not repeated: it
    prints the same line at once.
    """
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        command = " ".join(["nadpipe", *(sys.argv[1:] if arguments is None else arguments)[:1]])
        print(f"{command}: interrupted; incomplete outputs are removed", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        if not _output_is_closed():  # another pipe broke, such as that of a worker process
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes standard output again at exit
        return _CLOSED_OUTPUT


def _run(arguments: list[str]) -> int:
    modules = commands()
    if arguments[:1] == ["--version"]:
        print(f"nadpipe {__version__}")
        return _OK
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview(modules))
        return _OK if arguments else _WRONG_USAGE
    command, *options = arguments
    if command not in modules:
        print(f"nadpipe {command}: unknown command; use one of {', '.join(modules)}", file=sys.stderr)
        return _WRONG_USAGE
    refusal = _refusal(arguments)
    if refusal is not None and refusal.exists():
        print(refusal.read_text(encoding="utf-8"), file=sys.stderr)
        return BAD_INPUT
    function = getattr(importlib.import_module(modules[command]), command.replace("-", "_"))
    settings = [option for option in options if option.startswith(_SETTINGS)]
    try:
        if command in _UNPARSED:
            return function(options)
        import tyro  # imported here because it takes longer than the overview

        function = _with_settings(function, settings)
        tyro.cli(function, prog=f"nadpipe {command}", args=[option for option in options if option not in settings])
    except NadpipeError as error:
        message = visible(f"nadpipe {command}: {error}")
        print(message, file=sys.stderr)
        if refusal is not None:
            refusal.write_text(message, encoding="utf-8", errors="backslashreplace")
        return BAD_INPUT
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        place = error.filename or dict(itertools.pairwise(options)).get("--output", "results")  # some libraries give no name
        reason = os.strerror(error.errno)
        print(f"nadpipe {command}: {printable(str(place)[:1000])}: {reason}; {_DISK_ERRORS[error.errno]}", file=sys.stderr)
        return BAD_INPUT
    return _OK


def _with_settings(function: Callable[..., None], settings: Sequence[str]) -> Callable[..., None]:
    """Return a command without the options that settings give, which it receives from them.

    settings: words `--settings=<JSON object>`. The workflow passes texts of the config in them, so that no text is mistaken for
    an option or for None. Raises NadpipeError for invalid JSON and for unknown or invalid options.
    """
    if not settings:
        return function
    from pydantic import TypeAdapter, ValidationError

    values: dict[str, Any] = {}
    signature = inspect.signature(function)
    for word in settings:
        try:
            given = json.loads(word.removeprefix(_SETTINGS))
            for name, value in given.items():
                values[name] = TypeAdapter(signature.parameters[name].annotation).validate_python(value)
        except KeyError as error:
            raise NadpipeError(f"--settings: no option {error}; use one of {', '.join(signature.parameters)}") from None
        except ValidationError as error:
            raise NadpipeError(f"--settings: {name} is invalid ({error.errors()[0]['msg']}); correct it") from None
        except (ValueError, AttributeError) as error:
            raise NadpipeError(f"--settings: not a JSON object ({error}); pass one, such as {{}}") from None

    rest = [parameter for name, parameter in signature.parameters.items() if name not in values]
    command: Any = functools.wraps(function)(lambda **options: function(**options, **values))
    del command.__wrapped__  # its signature would be read
    command.__signature__ = signature.replace(parameters=rest)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in rest} | {"return": None}
    return command


def _refusal(arguments: list[str]) -> Path | None:
    """Return the file that says why the current run of the workflow refused a command; None outside of a run."""
    folder = os.environ.get(_RUN)
    if folder is None or not Path(folder).is_dir():
        return None
    return Path(folder) / hashlib.sha256("\0".join(arguments).encode("utf-8", "surrogateescape")).hexdigest()


def _output_is_closed() -> bool:
    """Return True if standard output is a pipe without a reader."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # only errors
    return bool(poll.poll(0))


def _overview(modules: dict[str, str]) -> str:
    """Return the list of commands, with one line about each."""
    width = max(map(len, modules))
    lines = ["usage: nadpipe COMMAND [OPTIONS]", "", "`nadpipe COMMAND --help` explains the options of a command."]
    for group, title in _GROUPS.items():
        lines += ["", title]
        lines += [f"  {name:<{width}}  {_summary(module)}" for name, module in modules.items() if f".{group}." in module]
    return "\n".join(lines)


def _summary(module: str) -> str:
    """Return the first line of a module's docstring, without importing the module."""
    path = _PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].removesuffix(".")
