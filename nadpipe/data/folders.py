"""List the files below a folder, without leaving any out.

The Snakefile imports this module at every start, so it imports nothing heavy.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from nadpipe.errors import NadpipeError, printable


def walk_files(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield everything at any depth of a folder that is not a folder, each with its path below the folder.

    Links to folders are followed. Raises NadpipeError if a folder cannot be read, or if a link leads to a folder that is listed
    anyway: its files would count twice, or without end.
    """
    seen: set[tuple[int, int]] = set()
    folders, links = [("", str(folder))], list[tuple[str, str]]()
    while folders or links:
        prefix, path = folders.pop() if folders else links.pop()  # links last, so that a message names the link
        try:
            status = Path(path).stat()
            if (status.st_dev, status.st_ino) in seen:
                raise NadpipeError(f"{printable(path)}: link to a folder that is listed anyway; remove the link")
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
            kinds = [(entry, entry.is_dir(follow_symlinks=False), entry.is_dir()) for entry in found]
        except NotADirectoryError:
            raise NadpipeError(f"{printable(path)}: is a file; give the folder of the images") from None
        except OSError as error:
            raise NadpipeError(
                f"{printable(path)}: folder cannot be read ({error.strerror}); change its permissions or move it"
            ) from None
        for entry, is_folder, leads_to_folder in kinds:
            if is_folder or leads_to_folder:
                (folders if is_folder else links).append((f"{prefix}{entry.name}/", entry.path))
            else:
                yield f"{prefix}{entry.name}", entry
