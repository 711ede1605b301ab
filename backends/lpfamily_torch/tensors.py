"""Parameters and buffers of modules, kept so that they can be put back after a pass."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

SMALL = 2**20
"""Bytes up to which contents are put back even if torch has counted no change, and parameters are copied."""

BATCH_NORM_FORWARDS = (_BatchNorm.forward, SyncBatchNorm.forward)
"""What changes no buffer of its module unless `track_running_stats` says so."""


class TensorSnapshot:
    """The parameters and buffers that modules have now: which tensors, and what is in them.

    Of all of them it has the identity and torch's count of changes. Of frozen parameters and of those of
    modules with code that is not torch's it has the memory, which `.data = ` exchanges, without a copy; of
    these modules' small parameters, and of buffers, a copy.
    """

    def __init__(self, modules: dict[nn.Module, bool], *, norms: bool = False) -> None:
        tables: list[dict[str, Any]] = [each._buffers for each in modules]
        seen: list[Tensor] = []
        copied: list[Tensor] = []
        for each, buffers in zip(modules, tables, strict=True):
            if buffers and (norms or type(each).forward not in BATCH_NORM_FORWARDS):
                copied += [buffer for buffer in buffers.values() if buffer is not None]
        if not are_sharded(modules):
            tables += [each._parameters for each in modules]
            for each, of_torch in modules.items():
                if not each._parameters:
                    continue
                scales_rows = "max_norm" in vars(each) and each.max_norm is not None  # as embeddings do
                for parameter in each._parameters.values():
                    if parameter is None:
                        continue
                    if scales_rows or not (of_torch or _is_large(parameter)):
                        copied.append(parameter)
                    elif not (of_torch and parameter.requires_grad):
                        seen.append(parameter)
        self._empty = [table for table in tables if not table]
        self._tables = [table for table in tables if table]
        self._entries = [dict(table) for table in self._tables]
        self._all = [t for entries in self._entries for t in entries.values() if t is not None]
        self._versions = _versions(self._all)
        self._copies = {id(t): t.detach().clone() for t in copied}
        plain = {id(t): t for t in seen + copied if _is_plain(t)}
        self._memory = {name: (t, t.data) for name, t in plain.items()}

    def restore(self, *, buffers: bool = True) -> None:
        """Put back which tensors there are, their memory, and what small ones contain, buffers or not."""
        for table in self._empty:
            table.clear()
        for table, entries in zip(self._tables, self._entries, strict=True):
            if len(table) != len(entries) or not all(map(is_, table.values(), entries.values())):
                table.clear()
                table.update(entries)
        for name, (tensor, data) in self._memory.items():
            if tensor.data_ptr() != data.data_ptr() or tensor.shape != data.shape:
                tensor.data = data
            copy = self._copies.get(name)
            if copy is None or data.nbytes > SMALL or not (buffers or isinstance(tensor, nn.Parameter)):
                continue
            # a device is not waited for; on the CPU nothing is written to memory that may be read alone
            if data.device.type != "cpu" or not torch.equal(data, copy):
                data.copy_(copy)  # uncounted, as graphs that have saved it are right again

    def restore_all(self) -> list[Tensor]:
        """Put everything back; return what was changed and has no copy."""
        self.restore()
        lost = []
        for tensor, before, now in zip(self._all, self._versions, _versions(self._all), strict=True):
            if before == now:
                continue
            if id(tensor) not in self._copies:
                lost.append(tensor)
            elif id(tensor) not in self._memory or tensor.nbytes > SMALL:
                with torch.no_grad():
                    tensor.copy_(self._copies[id(tensor)])
        return lost

    def name(self, tensor: Tensor) -> str:
        """Return what the tensor is called in its module, and its shape."""
        names = (name for entries in self._entries for name, each in entries.items() if each is tensor)
        return f"{next(names)} of shape {tuple(tensor.shape)}"

    def substitute(self) -> None:
        """Give the modules the copies for buffers and frozen parameters; graphs may save them."""
        others = {
            id(t): nn.Parameter(self._copies[id(t)], False)
            if isinstance(t, nn.Parameter)
            else self._copies[id(t)]
            for t in self._all
            if id(t) in self._copies and not t.requires_grad
        }
        for table, entries in zip(self._tables, self._entries, strict=True):
            table.update({name: others[id(t)] for name, t in entries.items() if id(t) in others})


@contextmanager
def restoring_tensors(modules: dict[nn.Module, bool]) -> Iterator[None]:
    """Put parameters and buffers back at the end."""
    kept = TensorSnapshot(modules)
    try:
        yield
    finally:
        lost = kept.restore_all()
    if lost:
        raise RuntimeError(
            f"the forward pass changes {kept.name(lost[0])} in place, which cannot be undone, as it is "
            f"larger than {SMALL >> 20} MiB or in a module of torch: register it as a buffer, or change it "
            "between passes"
        )


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and not tensor.is_meta


def _is_large(tensor: Tensor) -> bool:
    return not _is_plain(tensor) or tensor.nbytes > SMALL


def _versions(tensors: list[Tensor]) -> list[int]:
    try:
        return [t._version for t in tensors]
    except RuntimeError:  # those of inference mode count no changes
        return [0 if t.is_inference() else t._version for t in tensors]


def are_sharded(modules: Iterable[nn.Module]) -> bool:
    """Whether FSDP exchanges the parameters itself."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return False
    return any(isinstance(each, fsdp.FullyShardedDataParallel | fsdp.FSDPModule) for each in modules)
