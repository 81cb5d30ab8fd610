import ast
import importlib
import inspect
import re
import runpy
import subprocess
import sys

import pytest
import torch

from nadpipe import __version__, cli
from nadpipe.cli import commands, main
from nadpipe.errors import BAD_INPUT


@pytest.mark.parametrize("command", commands())
def test_every_command_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    stage = getattr(importlib.import_module(commands()[command]), command.replace("-", "_"))
    docstring = inspect.getdoc(stage)
    for option, parameter in inspect.signature(stage).parameters.items():
        if "Positional" not in str(parameter.annotation):
            assert f"--{option.replace('_', '-')}" in text
        assert re.search(rf"^    {option}: \S", docstring, re.MULTILINE), f"{option} has no line under Args"


def test_a_command_has_the_name_of_its_module():
    for command, name in commands().items():
        assert name.rpartition(".")[2] == command.replace("-", "_")
        assert callable(getattr(importlib.import_module(name), command.replace("-", "_")))


def test_the_overview_lists_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in commands())
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


def test_an_unknown_command_lists_all_commands(capsys):
    assert main(["fit"]) == 2
    assert re.match(r"nadpipe fit: unknown command; .*accumulate-pairs, ", capsys.readouterr().err)


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("arguments", ["--help", "make-demo-data --help"])
def test_a_closed_output_ends_a_command_quietly(arguments, buffered):
    command = [sys.executable, *(() if buffered else ("-u",)), "-m", "nadpipe", *arguments.split()]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running.stdout.close()  # before the command writes, as `head` may after its first lines
    assert running.stderr.read() == ""
    assert running.wait() == 141


def test_another_broken_pipe_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(cli, "_run", lambda arguments: (_ for _ in ()).throw(BrokenPipeError))
    with pytest.raises(BrokenPipeError):
        main([])


def test_bad_input_is_one_line_and_an_exit_code_of_its_own(tmp_path, capsys):
    paths = {"readout": "no.zarr", "output": "contributions.zarr", "output-means": "means.zarr"}
    arguments = [
        "--features",
        "no.zarr",
        *(text for name, file in paths.items() for text in (f"--{name}", str(tmp_path / file))),
    ]
    assert main(["compute-contributions", *arguments]) == BAD_INPUT
    text = capsys.readouterr().err
    assert text.startswith("nadpipe compute-contributions: ")
    assert text.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_import_and_help_do_not_load_torch():
    code = "import sys, nadpipe, nadpipe.cli; nadpipe.cli.main(['--help']); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.endswith("False\n")


def test_jaxtyping_checks_shapes_in_tests():
    from nadpipe.circuit.naming import normalise

    with pytest.raises(Exception, match="Type-check error"):
        normalise("no tensor")
    assert normalise(torch.ones(2, 3)).shape == (2, 3)


def test_no_module_turns_annotations_into_strings(pytestconfig):
    for path in (pytestconfig.rootpath / "nadpipe").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.module == "__future__"), path


def test_worker_processes_can_import_the_main_module():
    assert runpy.run_module("nadpipe.__main__", run_name="__mp_main__")["main"] is main
