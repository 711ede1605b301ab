"""The networks of Tables I to V: what `python -m lpfamily.train` is told, and what it leaves."""

from __future__ import annotations

from pathlib import Path

from lpfamily.experiments.pieces import Setting, Tick


def finished(setting: Setting, name: str, seed: int, tick: Tick) -> Path:
    """Return the folder of a finished run of a network, by its name here, such as sigmoid-p2; trains it."""
    raise NotImplementedError
