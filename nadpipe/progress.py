"""Show the progress of long work: a bar on a terminal, plain lines in a log."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

_LINE_FORMAT = "{desc}: {n_fmt}/{total_fmt} {unit}, {rate_noinv_fmt}, {elapsed} elapsed, {remaining} left"


class _LineStream:
    """Write each state of a progress bar as a line, without the carriage returns that redraw a bar."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            self.stream.write(text + "\n")

    def flush(self) -> None:
        self.stream.flush()


def track(items: Iterable[Item], label: str, noun: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items, and show their number, speed and remaining time on standard error.

    label: name of the work, such as "drawing". noun: name of one item. total: number of items, if they have no length.
    """
    if sys.stderr.isatty():
        return iter(tqdm(items, desc=label, unit=f" {noun}", total=total))
    return iter(
        tqdm(
            items,
            desc=label,
            unit=noun,
            total=total,
            mininterval=10,  # seconds between lines
            maxinterval=30,
            file=_LineStream(sys.stderr),
            bar_format=_LINE_FORMAT,
        )
    )
