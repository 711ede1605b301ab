"""A team of processes started by torchrun, on one machine or many: gloo for CPUs, NCCL for CUDA devices."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from lpfamily.training.errors import BadInput, refusing
from lpfamily.training.teams import ALONE, TIMEOUT, Lost, Scalar, Team, gathered, number

Gradients = dict[str, Tensor | tuple[Tensor, Tensor]]
"""The gradient of each parameter, or two matrices whose product is the gradient."""


def join(device: str) -> Team:
    """Return the team of the processes that torchrun has started, or `ALONE`."""
    if not dist.is_torchelastic_launched() or "WORLD_SIZE" not in os.environ:
        return ALONE
    size = number("WORLD_SIZE", 1, 10**9, _REMEDY)
    if size == 1:
        return ALONE
    number("RANK", 0, size, _REMEDY)
    with usable(device):
        kind = torch.device(device)
    if kind.type == "cuda":
        if kind.index is not None:
            raise BadInput(f"--device {device}: torchrun gives each process a device; give --device cuda")
        local = number("LOCAL_RANK", 0, size, _REMEDY)
        with usable(device):
            torch.cuda.set_device(local)
    number("MASTER_PORT", 0, 1 << 16, _REMEDY)
    where = f"MASTER_ADDR={os.environ.get('MASTER_ADDR', '')} and MASTER_PORT={os.environ['MASTER_PORT']}"
    collectives = "cpu:gloo,cuda:nccl" if kind.type == "cuda" else "gloo"
    with refusing(f"torch cannot join the processes of {where}", f"; {_REMEDY}", RuntimeError, ValueError):
        dist.init_process_group(collectives, timeout=timedelta(seconds=TIMEOUT))
    return TorchTeam()


_REMEDY = "torchrun sets it, so start the command by torchrun"


def usable(device: str) -> AbstractContextManager[None]:
    """Raise BadInput where torch cannot use a device."""
    # a build without the device, or without its module, raises anything
    return refusing(f"--device {device}: torch cannot use it", "; cpu always works", Exception)


class TorchTeam:
    """The processes of the default group of torch.distributed."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def share(self, content: bytes) -> bytes:
        """Return the content that the leader gives."""
        length = torch.tensor([len(content)])
        with _raising_lost():
            dist.broadcast(length, 0)
            if not length:
                return b""
            payload = torch.empty(int(length), dtype=torch.uint8)
            if self.rank == 0:
                payload = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            dist.broadcast(payload, 0)
        return payload.numpy().tobytes()

    def gather(self, rows: NDArray[Scalar]) -> NDArray[Scalar]:
        """Return the rows of all processes."""
        return gathered(rows, self._exchange)

    def add(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes."""
        with _raising_lost():
            dist.all_reduce(tensor)

    def leave(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()

    def _exchange(self, local: NDArray[Any]) -> list[NDArray[Any]]:
        sent = torch.from_numpy(local)
        received = [torch.empty_like(sent) for _ in range(self.size)]
        with _raising_lost():
            dist.all_gather(received, sent)
        return [each.numpy() for each in received]


class Sums:
    """Sums the gradients of all processes, in one exchange."""

    def __init__(self, team: TorchTeam, parameters: dict[str, Tensor]) -> None:
        self._team = team
        first, *_ = parameters.values()
        self._buffer = first.new_empty(sum(map(torch.numel, parameters.values())), requires_grad=False)
        self._views: dict[str, Tensor] = {}
        begin = 0
        for name, parameter in parameters.items():
            self._views[name] = self._buffer.as_strided(parameter.shape, parameter.stride(), begin)
            begin += parameter.numel()

    @torch.no_grad()
    def of(self, gradients: Gradients) -> Gradients:
        """Return the sums; the next call overwrites them."""
        for name, view in self._views.items():
            gradient = gradients[name]
            if isinstance(gradient, tuple):
                torch.mm(*gradient, out=view)
            else:
                view.copy_(gradient)
        self._team.add(self._buffer)
        return dict(self._views)


@contextmanager
def _raising_lost() -> Iterator[None]:
    """Raise Lost where a process is lost: when one ends, torch raises RuntimeError in the others."""
    try:
        yield
    except RuntimeError as cause:
        reason = str(cause).splitlines()[0]
        raise Lost(f"another process of this run has ended or does not answer ({reason})") from cause
