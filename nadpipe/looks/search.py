"""Search for the pairs that a text names."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from nadpipe.errors import NadpipeError, visible
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
    query = text.strip().lower()
    matches = [name for name in explorer.texts if query and query in name.lower()]
    if not matches:
        raise NadpipeError(f"search: no text that names a pair contains {text!r}; search for another word")
    best, *others = sorted(matches, key=lambda name: (name.lower() != query, query not in name.lower().split(), len(name)))
    number = explorer.texts.index(best)
    pairs_by_rule = explorer.load(f"texts/{number // explorer.sizes['texts']}")[str(number)]
    console = Console(markup=False, emoji=False)
    for rule, title in NAMING_RULES.items():
        if rule not in pairs_by_rule:
            continue
        table = Table(title=f"{visible(best)}: {title}")
        for name in ("pair", "weight", "rank"):
            table.add_column(name, justify="left" if name == "pair" else "right")
        for head, neuron, weight, rank in pairs_by_rule[rule][:most]:
            table.add_row(explorer.pair_name(head, neuron), f"{weight:.3f}", str(rank))
        console.print(table)
    if png is not None:
        first = next(pairs_by_rule[rule] for rule in NAMING_RULES if rule in pairs_by_rule)[: min(most, _DRAWN)]
        pairs = [(explorer.load(f"neurons/{neuron}")["pairs"][head], neuron) for head, neuron, *_ in first]
        with atomic_path(png) as partial:
            explorer.sheet(best, pairs).save(partial, "PNG")
    if others:
        console.print(f"other texts: {visible(', '.join(others[:_OTHER_TEXTS]))}")
