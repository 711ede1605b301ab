"""A run's metrics as TensorBoard event files, made with the package tensorboard alone, without a framework.

`tensorboard.summary.Writer` writes the same files, but in a thread whose errors only print a trace. Here a
file that cannot be written is an error of the run, as for its other files.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Callable

from lpfamily.training import files
from lpfamily.training.errors import refusing
from lpfamily.training.progress import Metrics
from lpfamily.training.runs import Run

PREFIX = "events.out.tfevents."
"""The prefix by which TensorBoard recognises its files."""


def check() -> None:
    """Raise `BadInput` where TensorBoard cannot be imported."""
    problem = "--log tensorboard: TensorBoard cannot be imported"
    with refusing(problem, "; pip install tensorboard", ImportError):
        import tensorboard.compat.proto.event_pb2
        import tensorboard.summary.writer.record_writer  # noqa: F401


def logging(run: Run) -> Callable[[Metrics], None]:
    """Return a callback that logs each epoch into the run folder.

    Each number of `metrics.jsonl` except the epoch is logged as a scalar of its name; the epoch is the step.
    Each resume adds a file, and TensorBoard shows all files as one run. Earlier epochs that the files lack
    are logged first.
    """
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    before = sorted(run.folder.glob(f"{PREFIX}*"))
    last = max((event.step for path in before for event in EventFileLoader(str(path)).Load()), default=0)
    name = f"{PREFIX}{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{len(before)}"

    def append(**content: object) -> None:
        record = io.BytesIO()
        RecordWriter(record).write(event_pb2.Event(wall_time=time.time(), **content).SerializeToString())
        with run.writing(name) as path:
            files.append(path, record.getvalue())

    def callback(metrics: Metrics) -> None:
        nonlocal last
        if metrics["epoch"] <= last:  # already logged, but a kill came before its checkpoint was written
            return
        last = int(metrics["epoch"])
        value_of = summary_pb2.Summary.Value
        scalars = [value_of(tag=each, simple_value=metrics[each]) for each in metrics if each != "epoch"]
        append(step=last, summary=summary_pb2.Summary(value=scalars))

    append(file_version="brain.Event:2")
    for line in run.metrics():
        callback(line)
    return callback
