"""Checksums of artifacts: written with them and compared whenever they are read.

A Parquet table or JSON file holds its own checksum (`seal`), a folder lists the sizes and checksums of its files in
checksums.json (`list_files`), and a CSV table has a file next to it that `sha256sum --check` reads (`write_checksum`).
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from nadpipe.errors import NadpipeError

_MARK = b"nadpipe-sha256:"
_DIGITS = 64
UNSEALED = _MARK.decode() + _DIGITS * "0"  # a text that a file must contain for `seal`
LISTING = "checksums.json"


def seal(path: Path) -> None:
    """Replace the zeros of the last `UNSEALED` in a file by the checksum of the file with the zeros."""
    with Path(path).open("r+b") as file:
        content = file.read()
        start = content.rindex(UNSEALED.encode()) + len(_MARK)
        file.seek(start)
        file.write(_sealing_digits(content, start))


def is_marked(content: bytes) -> bool:
    """Return True if a file was sealed, damaged or not."""
    return _MARK in content


def is_intact(content: bytes) -> bool:
    """Return True if a file was sealed and no bit of it has changed since."""
    start = content.rfind(_MARK) + len(_MARK)
    return is_marked(content) and content[start : start + _DIGITS] == _sealing_digits(content, start)


def read_sealed(path: Path) -> bytes:
    """Read a sealed file. Raises OSError if it is missing, and NadpipeError if it is damaged or was never sealed."""
    content = Path(path).read_bytes()
    if not is_intact(content):
        raise damaged(path)
    return content


def damaged(path: Path, artifact: Path | None = None) -> NadpipeError:
    """Return the error of a file that has changed. artifact: the folder to make again, if not the file itself."""
    return NadpipeError(f"{path}: damaged, its checksum differs; delete {artifact or 'it'} and make it again")


def _sealing_digits(content: bytes, start: int) -> bytes:
    """Return the checksum of a file whose digits at `start` are replaced by zeros."""
    view = memoryview(content)
    digest = hashlib.sha256(view[:start])
    digest.update(_DIGITS * b"0")
    digest.update(view[start + _DIGITS :])
    return digest.hexdigest().encode()


def checksum_path(path: Path) -> Path:
    """Return the path of the checksum next to a file."""
    return path.with_name(f"{path.name}.sha256")


def checksum_line(content: bytes, name: str) -> bytes:
    """Return the line that `sha256sum` prints for a file."""
    return f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode()


def read_with_checksum(path: Path) -> bytes:
    """Read a file that has its checksum next to it. Raises OSError if it is missing, and NadpipeError if it is damaged."""
    content = path.read_bytes()
    try:
        line = checksum_path(path).read_bytes()
    except OSError as error:
        raise NadpipeError(
            f"{checksum_path(path)}: not readable ({type(error).__name__}); delete {path} and make it again"
        ) from None
    if line != checksum_line(content, path.name):
        raise damaged(path)
    return content


def read_table_bytes(path: Path) -> bytes:
    """Read a table, CSV or Parquet by its suffix. Raises errors as `read_with_checksum` and `read_sealed` do."""
    return read_with_checksum(path) if path.suffix == ".csv" else read_sealed(path)


@dataclasses.dataclass(frozen=True)
class Listed:
    """Size and checksum of a file of a folder. `sha256`: None if the file contains checksums of its own."""

    size: int
    sha256: str | None


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of a folder when it was written."""

    folder: Path
    files: Mapping[str, Listed]

    def check(self) -> None:
        """Raise NadpipeError if a file is missing, was added, has another size, or has another checksum."""
        sizes = dict(_sizes(self.folder))
        missing, added = sorted(self.files.keys() - sizes.keys()), sorted(sizes.keys() - self.files.keys())
        if missing:
            raise NadpipeError(
                f"{self.folder}: lacks {missing[0]} and has {len(self.files) - len(missing)} of its {len(self.files)} files, "
                "as after a lost connection; delete it and make it again"
            )
        if added:
            raise NadpipeError(f"{self.folder / added[0]}: was not written with {self.folder}; delete it")
        for name, listed in self.files.items():
            if sizes[name] != listed.size:
                raise self._other_size(name, sizes[name])
            if listed.sha256 is not None:
                self.read(name)

    def read(self, name: str) -> bytes:
        """Read a file. Raises OSError if it is missing, and NadpipeError if it was not listed or is damaged."""
        listed = self.files.get(name)
        path = self.folder / name
        if listed is None:
            raise NadpipeError(f"{path}: is not in {self.folder / LISTING}; delete {self.folder} and make it again")
        content = path.read_bytes()
        if len(content) != listed.size:
            raise self._other_size(name, len(content))
        if listed.sha256 is not None and hashlib.sha256(content).hexdigest() != listed.sha256:
            raise damaged(path, self.folder)
        return content

    def _other_size(self, name: str, size: int) -> NadpipeError:
        expected = self.files[name].size
        return NadpipeError(
            f"{self.folder / name}: has {size} bytes, expected {expected}; delete {self.folder} and make it again"
        )


def list_files(folder: Path, has_own: Callable[[str], bool] = lambda name: False) -> None:
    """Write checksums.json, which lists all files of a folder. has_own: tells which files contain checksums of their own."""
    files = {}
    for name, size in sorted(_sizes(folder)):
        digest = None if has_own(name) else hashlib.sha256((folder / name).read_bytes()).hexdigest()
        files[name] = [size, digest]
    listing = {"files": files, "checksum": UNSEALED}
    (folder / LISTING).write_text(json.dumps(listing, indent=0) + "\n", encoding="utf-8")
    seal(folder / LISTING)


def read_listing(folder: Path) -> Listing:
    """Read the list of a folder's files. Raises OSError if it is missing, and NadpipeError if it is damaged."""
    content = (folder / LISTING).read_bytes()
    if not is_intact(content):
        raise damaged(folder / LISTING, folder)
    files = json.loads(content)["files"]
    return Listing(folder, {name: Listed(*record) for name, record in files.items()})


def _sizes(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield the relative path and the size of every file of a folder, except the listing and Snakemake's hidden files.

    An artifact in a shared cache is a folder of links, so links are followed.
    """
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            if not name.startswith(".") and relative != LISTING:
                yield relative, path.stat().st_size
