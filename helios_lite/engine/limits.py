"""How many batches of each split a call uses, if options limit them."""

from __future__ import annotations

from helios_lite.options import Options


def batch_limit(options: Options, phase: str) -> int | float | None:
    """Return the limit of a split: a number of batches, a part of them (a float), or None for all.

    Args:
        options: the trainer.
        phase: "train", "valid" or "test".
    """
    if options.overfit_batches is not None and phase != "test":
        return options.overfit_batches
    limits = {"train": options.limit_train_batches, "valid": options.limit_valid_batches}
    return limits.get(phase, options.limit_test_batches)


def limits_text(options: Options, *phases: str) -> str:
    """Return what is said of limited splits, such as "valid limited to 5 batches"; empty if none is."""
    texts = []
    for phase in phases:
        limit = batch_limit(options, phase)
        if limit is not None:
            amount = f"{limit:.3g} of the batches" if isinstance(limit, float) else f"{limit} batch{'es' * (limit > 1)}"
            texts.append(f"{phase} limited to {amount}")
    return ", ".join(texts)


def with_limits(title: str, options: Options, *phases: str) -> str:
    """Return a title that says which splits are limited."""
    text = limits_text(options, *phases)
    return f"{title} ({text})" if text else title
