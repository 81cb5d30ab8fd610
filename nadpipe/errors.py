"""Define the exception for errors that the user can fix."""

import re

BAD_INPUT = 65  # exit code of commands that refuse their input; EX_DATAERR of sysexits.h
_LONGEST = 300  # characters of a quoted text in a message
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class NadpipeError(Exception):
    """Report bad input in one line: `<file or key>: <what is wrong>; <what to do>`. Commands print it and exit with 65."""


def visible(text: str) -> str:
    """Return a text with escapes for control characters (except tabs and line ends) and for those that reorder text.

    A terminal would obey these characters, which can be in file names, groups and texts.
    """
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def printable(text: str) -> str:
    """Return a text, such as a path, escaped if a message of one line cannot contain it."""
    return text if text.isprintable() else repr(text)


def first_line(error: object) -> str:
    """Return the first line of an error's message, shortened and printable; the error's type if it has no message."""
    lines = str(error).strip().splitlines()
    return printable(lines[0][:_LONGEST]) if lines else type(error).__name__
