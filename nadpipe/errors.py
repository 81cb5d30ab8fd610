"""Define the exception for errors that the user can fix."""

import re

BAD_INPUT = 65  # exit code of commands that refuse their input; EX_DATAERR of sysexits.h
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Return a text with escapes for control characters (except tabs and line ends) and for those that reorder text.

    A terminal would obey these characters, which can be in file names, groups and texts.
    """
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def printable(path: str) -> str:
    """Return a path, escaped if a message of one line cannot contain it."""
    return path if path.isprintable() else repr(path)


class NadpipeError(Exception):
    """Report bad input in one line: `<file or key>: <what is wrong>; <what to do>`. Commands print it and exit with 65."""
