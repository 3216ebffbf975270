"""Activations that are recomputed in the backward pass instead of being kept from the forward pass."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(block: nn.Module) -> None:
    """Let a block keep only its inputs for the backward pass, which runs its forward pass again.

    RNG states are restored for that, so that dropout is the same and the result has the same bits. The class of the
    block and the names in its state dict do not change, and copies of the block work. Hooks run once: FSDP gathers the
    parameters for the recomputation when it does so for the backward pass.
    """
    forward = functools.partial(_forward, block)  # Unlike a closure, it can be copied and pickled with the block.
    block.forward = forward


def _forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = functools.partial(type(block).forward, block)
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
