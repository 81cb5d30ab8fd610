"""Tell the user of the workflow why jobs failed, where results are, and when results are of another study.

The Snakefile imports this module at every start, so it imports nothing heavy.
"""

import atexit
import csv
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_FAILED_JOB = re.compile(
    r"^Error in rule (\w+):\n(?:    .*\n)*?    log: ([^\n]*?)(?: \(check log file\(s\)[^\n]*)?\n", re.MULTILINE
)
_SHOWN_ROWS = 12  # of a table in the terminal
_STUDY = ("model", "datasets")  # sections of the config that say what is studied


def describe_failures(snakemake_log: str) -> str:
    """Return the last line of each failed job's log, with the log's path. snakemake_log: text of Snakemake's own log."""
    logs = dict.fromkeys((rule, path) for rule, paths in _FAILED_JOB.findall(snakemake_log) for path in paths.split(", "))
    return "\n".join(f"{rule}: {_last_line(Path(path))}\n  log: {Path(path).resolve()}" for rule, path in logs)


def _last_line(log: Path) -> str:
    """Return the last line of a log that is not empty. Progress lines end with a carriage return, not a new line."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"no log ({error.strerror})"
    lines = [line.rpartition("\r")[2].strip() for line in text.split("\n")]
    return next((line for line in reversed(lines) if line), "the log is empty; the job was killed, perhaps for want of memory")


def note_refusals() -> None:
    """Have the commands of this run note why they were refused, so that they are not repeated (`nadpipe.cli`).

    The notes are in a temporary folder, which jobs on this machine find by the environment and which goes with this process.
    """
    folder = tempfile.TemporaryDirectory(prefix="nadpipe-")
    atexit.register(folder.cleanup)
    os.environ["NADPIPE_RUN"] = folder.name


def describe_results(paths: Sequence[str]) -> str:
    """Return the first rows of a CSV table, if it is the only result; otherwise the paths."""
    existing = [path for path in paths if Path(path).exists()]
    if len(existing) == 1 and existing[0].endswith(".csv"):
        return f"{Path(existing[0]).resolve()}:\n{_as_text(Path(existing[0]))}"
    return "\n".join(f"made: {Path(path).resolve()}" for path in existing)


def _as_text(table: Path) -> str:
    """Return the first rows of a CSV table in columns, with numbers of few digits."""
    with table.open(newline="", encoding="utf-8") as lines:
        rows = [[_shorten(cell) for cell in row] for row in csv.reader(lines)]
    shown = rows[: _SHOWN_ROWS + 1]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]
    return "\n".join(text + [f"… {len(rows) - len(shown)} more rows"] * (len(rows) > len(shown)))


def _shorten(cell: str) -> str:
    cell = " ".join(cell.split())  # a row is one line
    return f"{float(cell):.4g}" if re.fullmatch(r"-?\d+\.\d+(e-?\d+)?", cell) else cell


def changed_study(config: Mapping[str, Any], record: Path) -> list[str]:
    """Return the keys of the model and the data sets that differ from the record of the last run; none without a record.

    A data set that only one of both has is no difference.
    """
    try:
        previous = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [key for section in _STUDY for key in _differences(previous.get(section, {}), config[section], section)]


def is_unrecorded(results: Path, record: Path) -> bool:
    """Return True if a folder has results but no record of the run that made them, because it was copied or .snakemake deleted.

    Snakemake then compares only times, and would take the results of other settings for these.
    """
    return (results / "artifacts").is_dir() and not record.exists()


def record_study(config: Mapping[str, Any], record: Path) -> None:
    """Write the model and the data sets of a run, for `changed_study`."""
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({section: config[section] for section in _STUDY}), encoding="utf-8")


def _differences(old: Any, new: Any, key: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old.keys() & new.keys():
            yield from _differences(old[name], new[name], f"{key}.{name}")
    elif old != new:
        yield key
