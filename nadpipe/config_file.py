"""Check a config file as text, before Snakemake's YAML turns it into values.

YAML 1.1 silently keeps the last of two equal keys, reads 010 as 8 and 1:30 as 90. After parsing, this can no longer be seen.
Aliases let a few lines stand for more values than memory holds. Snakemake expands them when it merges sections.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from nadpipe.errors import NadpipeError, first_line, printable
from nadpipe.store.files import read_regular

LARGEST_CONFIG = 2**20  # bytes
MOST_VALUES = 100_000  # in a whole config; YAML aliases can stand for billions
_ANOTHER_NUMBER = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")  # octal, or to base 60


def check_config_file(path: Path) -> None:
    """Raise NadpipeError if a YAML or JSON file is not UTF-8, repeats a key or contains a number in another base than it seems.

    A YAML file with more than MOST_VALUES values is refused too. The message has one line per error.
    """
    name = printable(str(path))
    content = read_regular(path, LARGEST_CONFIG, "config file")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise NadpipeError(f"{name}: line {line}: not UTF-8; save the file as UTF-8") from None
    try:
        lines = list(_json_problems(text))
    except (ValueError, RecursionError):
        lines = _yaml_problems(text, name)
    if lines:
        raise NadpipeError("\n".join(f"{name}: {line}" for line in dict.fromkeys(lines)))


def _json_problems(text: str) -> list[str]:
    """Return one line for each repeated key of a JSON document. Raises ValueError if the text is not JSON."""
    lines: list[str] = []

    def find_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [key for key, _ in pairs]
        lines.extend(f"key {name[:80]!r} occurs twice; keep one" for name in names if names.count(name) > 1)
        return dict(pairs)

    json.loads(text, object_pairs_hook=find_repeated)
    return lines


def _yaml_problems(text: str, name: str) -> list[str]:
    """Return one line for each repeated key and doubtful number of a YAML document. Raises NadpipeError if it is not YAML."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise NadpipeError(f"{name}: {line}not valid YAML ({first_line(error.problem)}); correct it") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise NadpipeError(f"{name}: not valid YAML ({first_line(error)}); correct it") from None
    if root and exceeds(root, _child_nodes):
        raise NadpipeError(
            f"{name}: more than {MOST_VALUES:,} values, counting aliases (*name) each time; remove aliases, or name a file "
            "instead"
        )
    problems = sorted((node.start_mark.line + 1, problem) for node, problem in _node_problems(root)) if root else []
    return [f"line {line}: {problem}" for line, problem in problems]


def exceeds(root: Any, children: Callable[[Any], Iterable[Any]]) -> bool:
    """Return True if a tree has more than MOST_VALUES values, counting repeated ones.

    The time does not depend on their number, and a value may contain itself. children: function that returns those of a value.
    """
    waiting = [root]
    for _ in range(MOST_VALUES):
        if not waiting:
            return False
        waiting += children(waiting.pop())
    return bool(waiting)


def _child_nodes(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [value for _, value in node.value]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _node_problems(root: yaml.Node) -> Iterator[tuple[yaml.Node, str]]:
    """Yield each repeated key and doubtful number below a node, with what is wrong and what to do."""
    waiting, seen = [root], set[int]()  # an alias is the same node again, and may contain itself
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = set[str]()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in keys:
                    yield key, f"key {key.value[:80]!r} occurs twice; keep one"
                keys.add(str(key.value))
            waiting += [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif node.style is None and _ANOTHER_NUMBER.fullmatch(node.value):
            yield node, f"YAML reads {node.value} as a number in another base; write it in quotes, or as a decimal number"
