"""Threads that share the rows of a block change no byte, and an error in one of them is raised."""

import math
import threading

import numpy as np
import pytest

from lpfamily import epsilon, project
from lpfamily.libraries import rows as rows_of_numpy
from lpfamily.libraries import threads


@pytest.mark.parametrize("p", [1, 1.5, 2, 2.7, math.inf])
def test_threads_change_no_byte(p, monkeypatch):
    rng = np.random.default_rng(1)
    grad, x = rng.standard_normal((50, 300)).astype("f4"), rng.random((50, 300)).astype("f4")
    grad[7, 3], grad[8, 0], grad[9] = math.nan, math.inf, 0
    monkeypatch.setattr(rows_of_numpy, "CACHE_BYTES", 5 * grad[0].nbytes)
    monkeypatch.setattr(rows_of_numpy, "THREADS_FROM", 0)
    box = {"x": x, "bounds": (0, 1)}
    results = []
    for count in 1, 3:
        with threads(count):
            steps = epsilon(grad, p, 0.5), epsilon(grad, p, 0.5, **box), project(grad, p, 0.5, **box)
            results.append([step.tobytes() for step in (*steps, project(grad, p, 0.5))])
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("count", "size", "several"), [(1, 1 << 30, False), (3, 1 << 30, True), (3, 1, False)]
)
def test_no_more_threads_run_than_are_allowed(count, size, several):
    workers, together = set(), threading.Barrier(count if several else 1, timeout=30)

    def work(blocks):
        workers.add(threading.get_ident())
        together.wait()
        assert len(blocks) == 6 / together.parties

    with threads(count):
        rows_of_numpy.share_out(work, range(6), size)
    assert len(workers) == together.parties


def test_an_error_in_a_thread_is_raised():
    def work(blocks):
        raise MemoryError

    with pytest.raises(MemoryError), threads(2):
        rows_of_numpy.share_out(work, range(4), 1 << 30)
