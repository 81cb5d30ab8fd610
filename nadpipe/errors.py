"""The one exception that a user is meant to read."""


class NadpipeError(Exception):
    """Bad input: one line that names the file or key, says what is wrong and what to do. Commands exit with 1."""
