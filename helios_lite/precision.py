"""The number format of the forward pass."""

from __future__ import annotations

import contextlib

import torch

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16}


class Precision:
    """The context of the forward pass for one `precision` option on one device."""

    def __init__(self, name: str, device: torch.device) -> None:
        self._dtype = _AUTOCAST[name]
        self._device = device

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which PyTorch chooses the format per operation; for fp32 it does nothing."""
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, self._dtype)
