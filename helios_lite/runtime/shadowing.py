"""Checks that a class is no Module, and that no attribute of an object hides a method of its base class."""

from __future__ import annotations

from torch import nn

_REPLACEABLE = {"train_step", "valid_step", "test_step", "predict_step", "prepare_data", "setup", "teardown"}


def check_is_no_module(cls: type) -> None:
    """Raise a TypeError if a subclass of Model is an `nn.Module` too."""
    if issubclass(cls, nn.Module):
        raise TypeError(
            f"{cls.__name__}: a Model cannot be an nn.Module too, because it has networks as attributes; write the "
            "nn.Module as a class of its own, and in setup assign `self.net = self.parallelize(Net())`"
        )


def check_no_method_is_hidden(owner: object, base: type) -> None:
    """Check that no attribute of an object has the name of a public method of its base class.

    `self.log = []` would otherwise fail much later, where `self.log(...)` is called. A step, or what prepares and tears
    down, may be replaced by another callable, as `self.train_step = torch.compile(self.train_step)` does. An assignment
    to a property is an AttributeError of Python itself.

    Args:
        owner: the object.
        base: the class whose methods must not be hidden.

    Raises:
        AttributeError: an attribute hides a method; the message names both.
    """
    for name, value in vars(owner).items():
        if name.startswith("_") or not callable(getattr(base, name, None)):
            continue
        if not (name in _REPLACEABLE and callable(value)):
            raise AttributeError(
                f"{type(owner).__name__}.{name}: is an attribute ({type(value).__name__}) that hides the method "
                f"`{name}` of {base.__name__}; give the attribute another name"
            )
