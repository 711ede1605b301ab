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
    """Return a replacement of stderr; a fixture would come before pytest's."""
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


def test_a_single_part_has_no_bar_for_all(monkeypatch):
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


def test_a_failed_step_is_not_shown_as_done(monkeypatch):
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


def test_within_an_epoch_a_bar_moves(monkeypatch, clock):
    shown = terminal(monkeypatch)
    with Progress().epochs(4, 1) as epochs:
        for steps in range(1, 11):
            clock[0] += 0.2
            epochs.tick(steps, 10)
        epochs.report({"loss": 1.0, "error": 0.5, "seconds": 2.0}, 100, 1, 2)
    found = [float(each) for each in re.findall(r"([\d.]+)/4 ", shown.getvalue())]
    assert found == sorted(found)
    assert {1.1, 1.5, 2.0} <= set(found)
    assert "2 s to 4 s left" in shown.getvalue()


def test_within_a_long_epoch_there_are_lines(clock, capsys):
    with Progress().epochs(3, 0, "stage 2") as epochs:
        for hours in range(2):
            for steps in range(1, 5):
                clock[0] += 20.0
                epochs.tick(steps, 4)
            epochs.report({"loss": 1.0, "error": 0.5, "seconds": 60.0}, 600, 0, 7200 * hours)
    ended = "loss 1, training error 50.00%, 10 examples/s"
    assert capsys.readouterr().err.splitlines() == [
        "stage 2, epoch 1/3: 50%, 40 s of it left",
        "stage 2, epoch 1/3: 100%, 0 s of it left",
        f"stage 2, epoch 1/3: {ended}, 0 s left",
        "stage 2, epoch 2/3: 50%, 40 s of it left",
        "stage 2, epoch 2/3: 100%, 0 s of it left",
        f"stage 2, epoch 2/3: {ended}, at most 6.67 days left",
    ]
