"""Show a pair or a neuron: its size, its texts, and its top and bottom images."""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from nadpipe.errors import NadpipeError
from nadpipe.pages.explorer import NAMING_RULES, Explorer
from nadpipe.store.atomic import atomic_path

_TEXTS = 5  # per naming rule
_DRAWN = 6  # largest number of pairs in the picture of a neuron
_NUMBERS = {"pair": "head and neuron", "neuron": "one number"}


def show(
    kind: Annotated[Literal["pair", "neuron"], tyro.conf.Positional],
    index: Annotated[tuple[str, ...], tyro.conf.Positional],
    results: Path = Path("results"),
    png: Path | None = None,
) -> None:
    """Print the explorer's data on a pair, or on a neuron and all its pairs.

    Args:
        kind: pair or neuron.
        index: Head and neuron of a pair, or one neuron. A head of a vision transformer is <block>.<head>, such as 9.3.
        results: Folder of a run's results.
        png: PNG to write: top and bottom images of the pair, or of a neuron's largest pairs, overlaid with maps of where the
            pair fires.
    """
    if len(index) != (2 if kind == "pair" else 1):
        raise NadpipeError(f"show {kind}: {len(index)} is the wrong number of values; give {_NUMBERS[kind]}")
    explorer = Explorer(results / "explorer")
    *head, number = index
    if not number.isdecimal():
        raise NadpipeError(f"show {kind}: neuron {number} is not a number; give {_NUMBERS[kind]}")
    neuron = explorer.check_index("neuron", int(number))
    content = explorer.load(f"neurons/{neuron}")
    if kind == "neuron":
        pairs = sorted(content["pairs"], key=lambda pair: pair["rank"])
        _print_neuron(explorer, neuron, content["about"], pairs)
    else:
        pairs = [content["pairs"][explorer.find_head(head[0])]]
        _print_pair(explorer, neuron, pairs[0])
    if png is not None:
        sheet = explorer.sheet(f"{kind} {'/'.join(index)}", [(pair, neuron) for pair in pairs[:_DRAWN]])
        with atomic_path(png) as partial:
            sheet.save(partial, "PNG")


def _print_neuron(explorer: Explorer, neuron: int, summary: dict[str, Any], pairs: list[dict[str, Any]]) -> None:
    explained = ", ".join(f"{share:.0%}" for share in summary["explained"] if share is not None)
    table = Table(
        title=f"neuron {neuron}: rank {summary['rank']}, size {summary['size']}, first directions explain {explained}"
    )
    rules = ("active", "nearest")
    for name in ("pair", "rank", "size", *(NAMING_RULES[rule] for rule in rules)):
        table.add_column(name, justify="right" if name in ("rank", "size") else "left")
    for pair in pairs:
        texts = [explorer.format_texts(pair["texts"].get(rule, [])[:1]) for rule in rules]
        table.add_row(explorer.pair_name(pair["head"], neuron), str(pair["rank"]), str(pair["size"]), *texts)
    Console(markup=False, emoji=False).print(table)


def _print_pair(explorer: Explorer, neuron: int, pair: dict[str, Any]) -> None:
    count = explorer.sizes["heads"] * explorer.sizes["neurons"]
    orientation = "along" if pair["sign"] > 0 else "against"
    rank = f"rank {pair['rank']} of {count:,}, size {pair['size']}"
    table = Table(title=f"pair {explorer.pair_name(pair['head'], neuron)}: {rank}, direction {orientation} its write vector")
    for title in NAMING_RULES.values():
        table.add_column(title)
    columns = [pair["texts"].get(rule, []) for rule in NAMING_RULES]
    for row in range(min(_TEXTS, max(map(len, columns)))):
        table.add_row(*(explorer.format_texts(texts[row : row + 1]) for texts in columns))
    shown = len(pair["images"]) // 2
    top, bottom = (", ".join(map(str, ids)) for ids in (pair["images"][:shown], pair["images"][shown:]))
    console = Console(markup=False, emoji=False)
    console.print(table)
    console.print(f"coefficient {pair['mean']} ± {pair['std']}; top images {top}; bottom images {bottom}")
