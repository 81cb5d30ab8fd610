"""Define the exception for errors that the user can fix."""


class NadpipeError(Exception):
    """Report bad input in one line: `<file or key>: <what is wrong>; <what to do>`. Commands print the line and exit with 1."""
