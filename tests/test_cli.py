import ast
import importlib
import inspect
import re
import resource
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import pytest
import torch
from PIL import Image

from nadpipe import __version__, cli
from nadpipe.cli import commands, main
from nadpipe.errors import BAD_INPUT


@pytest.mark.parametrize("command", sorted(commands().keys() - {"run"}))  # which takes those of Snakemake
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


@pytest.fixture
def listing(tmp_path):
    """Return the arguments of a command that lists one image."""
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    return ["index-images", "--layout", "tree", "--path", str(tmp_path), "--output", str(tmp_path / "out" / "images.parquet")]


def test_an_interrupted_command_ends_with_one_line_and_leaves_nothing(listing, tmp_path, monkeypatch, capsys):
    """The signal arrives after the table is written and before it gets its name."""
    rename = Path.replace

    def interrupt(path, target):
        signal.raise_signal(signal.SIGINT)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", interrupt)
    assert main(listing) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "nadpipe index-images: interrupted; incomplete outputs are removed"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_signal_from_outside_ends_a_command_with_one_line(listing, tmp_path):
    """The command waits for the lock of its output, which this test holds."""
    with filelock.FileLock(tmp_path / "out" / ".images.parquet.lock"):
        running = subprocess.Popen([sys.executable, "-m", "nadpipe", *listing], stderr=subprocess.PIPE, text=True)
        lines = iter(running.stderr)
        assert any("waiting for it to finish" in line for line in lines)
        running.send_signal(signal.SIGINT)
        assert list(lines) == ["nadpipe index-images: interrupted; incomplete outputs are removed\n"]
        assert running.wait() == 130
    assert not (tmp_path / "out" / "images.parquet").exists()


@pytest.fixture
def small_files():
    """Let this process write files of at most 200 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_limit_of_file_sizes_is_reported_in_one_line(listing, tmp_path, small_files, capsys):
    assert main(listing) == BAD_INPUT
    assert re.search(
        r"^nadpipe index-images: .*/out.*: File too large; raise the limit of file sizes", capsys.readouterr().err, re.M
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == []


@pytest.mark.parametrize("name", ["a" * 300, "b" * 300 + "/c", "a.png/images"])
def test_an_output_with_an_impossible_name_is_reported_in_one_line(listing, tmp_path, name, capsys):
    assert main([*listing[:-1], str(tmp_path / name)]) == BAD_INPUT
    assert re.search(r"^nadpipe index-images: .*; (use a shorter path|correct the path)$", capsys.readouterr().err, re.M)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "out"]


def test_a_refusal_of_a_path_that_is_not_utf8_is_noted(listing, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NADPIPE_RUN", str(tmp_path / "out"))
    arguments = [*listing[:4], f"{tmp_path}/no\udcff", *listing[5:]]
    for _ in range(2):  # the second time, the note is printed
        assert main(arguments) == BAD_INPUT
        assert capsys.readouterr().err.count("\n") == 1
