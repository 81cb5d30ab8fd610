"""Search the pairs that a text names."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from nadpipe.artifacts import whole
from nadpipe.errors import NadpipeError
from nadpipe.pages import WAYS, Pages

_DRAWN = 6


def search(
    text: Annotated[str, tyro.conf.Positional], results: Path = Path("results"), most: int = 10, png: Path | None = None
) -> None:
    """Print the pairs that go best with a text of the dictionary, for each way of naming.

    Args:
        text: The text, or a part of one.
        results: Folder of a run's results.
        most: Pairs of each way of naming.
        png: Picture of the first pairs whose images the text goes with, or else whose direction it is near.
    """
    pages = Pages(results / "explorer")
    wanted = text.strip().lower()
    found = [known for known in pages.texts if wanted and wanted in known.lower()]
    if not found:
        raise NadpipeError(f"search: no text that names a pair has {text!r} in it")
    best, *others = sorted(found, key=lambda known: (known.lower() != wanted, wanted not in known.lower().split(), len(known)))
    number = pages.texts.index(best)
    listed = pages.load(f"texts/{number // pages.about['texts']}")[str(number)]
    console = Console(markup=False)
    for way, title in WAYS.items():
        if way not in listed:
            continue
        table = Table(title=f"{best}: {title}")
        for name in ("pair", "weight", "rank"):
            table.add_column(name, justify="left" if name == "pair" else "right")
        for head, neuron, weight, rank in listed[way][:most]:
            table.add_row(f"{head}/{neuron}", f"{weight:.3f}", str(rank))
        console.print(table)
    if png is not None:
        first = next(listed[way] for way in WAYS if way in listed)[: min(most, _DRAWN)]
        drawn = [(pages.load(f"neurons/{neuron}")["pairs"][head], neuron) for head, neuron, *_ in first]
        with whole(png) as partial:
            pages.sheet(best, drawn).save(partial, "PNG")
    if others:
        console.print(f"other texts: {', '.join(others[:20])}")
