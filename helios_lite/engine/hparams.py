"""Compares the hparams in a checkpoint with those of a model."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def differences(saved: dict[str, Any], present: dict[str, Any]) -> list[str]:
    """Return a sentence for each hparam that differs, such as "hparams['width']: 8 in the checkpoint, 16 now".

    What saving and loading changes is no difference: numpy numbers are numbers, and tensors may be on another device.
    Numbers are compared by value, NaN equals NaN, and a list equals a tuple.

    Args:
        saved: the hparams in a checkpoint.
        present: the hparams of the model.
    """
    return [
        f"hparams[{name!r}]: {_shown(saved, name)} in the checkpoint, {_shown(present, name)} now"
        for name in [*saved, *(name for name in present if name not in saved)]
        if not (name in saved and name in present and _is_equal(saved[name], present[name]))
    ]


def _shown(hparams: dict[str, Any], name: str) -> str:
    text = " ".join(repr(hparams[name]).split()) if name in hparams else "missing"
    return text if len(text) <= 200 else f"{text[:100]}...{text[-100:]}"


def _is_equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        a, b = a.detach().cpu(), b.detach().cpu()
        return bool(((a == b) | ((a != a) & (b != b))).all())  # Only NaN differs from itself.
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_is_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_is_equal, a, b))
    return bool(a == b or (a != a and b != b))
