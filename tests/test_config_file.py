"""Config files whose meaning would change silently are refused before Snakemake reads them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nadpipe.config import check
from nadpipe.config_file import LARGEST_CONFIG, check_config_file
from nadpipe.errors import BAD_INPUT, NadpipeError

ROOT = Path(__file__).parents[1]
MANY = "more than 100,000 values, counting aliases (*name) each time; remove aliases, or name a file instead"


def bomb(first, link):
    """Return YAML in which each of 60 lines repeats the one before twice. link: value of a line, # for the number before it."""
    lines = [f"a0: &a0 {first}", *(f"a{n + 1}: &a{n + 1} {link.replace('#', str(n))}" for n in range(59))]
    return "\n".join([*lines, "shift: *a59\n"]).encode()


BOMBS = {
    "lists that repeat each other": bomb("[lol, lol]", "[*a#, *a#]"),
    "sections that repeat each other": bomb("{x: 1}", "{left: *a#, right: *a#}"),
    "sections that merge each other": bomb("{x: 1}", "{<<: [*a#, *a#], key#: 1}"),
    "list that contains itself": b"shift: {concepts: &x [*x]}\n",
    "section that contains itself": b"shift: &x {k: *x}\n",
    "100,000 texts and their lists": b"a: &x [" + b"a," * 1000 + b"]\nb: [" + b"*x," * 99 + b"]\n",
}
CASES = {
    "repeated key": (b"seed: 1\ndevice: cpu\nseed: 2\n", "line 3: key 'seed' occurs twice; keep one"),
    "repeated section": (b"shift: {k: 1}\nseed: 1\nshift: {k: 2}\n", "line 3: key 'shift' occurs twice; keep one"),
    "repeated key of a section": (b"shift:\n  k: 1\n  k: 2\n", "line 3: key 'k' occurs twice; keep one"),
    "repeated key in a list": (b"a: [{k: 1, k: 2}]\n", "line 1: key 'k' occurs twice; keep one"),
    "repeated key in quotes": (b"seed: 1\n'seed': 2\n", "line 2: key 'seed' occurs twice; keep one"),
    "repeated key in JSON": (b'{"a": {"seed": 1, "seed": 2}}', "key 'seed' occurs twice; keep one"),
    "repeated key behind an anchor": (b"a: &x {k: 1, k: 2}\nb: *x\n", "line 1: key 'k' occurs twice; keep one"),
    "octal": (b"seed: 010\n", "line 1: YAML reads 010 as a number in another base; write it in quotes, or as a decimal number"),
    "sexagesimal": (b"- 1:30\n", "line 1: YAML reads 1:30 as a number in another base; write it in quotes, or"),
    "sexagesimal fraction": (b"a: -1:30.5\n", "line 1: YAML reads -1:30.5 as a number in another base"),
    "not UTF-8": (b"seed: 1\nshift: {concepts: [caf\xe9]}\n", "line 2: not UTF-8; save the file as UTF-8"),
    "UTF-16": ("seed: 1".encode("utf-16"), "line 1: not UTF-8"),
    "open bracket": (b"a: [1\nb: 2\n", "line 2: not valid YAML ("),
    "tab": (b"a:\n\t- 1\n", "line 2: not valid YAML ("),
    "control character": (b"a: \x01\n", "not valid YAML ("),
    "two documents": (b"a: 1\n---\nb: 1\n", "line 2: not valid YAML ("),
    "unknown alias": (b"a: *x\n", "line 1: not valid YAML ("),
    "nested deeply": (b"[" * 20_000, "not valid YAML ("),
    "too large": (b"#" * (LARGEST_CONFIG + 1), "more than a config file may have"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_doubtful_config_file_is_refused(tmp_path, tally, case):
    content, message = CASES[case]
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(NadpipeError) as error:
        check_config_file(tmp_path / "config.yaml")
    tally("config files", "\n" not in str(error.value))
    assert str(error.value).startswith(f"{tmp_path / 'config.yaml'}: {'' if case == 'too large' else message}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("case", BOMBS)
def test_a_file_with_too_many_values_is_refused_before_they_are_expanded(tmp_path, tally, case):
    (tmp_path / "config.yaml").write_bytes(BOMBS[case])
    with pytest.raises(NadpipeError) as error:
        check_config_file(tmp_path / "config.yaml")
    tally("config files", "\n" not in str(error.value))
    assert str(error.value) == f"{tmp_path / 'config.yaml'}: {MANY}"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: None])
def test_a_config_that_is_no_file_is_refused(tmp_path, tally, make):
    make(tmp_path / "config.yaml")
    with pytest.raises(NadpipeError, match=r"^/.*config\.yaml: .*; ") as error:
        check_config_file(tmp_path / "config.yaml")
    tally("config files", "\n" not in str(error.value))


GOOD = [
    b"",
    b"# nothing\n",
    b"seed: 0\nshift: {reference: '1:30', concepts: ['010', a b]}\n",
    b"a: 1_000\nb: 0.5\nc: 0\nd: -0\ne: 1e-3\nf: 00x\ng: 2020-01-01\nh: 12:30 h\n",
    b"a: &x {k: 1}\nb: {<<: *x, c: 1}\nc: [*x, *x]\n",
    b"a: &x [" + b"a," * 1000 + b"]\nb: [" + b"*x," * 98 + b"]\n",  # 99,101 values
    b'{"a": {"k": 1}, "b": {"k": 1}}',
    "a: ünïcode 图\n".encode(),
    b"a: 0x10\n",
]


@pytest.mark.parametrize("content", GOOD)
def test_other_config_files_are_accepted(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    check_config_file(tmp_path / "config.yaml")


@pytest.mark.parametrize("path", ["config.yaml", *map(str, (ROOT / "docs").glob("*.yaml"))])
def test_the_shipped_configs_are_accepted(path):
    check_config_file(ROOT / path)


MODEL = {
    "model": {"architecture": "RN50", "pretrained": "openai"},
    "datasets": {"discovery": {"layout": "tree", "path": "docs"}},
}
BROKEN = {
    "half of a character": ({"shift": {"concepts": ["a", "\ud800"]}}, "shift.concepts.1"),
    "half of a character in a key": ({"\udfff": 1}, "config: "),
    "nul": ({"text": {"cache": "a\0b"}}, "text.cache"),
    "long path": ({"text": {"dictionary": "a" * 5000}}, "text.dictionary"),
    "long folder": ({"model": {"architecture": "a/" * 5000 + "m.json"}}, "model.architecture"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_texts_that_no_path_or_command_can_contain_are_refused(tally, case):
    values, key = BROKEN[case]
    with pytest.raises(NadpipeError) as error:
        check(MODEL | values)
    tally("config files", "\n" not in str(error.value))
    assert key in str(error.value)
    str(error.value).encode()


@pytest.mark.slow
def test_values_that_anchors_make_too_large_to_print_are_refused(tally):
    value = ["x" * 100]
    for _ in range(40):
        value = [value] * 9  # 9^40 texts
    itself = []
    itself.append(itself)
    for large in (value, itself):
        with pytest.raises(NadpipeError) as error:
            check(MODEL | {"seed": large})
        tally("config files", "\n" not in str(error.value))
        assert len(str(error.value)) < 1000


@pytest.mark.slow
def test_the_workflow_refuses_a_repeated_key(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\nseed: 2\n")
    for option in ([], ["--configfile", "config.yaml"]):
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--dry-run", *option]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert run.returncode == BAD_INPUT
        assert run.stderr.rstrip().endswith("config.yaml: line 2: key 'seed' occurs twice; keep one")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("sections that repeat each other", []),
        ("lists that repeat each other", ["--configfile", "config.yaml"]),
    ],
)
def test_the_workflow_refuses_too_many_values_in_seconds(tmp_path, case, options):
    """Snakemake alone expands sections without end, and does so if they are in a file after --configfile (docs/security.md)."""
    (tmp_path / "config.yaml").write_bytes(BOMBS[case])
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--dry-run", *options]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == BAD_INPUT
    assert run.stderr.rstrip().splitlines()[-1].endswith(f"config.yaml: {MANY}")
