"""Chooses the checkpoint from which a run continues, and compares it with the run; or starts from other weights."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from helios_lite.checkpoints.files import CheckpointError, OtherFormatError
from helios_lite.checkpoints.folder import candidates_of_run
from helios_lite.checkpoints.reading import evaluation_state, read_on_every_rank
from helios_lite.model import Model
from helios_lite.model_internals.attributes import named_networks, stateful_parts
from helios_lite.model_internals.made import Remaking
from helios_lite.model_internals.misfits import first, misfits
from helios_lite.training.checkpointer import Checkpointer
from helios_lite.training.monitor import Monitor
from helios_lite.training.session import Session

logger = logging.getLogger("helios_lite")


def resume(session: Session, checkpointer: Checkpointer, monitor: Monitor) -> None:
    """Continue from a checkpoint, if the options say so and there is one. Call on every rank.

    Args:
        session: the session, after its `setup`.
        checkpointer: loads the checkpoint.
        monitor: forgets what was best if the options monitor another metric.

    Raises:
        FileExistsError: `resume="never"`, and the run folder has a checkpoint.
        FileNotFoundError: `resume="best"`, and the run folder has no checkpoint.
        ValueError: `resume` is a path, but the run folder has another checkpoint, which the next start would use;
            it is "best", but the best checkpoint was not kept; or the checkpoint of the run folder has other
            hparams than the model.
    """
    choice = _resume_choice(session)
    found = load_checkpoint(
        session, "last" if choice in ("auto", "never") else choice, of_folder="last", option="resume"
    )
    if found is None:
        if choice == "best" and not session.options.fast_dev_run:
            where = "a run without files (root=None)" if session.folder is None else session.folder
            raise FileNotFoundError(f'resume="best": {where} has no checkpoint; use "auto" to start anew')
        return
    path, content = found
    if choice == "never":
        raise FileExistsError(f'resume="never", but there is {path}; choose another run_name')
    if choice == "best" and not is_best(session, path, content["state"]):
        raise ValueError(
            f'resume="best": {path.parent} has no best checkpoint. Either no validation was compared (monitor), or '
            "the file was not kept (keep_best) or cannot be read"
        )
    if isinstance(choice, Path):
        checkpoints = session.checkpoints
        newest = checkpoints.newest() if session.world.is_main and checkpoints is not None else None
        other = session.world.broadcast(None if newest is None or newest.samefile(path) else newest)
        if other is not None:
            raise ValueError(
                f"resume={str(choice)!r}: the run folder has {other}; choose another run_name, or "
                'resume="auto" to continue from that file'
            )
    _compare_hparams(session, path, content, is_automatic=not isinstance(choice, Path))
    _compare_parts(session, path, content)
    is_own = type(session.model).load_state_dict is not Model.load_state_dict
    parts = {} if is_own else dict(stateful_parts(session.model))
    remaking = Remaking(parts, content["made"], {} if is_own else content["model"])
    checkpointer.load(path, {**content, "model": {**content["model"], **remaking.states}})
    epoch, step = content["state"]["epoch"], content["state"]["step"]
    logger.info("continuing from %s (epoch %d, step %d)", path, epoch, step)
    for text in remaking.changes:
        logger.info("%s: used from step %d on", text, step + 1)
    _compare_options(session, monitor, content)
    if choice == "best":
        _set_aside_newer(session, path, step)


def is_best(session: Session, path: Path, state: dict[str, Any]) -> bool:
    """Return whether a checkpoint of the run folder is the best one. Call on every rank."""
    checkpoints = session.checkpoints
    was_final = session.world.is_main and checkpoints is not None and checkpoints.is_best(path)
    return session.world.broadcast(was_final) or state["best_step"] == state["step"]


def _resume_choice(session: Session) -> str | Path:
    """Return "auto", "never", "best" or a path. Call on every rank.

    A run that has begun with "best" or a path, and has saved since, goes on from its own newest checkpoint when it is
    started again with the same option: by its user, by a cluster, or after a failure.
    """
    option = session.options.resume
    counts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    if option == "never" and any(int(os.environ.get(name, "0")) > 0 for name in counts):
        return "auto"  # The checkpoints are those of the run itself, which was started again after a failure.
    if option in ("auto", "never"):
        return str(option)
    has_begun = False
    if session.world.is_main and session.checkpoints is not None:
        newest = session.checkpoints.newest_header()
        has_begun = newest is not None and newest["config"]["resume"] == session.options.config()["resume"]
    if session.world.broadcast(has_begun):
        logger.info("resume=%r: this run has begun with it, and goes on from its own checkpoint", str(option))
        return "auto"
    return "best" if option == "best" else Path(option)


def _set_aside_newer(session: Session, best: Path, step: int) -> None:
    """Move what is newer than the best checkpoint, of that step, to a run folder of its own; so all of it is kept."""
    checkpoints, folder = session.checkpoints, session.folder
    if not session.world.is_main or checkpoints is None or folder is None:
        return
    newer = checkpoints.newer_than(best)
    if not newer:
        return
    target = next(path for i in itertools.count(1) if not (path := folder / f"set_aside_{i}").exists())
    target.mkdir()
    for name in ("config.json", "metrics.jsonl"):  # The rows after the best checkpoint are removed from the latter.
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    checkpoints.move(newer, target / "checkpoints")
    logger.warning("the checkpoints after step %d (%d) are in %s now", step, len(newer), target)


def load_checkpoint(
    session: Session,
    choice: str | os.PathLike[str],
    of_folder: str = "best",
    *,
    option: str = "checkpoint",
    for_evaluation: bool = False,
) -> tuple[Path, dict[str, Any]] | None:
    """Read the "best" or "last" checkpoint or that of a path; return None if the run folder has none.

    Call on every rank. Rank 0 chooses, and all ranks read: one that no rank can read is passed over with a warning,
    unless it is the path. Ranks with sharded networks read their part of a sharded checkpoint together.

    Args:
        session: the session, set up.
        choice: "best" or "last" of the session's run folder, or the path of a checkpoint or of any run folder.
        of_folder: "best" or "last": which checkpoint to read if the path is that of a run folder.
        option: what has been set to the choice, for the error of a path that does not exist.
        for_evaluation: leave the sharded tensors of optimizers unread, if the model does not load its state itself.

    Raises:
        FileNotFoundError: the path does not exist, or is a run folder without a checkpoint that can be read.
        CheckpointError: the file cannot be read, or has another format.
        RuntimeError: a rank cannot read the checkpoint, and another one can.
    """
    world, like = session.world, session.context.parallel.sharded_parameter()
    loads_itself = type(session.model).load_state_dict is not Model.load_state_dict
    needed = tuple(f"model.{name}." for name in named_networks(session.model))
    is_all_needed = not for_evaluation or loads_itself

    def is_needed(name: str) -> bool:
        return is_all_needed or name.startswith(needed) or not name.startswith("model.")

    candidates = _candidates(session, choice, of_folder, option) if world.is_main else iter(())
    while (path := world.broadcast(next(candidates, None))) is not None:
        try:
            return path, read_on_every_rank(path, world, session.device, like, is_needed)
        except (CheckpointError, FileNotFoundError) as error:
            if path == Path(choice) or isinstance(error, OtherFormatError):
                raise
            if world.is_main:
                logger.warning("passing over a checkpoint: %s", error)
    if choice in ("best", "last"):
        return None
    raise FileNotFoundError(f"{choice}: this run folder has no checkpoint that can be read")


def _candidates(session: Session, choice: str | os.PathLike[str], of_folder: str, option: str) -> Iterator[Path]:
    """Yield the checkpoints to read for a choice, until one of them can be read."""
    path = Path(choice)
    if choice in ("best", "last"):
        if session.checkpoints is not None:
            yield from session.checkpoints.candidates(str(choice))
    elif not path.exists():
        raise FileNotFoundError(f"{option}={str(choice)!r}: there is no such checkpoint or run folder")
    elif (path / "checkpoints").is_dir():
        yield from candidates_of_run(path, of_folder, session.model.save_name)
    else:
        yield path


def _compare_hparams(session: Session, path: Path, content: dict[str, Any], *, is_automatic: bool) -> None:
    """Log the hparams that differ from the checkpoint's; raise a ValueError if nobody has asked for this file."""
    found = differences(content["hparams"], session.model.hparams)
    if found and is_automatic and not session.options.allow_changed_hparams:
        raise ValueError(
            f"{path}: is of a model with other hparams: {'; '.join(found)}. Choose another run_name or save_name "
            "to train a new model, or set allow_changed_hparams=True to resume with the hparams of now"
        )
    for text in found:
        logger.info("%s", text)


