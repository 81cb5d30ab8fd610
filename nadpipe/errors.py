"""Define the exception for errors that the user can fix."""

BAD_INPUT = 65  # exit code of commands that refuse their input; EX_DATAERR of sysexits.h


class NadpipeError(Exception):
    """Report bad input in one line: `<file or key>: <what is wrong>; <what to do>`. Commands print it and exit with 65."""
