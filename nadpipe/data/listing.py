"""A quick look at data sets on disk before the first job: what has changed, how many images there are.

The Snakefile imports this module at every start, so it imports nothing heavy.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path


def folder_fingerprint(folder: Path) -> str:
    """Return a hash of the relative paths, sizes and times of all files at any depth of a folder.

    It changes if a file is added, changed, renamed or removed. No file is opened: 100,000 files take about a second.
    """
    lines = sorted(
        f"{os.path.relpath(entry.path, folder)}\0{status.st_size}\0{status.st_mtime_ns}" for entry, status in _files(folder)
    )
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def count_files(folder: Path, suffixes: tuple[str, ...]) -> int:
    """Return the number of files with one of the suffixes, in any case, at any depth of a folder."""
    return sum(entry.name.lower().endswith(suffixes) for entry, _ in _files(folder))


def has_subfolders(folder: Path) -> bool:
    """Return True if a folder contains a folder."""
    with os.scandir(folder) as entries:
        return any(entry.is_dir() for entry in entries)


def _files(folder: Path) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    """Yield all files at any depth of a folder. Links to folders are not followed, as when images are listed."""
    waiting = [os.fspath(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.is_file():
                    yield entry, entry.stat()
