"""Open files that users name: only regular files, and only up to a size."""

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from nadpipe.errors import NadpipeError, printable


@contextlib.contextmanager
def open_regular(path: str | Path, largest: int, what: str = "file") -> Iterator[io.BufferedReader]:
    """Yield a regular file, open for reading. Pipes, devices and folders are refused without reading from them.

    largest: largest allowed size in bytes. what: kind of file, for messages.

    Raises NadpipeError if the file is missing, is not a regular file, cannot be opened, or is larger.
    """
    name = printable(str(path))
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe without a writer would block
    except FileNotFoundError:
        raise NadpipeError(f"{name}: no such {what}; correct the path") from None
    except (OSError, ValueError) as error:  # ValueError: a null character or a lone surrogate in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise NadpipeError(f"{name}: cannot open this {what} ({reason}); correct the path or its permissions") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NadpipeError(f"{name}: not a regular file; give the {what} itself, not a folder, pipe or device")
        if status.st_size > largest:
            raise NadpipeError(f"{name}: {status.st_size} bytes, more than a {what} may have; keep it below {largest} bytes")
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            yield stream
    finally:
        os.close(descriptor)


def read_regular(path: str | Path, largest: int, what: str = "file") -> bytes:
    """Return the content of a regular file. Raises NadpipeError as `open_regular` does, or if reading fails."""
    with open_regular(path, largest, what) as stream:
        size = os.fstat(stream.fileno()).st_size
        try:
            content = stream.read(size + 1)  # asking for more would make room for it
            return content + stream.read(largest - size) if len(content) > size else content
        except OSError as error:
            raise NadpipeError(f"{printable(str(path))}: cannot read this {what} ({error.strerror}); replace it") from None
