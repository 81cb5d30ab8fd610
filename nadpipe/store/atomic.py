"""Atomic writes: a reader sees a complete artifact or none, even after a power cut."""

import contextlib
import glob
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock

_UMASK = os.umask(0o022)
os.umask(_UMASK)
_FLUSHED_TOGETHER = 16  # files


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`. It is renamed to `path` if the block succeeds and removed if it fails.

    The content reaches the disk before the name: a power cut leaves no empty file under the final name. A folder that exists
    is moved aside before the rename and deleted after it, so that no mixture of old and new files has the final name.

    One process writes a path at a time. A job waits for an earlier job that outlived its killed Snakemake, because the earlier
    job could otherwise replace the new artifact or lose its own files while it writes. Temporary files of killed writers are
    removed first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path):
        clear_partials(path)
        partial = path.parent / f".{path.name}.{os.getpid()}.partial"
        aside = path.parent / f".{path.name}.old.{os.getpid()}.partial"  # also removed by the next writer
        try:
            yield partial
            if partial.is_file():
                partial.chmod(0o666 & ~_UMASK)  # some libraries create files that only their owner can read
            _flush(partial)
            if path.is_dir():
                path.replace(aside)  # a rename cannot replace a folder
            partial.replace(path)
            _flush_folder(path.parent)
        finally:
            if aside.exists() and not path.exists():
                aside.replace(path)  # the rename failed
            _remove(partial)
            _remove(aside)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock of a path. The kernel releases it if the process dies."""
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"{path}: another process is writing it; waiting for it to finish", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # waiting processes notice and create their own
        lock.release()


def clear_partials(path: Path) -> None:
    """Remove the temporary files of killed writers of `path`."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        _remove(leftover)


def _flush(path: Path) -> None:
    """Wait until a file, or a folder with all its files, is on the disk.

    Many files are flushed at a time, because file systems write them together: 1,700 small files then take a tenth of the time.
    """
    if not path.is_dir():
        _flush_file(path)
        return
    entries = list(os.walk(path))
    with ThreadPoolExecutor(_FLUSHED_TOGETHER) as pool:
        list(pool.map(_flush_file, [Path(folder, name) for folder, _, names in entries for name in names]))
        list(pool.map(_flush_folder, [Path(folder) for folder, _, _ in entries]))


def _flush_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
