"""Finds methods that are probably meant as hooks, but have another name, so that nothing calls them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

_OF_OTHERS = {
    "training_step": "train_step",
    "validation_step": "valid_step",
    "val_step": "valid_step",
    "eval_step": "valid_step",
    "testing_step": "test_step",
    "prediction_step": "predict_step",
}
"""The names of steps that other trainers have."""
_LIKENESS = {"on_": 0.75, "step": 0.9}  # From 0 to 1; a model may have a method `pretrain_step` of its own.


def misspelt_hooks(owner: object, base: type) -> Iterator[tuple[str, str]]:
    """Yield the names of methods that look like hooks and are none, each with the nearest name of a hook.

    Args:
        owner: an object of a user's class.
        base: the class of this package whose methods the user's class overrides.
    """
    known = [name for name in dir(base) if not name.startswith("_") and callable(getattr(base, name))]
    for cls in type(owner).__mro__:
        if not issubclass(cls, base) or cls is base:
            continue
        for name, value in vars(cls).items():
            if callable(value) and name not in known and (nearest := _nearest(name, known)) is not None:
                yield f"{cls.__name__}.{name}", nearest


def _nearest(name: str, known: list[str]) -> str | None:
    if name in _OF_OTHERS:
        return _OF_OTHERS[name] if _OF_OTHERS[name] in known else None
    is_event = name.startswith("on_")
    if not is_event and not name.endswith("step"):
        return None
    candidates = [each for each in known if each.startswith("on_") and is_event]
    candidates += [each for each in known if each.endswith("step") and not is_event and each not in name]
    return next(iter(difflib.get_close_matches(name, candidates, 1, _LIKENESS["on_" if is_event else "step"])), None)
