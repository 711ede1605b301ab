"""A trainer run by several processes: here threads stand for them, and NumPy's trainer for any other."""

import queue
import threading
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from lpfamily.training import backends
from lpfamily.training.backends.leading import follow, leading
from lpfamily.training.draws import Draws
from lpfamily.training.errors import BadInput
from lpfamily.training.tasks import Optimiser
from lpfamily.training.teams import Alone, local_slice
from lpfamily.training.testing import NETWORKS, _rates, _state, _task

NUMPY = backends.find("numpy")


class Thread:
    """A member of a team of threads."""

    def __init__(self, rank, barrier, board):
        self.rank, self.size, self._barrier, self._board = rank, barrier.parties, barrier, board

    def _exchange(self, value):
        self._board[self.rank] = value
        self._barrier.wait()
        found = list(self._board)
        self._barrier.wait()
        return found

    def share(self, content):
        return self._exchange(content)[0]

    def gather(self, rows):
        return np.concatenate(self._exchange(rows))

    def leave(self):
        self._barrier.abort()


class Keeping:
    """NumPy's backend, which keeps the trainers that it makes."""

    def __init__(self):
        self.made = []

    def trainer(self, task, state):
        self.made.append(NUMPY.trainer(task, state))
        return self.made[-1]


def led(size, act):
    """Return act(backend) with a backend that leads a team, and what its other processes end with."""
    barrier, board, ends = threading.Barrier(size, timeout=20), [None] * size, queue.Queue()

    def member(rank):
        kept = Keeping()
        try:
            follow(kept, Thread(rank, barrier, board))
            ends.put([trainer.state() for trainer in kept.made])
        except threading.BrokenBarrierError as lost:
            ends.put(lost)

    threads = [threading.Thread(target=member, args=(rank,)) for rank in range(1, size)]
    for thread in threads:
        thread.start()
    team = Thread(0, barrier, board)
    try:
        with leading(NUMPY, team) as backend:
            result = act(backend)
    except BaseException as problem:
        result = problem
    for act in (lambda: None, team.leave):  # whoever was not sent home still waits for the leader
        act()
        for thread in threads:
            thread.join(timeout=1)
    return result, [ends.get_nowait() for _ in threads]


@pytest.mark.parametrize("name", ["sigmoid", "maxout", "regression"])
def test_a_team_computes_what_one_process_would(name):
    network = NETWORKS[name]
    task = replace(_task(network), batch_size=3, optimiser=Optimiser(ema=0.9))
    state = _state(network, averaged=True)
    v = np.random.default_rng(3).standard_normal(task.x.shape)

    def train(backend):
        trainer = backend.trainer(task, state)
        metrics = [trainer.epoch(np.arange(7), _rates(3, 0.5, 0.9), Draws(5, epoch)) for epoch in (0, 1)]
        moved = trainer.state()
        trainer.load(state | {"average.layers.0.bias": state["average.layers.0.bias"] + 1})
        found = {
            "logits": trainer.logits(task.x),
            "one": trainer.logits(task.x[:1]),
            "losses": trainer.losses(task.x, task.labels),
            "input_gradients": trainer.input_gradients(task.x, task.labels),
            "hessian_products": trainer.hessian_products(task.x, task.labels, v),
        }
        return metrics, moved | found, trainer.state()

    metrics, arrays, last = train(NUMPY)
    (found_metrics, found, found_last), others = led(3, train)
    assert found_metrics == metrics
    assert found.keys() == arrays.keys()
    for key, array in arrays.items():
        assert_allclose(found[key], array, rtol=1e-12, err_msg=key)
    for states in ([found_last], *others):
        for key, array in last.items():
            assert_array_equal(states[-1][key], array, err_msg=key)


def test_bad_input_ends_the_other_processes_and_an_error_may_not():
    def fail_with(problem):
        def act(backend):
            backend.trainer(_task(NETWORKS["maxout"]), _state(NETWORKS["maxout"]))
            raise problem

        return act

    problem, ends = led(2, fail_with(BadInput("no such file")))
    assert isinstance(problem, BadInput)
    assert len(ends[0]) == 1
    problem, ends = led(2, fail_with(MemoryError()))
    assert isinstance(problem, MemoryError)
    assert isinstance(ends[0], threading.BrokenBarrierError)


def test_one_process_is_not_wrapped():
    with leading(NUMPY, Alone()) as backend:
        assert backend is NUMPY


@pytest.mark.parametrize("examples", [0, 1, 2, 7, 100])
def test_every_example_has_one_owner(examples):
    for size in 1, 2, 3, 8:
        parts = [range(examples)[local_slice(Alone(rank, size), examples)] for rank in range(size)]
        assert [example for part in parts for example in part] == list(range(examples))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
