"""Search for the pairs that a text names."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from nadpipe.errors import visible
from nadpipe.pages.explorer import NAMING_RULES, Explorer
from nadpipe.store.atomic import atomic_path

_DRAWN = 6  # largest number of pairs in the picture
_OTHER_TEXTS = 20  # largest number of other matches that are listed


def search(
    text: Annotated[str, tyro.conf.Positional], results: Path = Path("results"), most: int = 10, png: Path | None = None
) -> None:
    """Print the pairs that fit a text of the dictionary best, by each naming rule.

    Args:
        text: The text, or a part of it.
        results: Folder of a run's results.
        most: Number of pairs per naming rule.
        png: PNG to write: images of the first pairs by correlation, or by direction if no pair has the text by correlation.
    """
    explorer = Explorer(results / "explorer")
    best, *others = explorer.find_texts(text)
    pairs_by_rule = explorer.pairs_of(best)
    console = Console(markup=False, emoji=False)
    for rule, found in pairs_by_rule.items():
        table = Table(title=f"{visible(best)}: {NAMING_RULES[rule]}")
        for name in ("pair", "weight", "rank"):
            table.add_column(name, justify="left" if name == "pair" else "right")
        for head, neuron, weight, rank in found[:most]:
            table.add_row(explorer.pair_name(head, neuron), f"{weight:.3f}", str(rank))
        console.print(table)
    if png is not None:
        first = next(iter(pairs_by_rule.values()))[: min(most, _DRAWN)]
        pairs = [(explorer.load(f"neurons/{neuron}")["pairs"][head], neuron) for head, neuron, *_ in first]
        with atomic_path(png) as partial:
            explorer.sheet(best, pairs).save(partial, "PNG")
    if others:
        console.print(f"other texts: {visible(', '.join(others[:_OTHER_TEXTS]))}")
