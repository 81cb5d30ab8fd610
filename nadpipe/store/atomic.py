"""Atomic writes: a reader sees a complete artifact or none."""

import contextlib
import glob
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import filelock

_UMASK = os.umask(0o022)
os.umask(_UMASK)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`. It is renamed to `path` if the block succeeds and removed if it fails.

    One process writes a path at a time. A job waits for an earlier job that outlived its killed Snakemake, because the earlier
    job could otherwise replace the new artifact or lose its own files while it writes. Temporary files of killed writers are
    removed first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path):
        clear_partials(path)
        partial = path.parent / f".{path.name}.{os.getpid()}.partial"
        try:
            yield partial
            if partial.is_file():
                partial.chmod(0o666 & ~_UMASK)  # some libraries create files that only their owner can read
            if path.is_dir():
                _remove(path)  # a folder cannot be replaced by a rename
            partial.replace(path)
        finally:
            _remove(partial)


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


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
