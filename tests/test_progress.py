"""Progress: the bars of a terminal, and the lines that a file has instead."""

import io
import re
import sys

import pytest

from lpfamily.training import progress
from lpfamily.training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal(monkeypatch):
    """Return what stands for stderr; a fixture would come before pytest's own."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def shares(shown, name):
    """Return the percentages that a bar has shown, without repetitions."""
    found = [int(each) for each in re.findall(rf"{name} +(\d+)%", shown.getvalue())]
    return [share for share, before in zip(found, [None, *found], strict=False) if share != before]


def test_a_bar_for_each_part_and_one_for_all(monkeypatch):
    shown = terminal(monkeypatch)
    with Progress().parts({"short": 1.0, "long": 3.0}) as part:
        with part("short") as tick:
            tick(1, 2, "half of it")
        with part("long") as tick:
            tick(2, 3)
    assert "half of it" in shown.getvalue()
    assert shares(shown, "short") == [0, 50, 100]
    assert shares(shown, "long") == [0, 67, 100]
    assert shares(shown, "all") == [0, 12, 25, 75, 100]


def test_a_part_alone_has_no_bar_for_all(monkeypatch):
    shown = terminal(monkeypatch)
    with Progress().parts({"one": 1.0}) as part, part("one") as tick:
        tick(1, 4)
    assert shares(shown, "one") == [0, 25, 100]
    assert shares(shown, "all") == []


def test_nothing_to_do_shows_nothing(monkeypatch):
    shown = terminal(monkeypatch)
    with Progress().parts({}):
        pass
    assert shown.getvalue() == ""


def test_what_fails_is_not_shown_as_done(monkeypatch):
    shown = terminal(monkeypatch)

    def stopped():
        with Progress().parts({"one": 1.0, "two": 1.0}) as part, part("one") as tick:
            tick(1, 4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert shares(shown, "one") == [0, 25]
    assert shares(shown, "all") == [0, 12]


def test_lines_come_every_half_minute(clock, capsys):
    with Progress().parts({"one": 1.0}) as part, part("one") as tick:
        for seconds in range(10, 100, 10):
            clock[0] = 100.0 + seconds
            tick(seconds, 90, f"after {seconds} s")
    assert capsys.readouterr().err.splitlines() == [
        "one: begun",
        "one: 33%, 60 s left, after 30 s",
        "one: 67%, 30 s left, after 60 s",
        "one: 100%, 0 s left, after 90 s",
        "one: done in 90 s",
    ]


def test_quiet_says_nothing(monkeypatch):
    shown = terminal(monkeypatch)
    with Progress(quiet=True).parts({"one": 1.0}) as part, part("one") as tick:
        tick(1, 2, "half")
    assert shown.getvalue() == ""
