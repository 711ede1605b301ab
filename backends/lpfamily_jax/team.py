"""A team of processes joined by jax.distributed, on one machine or many: gloo for CPUs, NCCL for GPUs."""

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

REPLICATED, SHARDED_BY_PROCESS = P(), P("processes")  # type: ignore[no-untyped-call]
"""How an array lies on the devices: all of it on each, or one row on each process."""

Combine = Callable[[jax.Array], jax.Array]

EXIT_TIMEOUT = 10
"""The seconds for which a process that ends waits for the others."""

_BROKEN = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED")
"""Words in XLA's messages for a process that does not answer another."""


def join(device: str) -> Team:
    """Return the team of the processes with the same coordinator, or `ALONE`.

    JAX takes the values of unset variables from the cluster: Slurm, Open MPI, Kubernetes.
    """
    if not (address := os.environ.get(ADDRESS)):
        return ALONE
    size = _number(PROCESSES, 1, 10**9)
    rank = _number(PROCESS, 0, size or 10**9)
    _check_address(address, rank)
    remedy = f"; set {PROCESSES} to the number of processes and {PROCESS} to the number of this one, from 0"
    kinds = jax.errors.JaxRuntimeError, ValueError
    with refusing(f"{ADDRESS}={address}: JAX cannot join the processes", remedy, *kinds):
        jax.distributed.initialize(address, size, rank, initialization_timeout=TIMEOUT)
    if jax.process_count() == 1:
        return ALONE
    atexit.register(_leave_at_exit)
    devices(device)
    team = JaxTeam(device.partition(":")[0])
    # the first exchange fails if a process is half a minute late, later ones do not: make the first one now
    team.gather(np.zeros(1))
    return team


def devices(name: str, team: Team = ALONE) -> list[jax.Device]:
    """Return the devices of this name in all processes; without an index, all devices of each process."""
    platform, _, index = name.partition(":")
    kinds = RuntimeError, ValueError, IndexError
    with refusing(f"--device {name}: JAX cannot use it", "; cpu always works", *kinds):
        if not platform or not (index or "0").isdecimal():
            raise ValueError("its form is cpu, gpu or gpu:1")
        ranks = range(team.size) if team.size > 1 else [None]
        by_process = [jax.local_devices(rank, platform) for rank in ranks]
        return [device for local in by_process for device in ([local[int(index)]] if index else local)]


class JaxTeam:
    """The processes of jax.distributed; each exchanges arrays through one of its devices."""

    def __init__(self, platform: str) -> None:
        self.rank, self.size = jax.process_index(), jax.process_count()
        self._platform = platform

    def share(self, content: bytes) -> bytes:
        """Return the content that the leader gives, as its sum with the zeros of the others."""
        if self.rank:
            content = b""
        length = int(self._combined(_sum, np.array(len(content))))
        # every length needs its own program, so pad to few lengths
        padded = np.zeros(1 << length.bit_length(), np.uint8)
        padded[: len(content)] = np.frombuffer(content, np.uint8)
        return self._combined(_sum, padded)[:length].tobytes() if length else b""

    def gather(self, rows: NDArray[Scalar]) -> NDArray[Scalar]:
        """Return the rows of all processes."""
        return gathered(rows, lambda local: self._combined(_identity, local))

    def leave(self) -> None:
        """Do nothing: processes leave as they end, after the command has printed the reason."""

    def _combined(self, function: Combine, local: NDArray[Scalar]) -> NDArray[Scalar]:
        """Stack the arrays of all processes by rank; return function(stacked) in every process."""
        with translating_errors(), jax.enable_x64(True):
            stacked = jax.make_array_from_callback(
                (self.size, *local.shape),
                NamedSharding(self._mesh, SHARDED_BY_PROCESS),
                lambda _: local[None],
            )
            return np.asarray(_replicated(function, self._mesh)(stacked))

    @functools.cached_property
    def _mesh(self) -> Mesh:
        return Mesh([jax.local_devices(rank, self._platform)[0] for rank in range(self.size)], "processes")


@contextmanager
def translating_errors() -> Iterator[None]:
    """Raise Lost where a process is lost, MemoryError where memory runs out; XLA has one error for both."""
    try:
        yield
    except (ValueError, jax.errors.JaxRuntimeError) as cause:
        reason = str(cause).partition("\n")[0]
        if "RESOURCE_EXHAUSTED" in reason:
            raise MemoryError(f"the device has too little memory ({reason}); {SMALLER}") from cause
        if not any(sign in reason for sign in _BROKEN):
            raise
        raise Lost(f"another process of this run has ended or does not answer ({reason})") from cause


def _leave_at_exit() -> None:
    """Leave the other processes as this one ends; exit even if they still wait for it.

    JAX would wait for them, and they for it, until it aborts after minutes with a stack trace.
    """
    shutdown = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    shutdown.start()
    shutdown.join(EXIT_TIMEOUT)
    if shutdown.is_alive():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _identity(stacked: jax.Array) -> jax.Array:
    return stacked


def _sum(stacked: jax.Array) -> jax.Array:
    return stacked.sum(axis=0, dtype=stacked.dtype)


@functools.cache
def _replicated(function: Combine, mesh: Mesh) -> Combine:
    return jax.jit(function, out_shardings=NamedSharding(mesh, REPLICATED))


def _number(variable: str, least: int, below: int) -> int | None:
    if variable not in os.environ:
        return None
    return number(variable, least, below, "set it, or leave it to the cluster")


def _check_address(address: str, rank: int | None) -> None:
    """Raise `BadInput` for an address with which JAX would crash, or abort the process."""
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
