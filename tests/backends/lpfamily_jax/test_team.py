"""JAX trains with many devices, of one process or of several, as it does with one."""

import contextlib
import math
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.backends_under_test import NAMES, NETWORK
from helpers.commandline import WITH_HELPERS, python
from helpers.trajectories import OF_CONVOLUTIONS, OF_MAXOUT
from lpfamily.training import backends, commands
from lpfamily.training.backends import Objective, Optimiser, Rates, Task
from lpfamily.training.backends.leading import follow, leading
from lpfamily.training.draws import Draws
from lpfamily.training.networks import initial_state, parameter_shapes

if "jax" not in NAMES:
    pytest.skip("JAX is not under test", allow_module_level=True)

pytestmark = pytest.mark.jax

# a batch of 10, which three devices do not divide, twice; and one of 2, less than they are
CASES = [
    (NETWORK, Objective("plain"), 22),
    (OF_MAXOUT, Objective("perturb", math.inf, 2, random_start=True, direction_dropout="independent"), 22),
    (OF_MAXOUT, Objective("penalty", 2.0), 20),
    (OF_CONVOLUTIONS, Objective("perturb", 1.5, clean_weight=0.3, direction_dropout="same"), 22),
]


def trained(backend, network, objective, examples):
    """Return a float64 trainer after three epochs, their metrics and its state, and its data."""
    rng = np.random.default_rng(0)
    x, labels = rng.uniform(0, 1, (examples, 64)), rng.integers(0, 10, examples)
    decay = Optimiser(1e-4, ema=0.9)
    task = Task(network, objective, x, labels, batch_size=10, optimiser=decay, dtype="float64")
    trainer, found = backend.trainer(task, initial_state(network, 0, "float64", averaged=True)), {}
    all_ends = ((0.3, 0.1), (0.5, 0.7), (0.1, 0.3), (0.9, 0.1))
    rates = Rates(*(np.linspace(*ends, -(-examples // 10)) for ends in all_ends))
    for epoch in range(3):
        metrics = trainer.epoch(Draws(0, epoch).order(examples), rates, Draws(0, epoch))
        found |= {f"{name} of epoch {epoch}": value for name, value in metrics.items()}
    return trainer, found | trainer.state(), x, labels


def of_one(*case):
    """Train in one process: by NumPy if it knows the network's layers, else by JAX on one device."""
    known = all(type(layer) in backends.find("numpy").layers for layer in case[0].layers)
    return trained(backends.find("numpy" if known else "jax"), *case)


def assert_same(found, expected, case):
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        difference = np.linalg.norm(found[key] - array)
        assert difference <= 1e-9 * np.linalg.norm(array), (case, key, difference)


def test_three_devices_train_as_one_does(tmp_path):
    with started("on_devices", tmp_path, devices=3) as process:
        expected = [of_one(*case)[1] for case in CASES]
        assert process.wait(timeout=120) == 0, process.communicate()
    for number, (network, objective, examples) in enumerate(CASES):
        found = dict(np.load(tmp_path / f"{number}.npz"))
        # of every batch each has its share, and what they exchange are weight gradients, two sums and a count
        assert set(found.pop("widths").tolist()) == ({4} if examples == 20 else {4, 1})
        parameters = sum(map(math.prod, parameter_shapes(network).values()))
        assert set(found.pop("exchanged").tolist()) == {parameters + 3}
        assert_same(found, expected[number], objective)


def on_devices(folder):
    """Save the result of training on all devices, and what each of them computed and exchanged."""
    from lpfamily_jax import trainer as module

    original, widths, exchanged = module._sharded_epoch, [], []

    def watched(*arguments):
        batches, *_ = arguments[-1]
        widths.extend(shard.data.shape[1] for shard in batches.addressable_shards)
        program = str(original.trace(*arguments).jaxpr)
        (sizes,) = re.findall(r"(\S+) = (?:psum|pmax|pmin|ppermute|all_|reduce_scatter)", program)
        exchanged.append(int(re.fullmatch(r".*:f64\[(.*)\]", sizes)[1]))
        return original(*arguments)

    module._sharded_epoch = watched
    for number, case in enumerate(CASES):
        widths.clear(), exchanged.clear()
        _, found, _, _ = trained(backends.find("jax"), *case)
        np.savez(Path(folder, f"{number}.npz"), widths=widths, exchanged=exchanged, **found)


def test_two_processes_of_two_devices_train_as_one_does(tmp_path):
    with team("in_processes", tmp_path / "found.npz") as processes:
        expected = asked(*of_one(*CASES[1]))
        for process in processes:
            assert process.wait(timeout=120) == 0, process.communicate()
    assert_same(dict(np.load(tmp_path / "found.npz")), expected, CASES[1])


def in_processes(path):
    """Save the result of training in this process together with others."""
    with_others(lambda backend: np.savez(path, **asked(*trained(backend, *CASES[1]))))


def asked(trainer, found, x, labels):
    """Add the trainer's outputs for more and for fewer examples than there are processes."""
    trainer.load({name: 1.5 * array for name, array in trainer.state().items()})
    return found | {
        "logits": trainer.logits(x[1:]),
        "one": trainer.logits(x[:1]),
        "losses": trainer.losses(x, labels),
        "input_gradients": trainer.input_gradients(x, labels),
        "hessian_products": trainer.hessian_products(x, labels, x),
        "bias": trainer.state()["layers.0.bias"],
    }


def with_others(lead):
    backend = backends.find("jax")
    team = backend.join("cpu")
    try:
        if team.rank:
            follow(backend, team)
        else:
            with leading(backend, team) as leader:
                lead(leader)
    finally:
        team.leave()


def test_a_process_that_is_killed_ends_the_others():
    with team("endlessly") as (leader, other):
        for line in leader.stdout:
            if line == "trained\n":
                break
        other.send_signal(signal.SIGKILL)
        _, problem = leader.communicate(timeout=60)
    assert leader.returncode == 1, problem
    said = [line for line in problem.splitlines() if line.startswith("test: ")]
    assert len(said) == 1, problem
    assert said[0].startswith("test: another process of this run has ended")


def endlessly():
    def lead(backend):
        while True:
            trained(backend, *CASES[0])
            print("trained", flush=True)

    return commands.run("test", lambda: with_others(lead))


def test_processes_that_cannot_be_joined_are_bad_input(tmp_path):
    result = python(BAD, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    patterns = [
        "JAX_COORDINATOR_ADDRESS must be .* host:port; got 'nowhere'",
        "JAX_NUM_PROCESSES must be a whole number from 1 to 999999999; got 'two'",
        "JAX_NUM_PROCESSES must be a whole number from 1 to 999999999; got '99999999999999'",
        "JAX_NUM_PROCESSES must be a whole number from 1 to 999999999; got '0'",
        "JAX_PROCESS_ID must be a whole number from 0 to 1; got '2'",
        "JAX_PROCESS_ID must be a whole number from 0 to 1; got 'x'",
        "127.0.0.1:1: the coordinator does not answer .* start process 0",
        "its port cannot be used here .* give a free one",
        "set JAX_NUM_PROCESSES to the number of processes",
    ]
    assert len(lines) == len(patterns), lines
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.search(pattern, line), line


BAD = """
import os, socket
from lpfamily.training import backends
from lpfamily.training.errors import BadInput
from lpfamily_jax import team
team.TIMEOUT = 0
backend = backends.find("jax")
assert backend.join("cpu").size == 1
taken = socket.create_server(("", 0))
for values in (
    ["nowhere"],
    ["127.0.0.1:1", "two"],
    ["127.0.0.1:1", "99999999999999"],
    ["127.0.0.1:1", "0"],
    ["127.0.0.1:1", "2", "2"],
    ["127.0.0.1:1", "2", "x"],
    ["127.0.0.1:1", "2", "1"],
    [f"127.0.0.1:{taken.getsockname()[1]}", "2", "0"],
    ["127.0.0.1:1"],
):
    os.environ.update(zip([team.ADDRESS, team.PROCESSES, team.PROCESS], values))
    try:
        backend.join("cpu")
    except BadInput as problem:
        print(problem)
    for name in (team.ADDRESS, team.PROCESSES, team.PROCESS):
        os.environ.pop(name, None)
"""


def started(*arguments, devices, **environment):
    """Start a function of this module in a process that has so many devices; a `with` statement ends it."""
    flags = f"{WITH_HELPERS.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, __file__, *map(str, arguments)],
        env=WITH_HELPERS | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def team(*arguments):
    """Start a function of this module in two processes, which end with the block at the latest."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    joined = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    with contextlib.ExitStack() as stack:
        processes = []
        for rank in "01":
            process = started(*arguments, devices=2, JAX_PROCESS_ID=rank, **joined)
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        yield processes


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    sys.exit(globals()[name](*arguments))