def _compare_parts(session: Session, path: Path, content: dict[str, Any]) -> None:
    """Raise a ValueError if the model is made of other parts than the one in the checkpoint, before it is changed."""
    if type(session.model).load_state_dict is not Model.load_state_dict:
        return
    found = misfits(dict(stateful_parts(session.model)), content["model"])
    for name, made in session.made.items():
        saved = content["made"].get(name, made)
        if "groups" in made and saved["class"] != made["class"]:
            found.insert(0, f"{name}: {saved['class']} in the checkpoint, {made['class']} now")
    if found:
        raise ValueError(
            f"{path}: is of a model that is made otherwise: {first(found)}. Choose another run_name to train a new "
            f"model; there init_from={str(path)!r} and init_parts take the parts that fit. To train from the beginning "
            f"under this name, delete {path.parent.parent}"
        )


def _compare_options(session: Session, monitor: Monitor, content: dict[str, Any]) -> None:
    """Log the options that differ from the checkpoint's; forget what was best if another metric is monitored."""
    now, earlier = session.options.config(), content["config"]
    for name, value in now.items():
        if not _is_equal(earlier.get(name), value):
            logger.info("%s: %r in the checkpoint, %r now", name, earlier.get(name), value)
    if (earlier.get("monitor"), earlier.get("mode")) != (now["monitor"], now["mode"]):
        logger.warning("something else is monitored now: what was best so far is forgotten")
        monitor.reset()
        if session.checkpoints is not None and session.world.is_main:
            session.checkpoints.forget_scores()


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
    networks = [*named_networks(model)]
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
