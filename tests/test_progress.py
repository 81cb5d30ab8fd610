"""Progress is a bar on a terminal and lines in a log."""

import io
import sys

import pytest

from nadpipe import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_progress_is_a_bar_on_a_terminal_and_lines_in_a_log(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(progress.track(range(3), "counting", "thing")) == [0, 1, 2]
    text = stream.getvalue()
    assert "counting" in text
    assert "thing/s" in text
    assert ("\r" in text) == stream.isatty()
    assert ("3/3 thing, " in text) != stream.isatty()
