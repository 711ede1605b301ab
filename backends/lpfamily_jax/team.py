"""Processes that jax.distributed joins, on one machine or many: gloo between CPUs, NCCL between GPUs."""

from __future__ import annotations

import atexit
import functools
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.typing import NDArray

from lpfamily.training.backends import SMALLER
from lpfamily.training.errors import BadInput, refusing
from lpfamily.training.teams import ALONE, TIMEOUT, Lost, Scalar, Team, gathered, number

ADDRESS, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"

ALIKE, BY_PROCESS = P(), P("processes")  # type: ignore[no-untyped-call]
"""How devices have an array: each all of it, or each process its row."""

Combine = Callable[[jax.Array], jax.Array]

FAREWELL = 10
"""The seconds for which a process that ends waits for the others to end."""

_BROKEN = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED")
"""What is in XLA's messages where a process does not answer another."""


def join(device: str) -> Team:
    """Return the team of the processes that name the same coordinator, or of this one alone.

    What the variables do not say, JAX asks the cluster: Slurm, Open MPI, Kubernetes.
    """
    if not (address := os.environ.get(ADDRESS)):
        return ALONE
    size = _number(PROCESSES, 1, 10**9)
    rank = _number(PROCESS, 0, size or 10**9)
    _check(address, rank)
    remedy = f"; set {PROCESSES} to how many there are and {PROCESS} to this one's, from 0"
    kinds = jax.errors.JaxRuntimeError, ValueError
    with refusing(f"{ADDRESS}={address}: JAX cannot join the processes", remedy, *kinds):
        jax.distributed.initialize(address, size, rank, initialization_timeout=TIMEOUT)
    if jax.process_count() == 1:
        return ALONE
    atexit.register(_part)
    devices(device)
    team = JaxTeam(device.partition(":")[0])
    team.gather(np.zeros(1))  # gloo gives up on who comes half a minute late, but only the first time
    return team


def devices(name: str, team: Team = ALONE) -> list[jax.Device]:
    """Return the devices of this name in all processes: without an index, all that each process has."""
    platform, _, index = name.partition(":")
    kinds = RuntimeError, ValueError, IndexError
    with refusing(f"--device {name}: JAX cannot use it", "; cpu always works", *kinds):
        if not platform or not (index or "0").isdecimal():
            raise ValueError("its form is cpu, gpu or gpu:1")
        ranks = range(team.size) if team.size > 1 else [None]
        found = [jax.local_devices(rank, platform) for rank in ranks]
        return [device for own in found for device in ([own[int(index)]] if index else own)]


class JaxTeam:
    """The processes of jax.distributed; one device of each exchanges what they have."""

    def __init__(self, platform: str) -> None:
        self.rank, self.size = jax.process_index(), jax.process_count()
        self._platform = platform

    def share(self, content: bytes) -> bytes:
        """Return what the leader gives, as the sum of it and the others' zeros."""
        if self.rank:
            content = b""
        length = int(self._all(_sum, np.array(len(content))))
        # each length is a program of its own, so there are few
        padded = np.zeros(1 << length.bit_length(), np.uint8)
        padded[: len(content)] = np.frombuffer(content, np.uint8)
        return self._all(_sum, padded)[:length].tobytes() if length else b""

    def gather(self, rows: NDArray[Scalar]) -> NDArray[Scalar]:
        """Return the rows of all processes."""
        return gathered(rows, lambda mine: self._all(_same, mine))

    def leave(self) -> None:
        """Do nothing: they part as the process ends, when the command has said why."""

    def _all(self, function: Combine, mine: NDArray[Scalar]) -> NDArray[Scalar]:
        """Return, in every process, a function of what they give, stacked by rank."""
        with noticing(), jax.enable_x64(True):
            stacked = jax.make_array_from_callback(
                (self.size, *mine.shape), NamedSharding(self._mesh, BY_PROCESS), lambda _: mine[None]
            )
            return np.asarray(_replicated(function, self._mesh)(stacked))

    @functools.cached_property
    def _mesh(self) -> Mesh:
        return Mesh([jax.local_devices(rank, self._platform)[0] for rank in range(self.size)], "processes")


@contextmanager
def noticing() -> Iterator[None]:
    """Say in our words what XLA raises one of two errors for: a process is lost, or memory is out."""
    try:
        yield
    except (ValueError, jax.errors.JaxRuntimeError) as cause:
        reason = str(cause).partition("\n")[0]
        if "RESOURCE_EXHAUSTED" in reason:
            raise MemoryError(f"the device has too little memory ({reason}); {SMALLER}") from cause
        if not any(sign in reason for sign in _BROKEN):
            raise
        raise Lost(f"another process of this run has ended or does not answer ({reason})") from cause


def _part() -> None:
    """Part from the others as the process ends; from those who still wait for it, by its end.

    JAX would wait for them, and they for it, until it aborts, after minutes and with a stack trace.
    """
    farewell = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    farewell.start()
    farewell.join(FAREWELL)
    if farewell.is_alive():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _same(stacked: jax.Array) -> jax.Array:
    return stacked


def _sum(stacked: jax.Array) -> jax.Array:
    return stacked.sum(axis=0, dtype=stacked.dtype)


@functools.cache
def _replicated(function: Combine, mesh: Mesh) -> Combine:
    return jax.jit(function, out_shardings=NamedSharding(mesh, ALIKE))


def _number(variable: str, least: int, below: int) -> int | None:
    if variable not in os.environ:
        return None
    return number(variable, least, below, "set it, or leave it to the cluster")


def _check(address: str, rank: int | None) -> None:
    """Raise `BadInput` for an address where JAX would crash, or abort the process."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise BadInput(
            f"{ADDRESS} must be the host of process 0 and a free port there, host:port; got {address!r}"
        )
    if rank == 0:
        try:
            socket.create_server(("", int(port))).close()
        except (OSError, OverflowError) as cause:
            raise BadInput(
                f"{ADDRESS}={address}: its port cannot be used here ({cause}); give a free one"
            ) from cause
    deadline = time.monotonic() + TIMEOUT
    while rank:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT).close()
            return
        except (OSError, OverflowError) as cause:
            if time.monotonic() > deadline:
                raise BadInput(
                    f"{ADDRESS}={address}: the coordinator does not answer ({cause}); start process 0 there, "
                    "with the same address"
                ) from cause
            time.sleep(0.1)
