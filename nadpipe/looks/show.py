"""Show a pair or a neuron: its size, its texts, and the images at its ends."""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from nadpipe.artifacts import whole
from nadpipe.errors import NadpipeError
from nadpipe.pages import WAYS, Pages

_TEXTS = 5  # of each way of naming
_DRAWN = 6  # pairs of a neuron


def show(
    kind: Annotated[Literal["pair", "neuron"], tyro.conf.Positional],
    index: Annotated[tuple[int, ...], tyro.conf.Positional],
    results: Path = Path("results"),
    png: Path | None = None,
) -> None:
    """Print what the explorer says of a pair (head and neuron) or of a neuron with all its pairs.

    Args:
        kind: pair or neuron.
        index: Head and neuron of a pair; or the neuron.
        results: Folder of a run's results.
        png: Picture of the images at the pair's ends, with where it fires; of a neuron, those of its largest pairs.
    """
    wanted = {"pair": 2, "neuron": 1}[kind]
    if len(index) != wanted:
        raise NadpipeError(f"show {kind}: takes {'head and neuron' if wanted == 2 else 'one number'}, not {len(index)}")
    pages = Pages(results / "explorer")
    *head, neuron = index
    found = pages.load(f"neurons/{pages.check('neuron', neuron)}")
    if kind == "neuron":
        drawn = sorted(found["pairs"], key=lambda pair: pair["rank"])
        _print_neuron(pages, neuron, found["about"], drawn)
    else:
        drawn = [found["pairs"][pages.check("head", head[0])]]
        _print_pair(pages, neuron, drawn[0])
    if png is not None:
        sheet = pages.sheet(f"{kind} {'/'.join(map(str, index))}", [(pair, neuron) for pair in drawn[:_DRAWN]])
        with whole(png) as partial:
            sheet.save(partial, "PNG")


def _print_neuron(pages: Pages, neuron: int, about: dict[str, Any], pairs: list[dict[str, Any]]) -> None:
    explained = ", ".join(f"{share:.0%}" for share in about["explained"] if share is not None)
    table = Table(title=f"neuron {neuron}: rank {about['rank']}, size {about['size']}, first directions explain {explained}")
    for name in ("pair", "rank", "size", *list(WAYS.values())[:2]):
        table.add_column(name, justify="right" if name in ("rank", "size") else "left")
    for pair in pairs:
        texts = [pages.named(pair["texts"].get(way, [])[:1]) for way in ("active", "nearest")]
        table.add_row(f"{pair['head']}/{neuron}", str(pair["rank"]), str(pair["size"]), *texts)
    Console(markup=False).print(table)


def _print_pair(pages: Pages, neuron: int, pair: dict[str, Any]) -> None:
    count = pages.about["heads"] * pages.about["neurons"]
    way = "along" if pair["sign"] > 0 else "against"
    table = Table(
        title=f"pair {pair['head']}/{neuron}: rank {pair['rank']} of {count:,}, size {pair['size']}, {way} its write vector"
    )
    for name in WAYS.values():
        table.add_column(name)
    named = [pair["texts"].get(way, []) for way in WAYS]
    for at in range(min(_TEXTS, max(map(len, named)))):
        table.add_row(*(pages.named(texts[at : at + 1]) for texts in named))
    shown = len(pair["images"]) // 2
    ends = [", ".join(map(str, part)) for part in (pair["images"][:shown], pair["images"][shown:])]
    console = Console(markup=False)
    console.print(table)
    console.print(f"coefficient {pair['mean']} ± {pair['std']}; top images {ends[0]}; bottom images {ends[1]}")
