"""`python -m lpfamily.runs`: list the runs of a folder and their progress."""

from __future__ import annotations

from lpfamily import _interrupts

if __name__ == "__main__":
    _interrupts.take_over("python -m lpfamily.runs")  # first, as the imports take seconds

# isort: split

import json
import math
from pathlib import Path
from typing import Any

from lpfamily.report.tables import runs_table
from lpfamily.training import commands, files, runs
from lpfamily.training.commands import Given
from lpfamily.training.errors import BadInput
from lpfamily.training.files import Json
from lpfamily.training.runs import configs

NAME = "python -m lpfamily.runs"
FILES = (runs.CONFIG, runs.CHECKPOINT, runs.METRICS, runs.RESULT)
"""A folder with any of these files is a run folder."""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return commands.run(NAME, lambda: _list(_parser().parse(argv)))


def _parser() -> commands.Parser:
    result = commands.Parser(
        prog=NAME,
        description="List runs by name: model, data and objective, the last epoch, the errors, and whether "
        "the run is finished, unfinished, being trained or damaged.",
        epilog=f"example: {NAME} runs --json",
    )
    result.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        nargs="?",
        default=Path("runs"),
        help="a folder of run folders, or one run folder (default: runs)",
    )
    add = result.group("the list")
    add("--json", "print JSON instead of the table; errors are fractions")
    return result


def _list(given: Given) -> int:
    commands.check_extra()
    folder: Path = given["folder"]
    if not folder.is_dir():
        raise BadInput(f"{folder}: is not a folder; give a folder of runs")
    folders = [folder] if _is_run(folder) else sorted(each for each in folder.iterdir() if _is_run(each))
    lines = [_described(each) for each in folders]
    print(json.dumps(lines, indent=2, allow_nan=False) if "json" in given else runs_table(lines), flush=True)
    return 0


def _is_run(folder: Path) -> bool:
    return folder.is_dir() and any((folder / name).exists() for name in FILES)


def _described(folder: Path) -> Json:
    """Return the description of a run; None stands for an unknown value, or for several values of a grid."""
    names = ("model", "data", "objective", "p", "sigma", "epoch", "validation_error", "test_error")
    line: Json = {"run": str(folder), **dict.fromkeys(names), "state": "damaged"}
    try:
        run = runs.find(folder, option="")
        config, metrics, result = configs.read(run), run.metrics(), run.result
        if run.has(runs.CHECKPOINT):
            _ = run.checkpoint_in_words  # raises if the checkpoint is damaged
        for name in ("model", "data", "objective", "p", "sigma"):
            values = {getattr(recipe, name) for recipe in (config.recipe, *config.grid.values())}
            line[name] = _shown(values.pop()) if len(values) == 1 else None
        line["epoch"] = len(metrics)
        line["validation_error"] = metrics[-1].get("validation_error") if metrics else None
        if result is not None:
            with files.understanding(folder / runs.RESULT, "not the result of a run"):
                line["test_error"] = float(result["test_error"]["clean"])
            line["state"] = "finished"
        else:
            line["state"] = "being trained" if run.is_locked() else "unfinished"
    except (BadInput, OSError) as problem:
        line |= {"problem": str(problem)}
    return line


def _shown(value: Any) -> Any:
    return "inf" if value == math.inf else value


if __name__ == "__main__":
    commands.start(NAME, main)
