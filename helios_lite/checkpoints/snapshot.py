"""Copies of states in CPU memory, from which a checkpoint is written."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from helios_lite.processes.devices import copies_asynchronously, pins_memory


class CpuSnapshot:
    """Copies states to CPU memory, so that later steps do not change them, and any machine can read them.

    Tensors that share memory share it in the copy too. The memory of one copy is reused for the next, which saves the
    operating system the work of providing new pages. For a GPU it is pinned, and all copies are waited for at once.

    PyTorch's own stager (`torch.distributed.checkpoint.staging`) is not used: it refuses sparse tensors, copies the
    storage behind a view in full, and takes 0.45 s to import.

    Args:
        of_all: whether tensors that are in CPU memory are copied as well. They need not be if training waits until the
            copy has been written; no memory is kept then.
    """

    def __init__(self, *, of_all: bool = True) -> None:
        self._of_all = of_all
        self._memory: list[Tensor] = []

    def copy(self, value: Any) -> Any:
        """Return a copy of tensors in containers of any nesting. The previous copy must no longer be in use."""
        memory, self._memory = self._memory, []
        copies: dict[Any, Tensor] = {}
        copied = self._copy(value, copies, iter(memory))
        for device in {key[0] for key in copies if copies_asynchronously(key[0])}:
            torch.accelerator.synchronize(device)  # Once, and not for each tensor.
        return copied

    def _copy(self, value: Any, copies: dict[Any, Tensor], memory: Iterator[Tensor]) -> Any:
        if isinstance(value, Tensor):
            return self._copy_tensor(value, copies, memory)
        if isinstance(value, dict):
            copied = copy.copy(value)
            for name, item in value.items():
                copied[name] = self._copy(item, copies, memory)
            return copied
        if type(value) in (list, tuple, set):
            return type(value)([self._copy(item, copies, memory) for item in value])
        return value

    def _copy_tensor(self, value: Tensor, copies: dict[Any, Tensor], memory: Iterator[Tensor]) -> Tensor:
        if value.is_cpu and not self._of_all:
            return value
        if value.layout != torch.strided or value.numel() == 0:
            return value.detach().to("cpu", copy=True)
        is_async = copies_asynchronously(value.device)
        key = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if key not in copies:
            old, form = next(memory, None), (value.dtype, value.shape, value.stride())
            if old is not None and (old.dtype, old.shape, old.stride()) == form:
                copies[key] = old
            else:
                is_pinned = self._of_all and pins_memory(value.device)
                copies[key] = torch.empty_like(value.detach(), device="cpu", pin_memory=is_pinned)
            copies[key].copy_(value.detach(), non_blocking=is_async)
            if self._of_all:
                self._memory.append(copies[key])
        return copies[key]
