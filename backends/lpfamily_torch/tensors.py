"""Snapshots of the parameters and buffers of modules, to restore them after a pass."""

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
"""Size in bytes up to which parameters are copied, and values restored even if torch counted no change."""

BATCH_NORM_FORWARDS = (_BatchNorm.forward, SyncBatchNorm.forward)
"""Forwards that change a buffer of their module only with `track_running_stats`."""


class TensorSnapshot:
    """The parameters and buffers of modules as they are now: which tensors, and their values.

    It records the identity of every tensor, and torch's count of its changes. For frozen parameters, and for
    the parameters of modules with code other than torch's, it also records the memory, which an assignment to
    `.data` replaces. It copies the values of buffers, and of the small parameters of these modules.
    """

    def __init__(self, modules: dict[nn.Module, bool], *, norms: bool = False) -> None:
        tables: list[dict[str, Any]] = [each._buffers for each in modules]
        uncopied: list[Tensor] = []
        copied: list[Tensor] = []
        for module, buffers in zip(modules, tables, strict=True):
            if buffers and (norms or type(module).forward not in BATCH_NORM_FORWARDS):
                copied += [buffer for buffer in buffers.values() if buffer is not None]
        if not are_sharded(modules):
            tables += [module._parameters for module in modules]
            for module, is_torch_code in modules.items():
                if not module._parameters:
                    continue
                # embeddings scale their rows in a forward pass
                scales_rows = "max_norm" in vars(module) and module.max_norm is not None
                for parameter in module._parameters.values():
                    if parameter is None:
                        continue
                    if scales_rows or not (is_torch_code or _is_large(parameter)):
                        copied.append(parameter)
                    elif not (is_torch_code and parameter.requires_grad):
                        uncopied.append(parameter)
        self._empty = [table for table in tables if not table]
        self._tables = [table for table in tables if table]
        self._entries = [dict(table) for table in self._tables]
        self._all = [t for entries in self._entries for t in entries.values() if t is not None]
        self._versions = _versions(self._all)
        self._copies = {id(t): t.detach().clone() for t in copied}
        plain = {id(t): t for t in uncopied + copied if _is_plain(t)}
        self._memory = {key: (t, t.data) for key, t in plain.items()}

    def restore(self, *, buffers: bool = True) -> None:
        """Restore the identity and memory of all tensors, and the values of small parameters.

        With `buffers` also the values of small buffers.
        """
        for table in self._empty:
            table.clear()
        for table, entries in zip(self._tables, self._entries, strict=True):
            if len(table) != len(entries) or not all(map(is_, table.values(), entries.values())):
                table.clear()
                table.update(entries)
        for key, (tensor, data) in self._memory.items():
            if tensor.data_ptr() != data.data_ptr() or tensor.shape != data.shape:
                tensor.data = data
            copy = self._copies.get(key)
            if copy is None or data.nbytes > SMALL or not (buffers or isinstance(tensor, nn.Parameter)):
                continue
            # comparing would wait for a device; on the CPU, memory that may be read-only is not written
            if data.device.type != "cpu" or not torch.equal(data, copy):
                data.copy_(copy)  # not counted as a change: graphs that saved the tensor are valid again

    def restore_all(self) -> list[Tensor]:
        """Restore everything; return the tensors that were changed and have no copy."""
        self.restore()
        changed = []
        for tensor, before, now in zip(self._all, self._versions, _versions(self._all), strict=True):
            if before == now:
                continue
            if id(tensor) not in self._copies:
                changed.append(tensor)
            elif id(tensor) not in self._memory or tensor.nbytes > SMALL:
                with torch.no_grad():
                    tensor.copy_(self._copies[id(tensor)])
        return changed

    def name(self, tensor: Tensor) -> str:
        """Return the name of the tensor in its module, and its shape."""
        names = (name for entries in self._entries for name, each in entries.items() if each is tensor)
        return f"{next(names)} of shape {tuple(tensor.shape)}"

    def substitute(self) -> None:
        """Replace buffers and frozen parameters of the modules by the copies, which graphs may save."""
        replacements = {
            id(t): nn.Parameter(self._copies[id(t)], False)
            if isinstance(t, nn.Parameter)
            else self._copies[id(t)]
            for t in self._all
            if id(t) in self._copies and not t.requires_grad
        }
        for table, entries in zip(self._tables, self._entries, strict=True):
            table.update({name: replacements[id(t)] for name, t in entries.items() if id(t) in replacements})


@contextmanager
def restoring_tensors(modules: dict[nn.Module, bool]) -> Iterator[None]:
    """Restore parameters and buffers at the end."""
    snapshot = TensorSnapshot(modules)
    try:
        yield
    finally:
        changed = snapshot.restore_all()
    if changed:
        raise RuntimeError(
            f"the forward pass changes {snapshot.name(changed[0])} in place, which cannot be undone, as it "
            f"is larger than {SMALL >> 20} MiB or in a module of torch: register it as a buffer, or change "
            "it between passes"
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
    """Whether FSDP shards the parameters of these modules between processes."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return False
    return any(isinstance(each, fsdp.FullyShardedDataParallel | fsdp.FSDPModule) for each in modules)
