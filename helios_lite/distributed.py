"""Where a run computes."""

from __future__ import annotations

import torch


def choose_device(accelerator: str) -> torch.device:
    """Return the device of this process.

    Args:
        accelerator: "auto" (CUDA, then MPS, then CPU), or the one that must be used.

    Raises:
        RuntimeError: the accelerator asked for is not there; nothing falls back silently to the CPU.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator == "auto":
        accelerator = next(name for name, there in available.items() if there)
    if not available[accelerator]:
        found = ", ".join(name for name, there in available.items() if there)
        raise RuntimeError(f"accelerator={accelerator!r} is not available on this machine, which has: {found}")
    return (
        torch.device(accelerator, torch.cuda.current_device()) if accelerator == "cuda" else torch.device(accelerator)
    )
