"""Strict readers of text files and CSV files: what is written is read, and everything doubtful is refused in one line.

The Snakefile imports this module at every start, so it imports nothing heavy.
"""

import contextlib
import csv
import re
import stat
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

from nadpipe.errors import NadpipeError, visible

_MOST_COLUMNS = 10_000
_SHOWN = 200  # characters of a reason in a message
_LONGEST = 1000  # characters of a text for the model, which reads far fewer
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters except tab, and halves of characters


def text_problem(text: str) -> str | None:
    """Return why a text is unusable (control characters other than tab, too long) and what to do; None for a usable text."""
    control = _CONTROL.search(text)
    if control is not None:
        return f"{text[:50]!r} contains the control character {control[0]!r}; remove it"
    if len(text) > _LONGEST:
        return f"{text[:50]!r}… has {len(text):,} characters; shorten it to {_LONGEST:,}"
    return None


def read_lines(path: Path, kind: str = "UTF-8 text file") -> list[str]:
    """Return the stripped, non-empty lines of a UTF-8 text file, without its byte order mark.

    kind: noun for messages. Raises NadpipeError if the file is unreadable, or if a line is not a usable text.
    """
    with readable(path, kind):
        content = path.read_text(encoding="utf-8-sig")
    lines = [line.strip() for line in content.split("\n")]  # Python has translated all line ends
    for number, line in enumerate(lines, start=1):
        problem = text_problem(line)
        if problem is not None:
            raise NadpipeError(f"{path}: line {number}: {problem}")
    return [line for line in lines if line]


def read_rows(path: Path, kind: str = "CSV file") -> Generator[list[str]]:
    """Yield the rows of a CSV file as text, the header first. Every row is as long as the header; empty lines are left out.

    A column without a name is called `Unnamed: <index>`. kind: noun for messages. Raises NadpipeError if the file is not UTF-8,
    has a NUL character, an open quote, a row of another length or a cell of over 131,072 characters, or repeats a column.
    """
    with readable(path, kind), path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(_without_nul(file), strict=True)
        rows = (row for row in reader if row)
        header = [name or f"Unnamed: {index}" for index, name in enumerate(next(rows, []))]
        if not header:
            raise ValueError("it is empty")
        if len(header) > _MOST_COLUMNS:
            raise ValueError(f"it has {len(header):,} columns, of at most {_MOST_COLUMNS:,}")
        repeated = next((name for name, count in Counter(header).items() if count > 1), None)
        if repeated is not None:
            raise ValueError(f"it has more than one column {repeated!r}")
        yield header
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"line {reader.line_num} has {len(row)} cells, the header {len(header)}")
            yield row


def _without_nul(lines: Iterator[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise ValueError(f"line {number} contains a NUL character")
        yield line


@contextlib.contextmanager
def readable(path: Path, kind: str) -> Iterator[None]:
    """Turn errors in reading a file into a NadpipeError of one line. Refuse folders, and pipes, which would block.

    kind: noun for messages.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("it is not a file")
        yield
    except (OSError, ValueError, csv.Error) as error:
        reason = (isinstance(error, OSError) and error.strerror) or visible(" ".join(str(error).split()))[:_SHOWN]
        raise NadpipeError(f"{path}: not a readable {kind} ({reason}); correct it or its path") from None
