"""Progress of long work: a bar with a rate on a terminal, plain lines in a log."""

import io
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

_LINE = "{desc}: {n_fmt}/{total_fmt} {unit}, {rate_noinv_fmt}, {elapsed} elapsed, {remaining} left"


class _Lines:
    """A stream that turns the carriage returns of a progress bar into lines of a log."""

    def __init__(self, stream: io.TextIOBase):
        self.stream = stream

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            self.stream.write(text + "\n")

    def flush(self) -> None:
        self.stream.flush()


def track(items: Iterable[Item], label: str, unit: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items and show how many are done, how fast, and how long is left, on standard error."""
    if sys.stderr.isatty():
        return iter(tqdm(items, desc=label, unit=f" {unit}", total=total))
    return iter(
        tqdm(
            items,
            desc=label,
            unit=unit,
            total=total,
            mininterval=10,
            maxinterval=30,
            file=_Lines(sys.stderr),
            bar_format=_LINE,
        )
    )
