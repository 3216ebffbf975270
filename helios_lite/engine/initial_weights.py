"""Starts a new training from the weights in a checkpoint of another one (`init_from`)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from helios_lite.engine.checkpointing import load_checkpoint
from helios_lite.engine.session import Session
from helios_lite.model import Model
from helios_lite.runtime.checkpoint_files import evaluation_state
from helios_lite.runtime.stateful import stateful_parts

logger = logging.getLogger("helios_lite")


def initialize(session: Session, resumed_from: Path | None) -> None:
    """Load what `init_from` and `init_parts` name into the model, if a new training starts. Call on every rank.

    The counters and the random numbers stay those of a new training.

    Args:
        session: the session, after its `setup`.
        resumed_from: the checkpoint from which this run was resumed, None for a new training.

    Raises:
        FileNotFoundError, CheckpointError: there is no such checkpoint, or it cannot be read.
        ValueError: a part is missing in the checkpoint or in the model, or does not fit.
    """
    source, parts, model = session.options.init_from, session.options.init_parts, session.model
    if source is None:
        return
    if resumed_from is not None:
        logger.info("init_from=%r is not used, because this run continues from %s", str(source), resumed_from)
        return
    found = load_checkpoint(session, Path(source), option="init_from")
    assert found is not None  # A path is read, or raises.
    path, content = found
    if type(model).load_state_dict is Model.load_state_dict:
        names = _load_parts(model, path, content, parts)
    elif parts is None or parts == "all":
        is_all = parts is not None
        model.load_state_dict(content["model"] if is_all else evaluation_state(content), fast_init=not is_all)
        names = ["all"] if is_all else ["networks"]
    else:
        raise ValueError(
            f"init_parts={list(parts)!r}: {type(model).__name__} has its own load_state_dict, which cannot load parts "
            'by name; use None for its networks, or "all"'
        )
    epoch, step = content["state"]["epoch"], content["state"]["step"]
    logger.info("initialized from %s (epoch %d, step %d): %s", path, epoch, step, ", ".join(names))


def _load_parts(model: Model, path: Path, content: dict[str, Any], chosen: Any) -> list[str]:
    """Load parts of a model by name; return the names of those that were loaded."""
    parts, saved = dict(stateful_parts(model)), content["model"]
    networks = [name for name, part in parts.items() if isinstance(part, nn.Module)]
    wanted = networks if chosen is None else list(parts) if chosen == "all" else list(chosen)
    names = [name for name in wanted if name in parts and name in saved]
    is_exact = chosen is not None and chosen != "all"
    if not names or (is_exact and len(names) < len(wanted)):
        missing = [name for name in wanted if name not in names]
        raise ValueError(
            f"init_from: {', '.join(missing) or 'a network'} must be in the model and in the checkpoint; the model has "
            f"{', '.join(parts) or 'nothing'}, and {path} has {', '.join(saved) or 'nothing'}"
        )
    # Averaged weights, with which the checkpoint was validated; an optimizer belongs to the weights that it trained.
    state = evaluation_state(content) if set(names) <= set(networks) else saved
    for name in names:
        try:
            parts[name].load_state_dict(state[name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(f"init_from: {name!r} of {path} does not fit the model's: {error}") from error
    if not is_exact:
        for text, left in (
            ("not in the checkpoint, and so as setup made them", [name for name in wanted if name not in saved]),
            ("in the checkpoint, but not in the model", [name for name in saved if name not in parts]),
        ):
            if left:
                logger.info("init_from: %s: %s", text, ", ".join(left))
    return names
