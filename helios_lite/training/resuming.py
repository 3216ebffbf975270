"""Chooses the checkpoint from which a run continues, and resumes from it; or starts from other weights."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer

from helios_lite.changes.added_groups import AddedGroups
from helios_lite.changes.comparing import OF_THE_END, changed_options, compare_hparams, compare_parts
from helios_lite.changes.made import Remaking, changed_numbers
from helios_lite.changes.misfits import load_part, misfits, shared_groups
from helios_lite.changes.run_description import changes_of_run
from helios_lite.checkpoints.files import CheckpointError, OtherFormatError, require_parts
from helios_lite.checkpoints.folder import candidates_of_run
from helios_lite.checkpoints.reading import evaluation_state, read_checkpoint_header, read_on_every_rank
from helios_lite.metrics.metric_objects import is_network
from helios_lite.model import Model
from helios_lite.model_internals.attributes import named_networks, stateful_parts
from helios_lite.processes.devices import DeviceMover
from helios_lite.processes.job import is_restarted
from helios_lite.processes.output import harmless_errors
from helios_lite.training.checkpointer import Checkpointer
from helios_lite.training.monitor import Monitor
from helios_lite.training.session import Session

logger = logging.getLogger("helios_lite")
_EVALUATED = ("state", "model", "callbacks", "ranks", "metrics")
_TRAINED = ("monitor", "config", "hparams", "tables", "planned", "precision", "parallel")
"""What a checkpoint must have that an evaluation reads, and what a training reads besides."""


class Resumed(NamedTuple):
    """How a run goes on.

    - said: what to say: that it continues and where, and a sentence for each change; nothing of a new training.
    - goes_back: on rank 0 whether it goes back to the best checkpoint from a newer one.
    - changes_rows: whether something has changed, so that later rows are others than they would have been, or than the
      last start has written; rank 0 knows.
    """

    said: list[str]
    goes_back: bool
    changes_rows: bool


class Resumption:
    """The checkpoint from which a run is going to continue. It is chosen before `Model.setup`. Call on every rank.

    Args:
        session: the session, before its `setup`.
        is_tried: whether the start is only looked at, and a run folder of its own (`resume="new"`) is not made.

    Attributes:
        choice: what `resume` means for this start: "auto", "never", "best" or a path.
        header: the content of the checkpoint without tensors; None if there is no checkpoint.
    """

    def __init__(self, session: Session, *, is_tried: bool) -> None:
        is_new = is_tried and session.options.resume == "new"
        self.choice = "auto" if is_new else _resume_choice(session)
        self._of_folder: str | Path = "last" if self.choice in ("auto", "never") else self.choice
        is_looking = session.world.is_main and not is_new
        paths = _candidates(session, self._of_folder, "last", "resume") if is_looking else iter(())
        first = next(paths, None)
        self._candidates = paths if first is None else itertools.chain([first], paths)
        header = None if first is None else _header(first)
        self.header: dict[str, Any] | None = session.world.broadcast(header)

    def read(self, session: Session) -> tuple[Path, dict[str, Any]] | None:
        """Return the path and the content of the checkpoint; None if the run folder has none. Call on every rank."""
        return load_checkpoint(session, self._of_folder, "last", option="resume", candidates=self._candidates)

    def plan_anew(self, session: Session, content: dict[str, Any] | None) -> None:
        """Plan the steps from another checkpoint than that of the header, if tensors of that one are damaged.

        Args:
            session: the session, after its `setup`.
            content: what `read` has returned.
        """
        if self.header is None or (content is not None and content["state"] == self.header["state"]):
            return
        before = session.planned.known_total()
        session.planned.goes_on(None if content is None else _header_of(content))
        now = session.planned.known_total()
        if before != now and session.world.is_main:
            text = "num_training_steps: setup had %s, from the damaged checkpoint, and it is %s; if a schedule is made "
            logger.warning(text + "for it, delete that file and start again", before, now)


def _header(path: Path) -> dict[str, Any] | None:
    """Return what is needed of a checkpoint before `Model.setup`; None if it cannot be read, which `read` says."""
    try:
        return _header_of(read_checkpoint_header(path))
    except (CheckpointError, FileNotFoundError, KeyError):
        return None


def _header_of(content: Mapping[str, Any]) -> dict[str, Any]:
    return {**{name: content[name] for name in ("planned", "state", "config")}, "data": content["ranks"][0]["data"]}


@harmless_errors()
def resume(
    session: Session, resumption: Resumption, checkpointer: Checkpointer, monitor: Monitor, *, is_tried: bool = False
) -> Resumed:
    """Continue from a checkpoint, if there is one. Call on every rank.

    Args:
        session: the session, after its `setup`.
        resumption: the choice of the checkpoint.
        checkpointer: loads the checkpoint.
        monitor: forgets what was best if the options monitor another metric.
        is_tried: whether nothing in the run folder is changed.

    Raises:
        FileExistsError: `resume="never"`, and the run folder has a checkpoint.
        FileNotFoundError: `resume="best"`, and the run folder has no checkpoint.
        ValueError: `resume` is a path, but the run folder has another checkpoint, which the next start would use;
            it is "best", but the best checkpoint was not kept; or the checkpoint of the run folder has other
            hparams than the model.
    """
    choice = resumption.choice
    found = resumption.read(session)
    if found is None:
        resumption.plan_anew(session, None)
        if choice == "best" and not session.options.fast_dev_run:
            where = "a run without files (root=None)" if session.folder is None else session.folder
            raise FileNotFoundError(f'resume="best": {where} has no checkpoint; use "auto" to start anew')
        folder = session.folder if choice == "auto" and session.world.is_main else None
        if folder is not None and (folder / "metrics.jsonl").exists():
            text = "%s has no checkpoint that can be read: the training begins at step 0, and replaces the rows there"
            logger.warning(text, folder)
        return Resumed([], goes_back=False, changes_rows=False)
    path, content = found
    if choice == "never":
        raise FileExistsError(f'resume="never", but there is {path}; choose another run_name or resume="new"')
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
    loads_itself = _loads_itself(session.model)
    parts = {} if loads_itself else dict(stateful_parts(session.model))
    added = AddedGroups(parts, content.get("added_groups", {}), content["model"])
    states = content["model"] if loads_itself else added.left_out(content["model"])
    changed_hparams = compare_hparams(
        path,
        content,
        session.model.hparams,
        session.planned.known_total(),
        allows=isinstance(choice, Path) or session.options.allow_changed_hparams,
        fits=loads_itself or not misfits(parts, states),
    )
    resumption.plan_anew(session, content)
    if not loads_itself:
        compare_parts(path, {**content, "model": states}, parts, session.tables["made"])
    elif texts := changed_numbers(content["tables"]["made"], session.tables["made"]):
        kind = type(session.model).__name__
        logger.warning("%s: not used, because %s has a load_state_dict of its own", "; ".join(texts), kind)
    remaking = Remaking(parts, content["tables"]["made"], {} if loads_itself else states, content["state"])
    added.make()
    states = {**content["model"], **added.put_back(remaking.states, content["model"])}
    checkpointer.load(path, {**content, "model": states})
    step = content["state"]["step"]
    said = [_continuing(session, path, content), *changed_hparams]
    is_inside = content["state"]["epoch_batch"] > 0
    said += [f"{text}: used from step {step + 1} on" for text in remaking.changes]
    said += changes_of_run(content["tables"], session.tables, is_inside_epoch=is_inside)
    before, now = content["planned"]["samples_per_step"], session.planned.samples_per_step()
    if None not in (before, now) and before != now:
        said.append(f"a step takes {now} samples now, {before} before")
    options = changed_options(content["config"], session.options.config())
    changes_rows = len(said) > 1 or not OF_THE_END.issuperset(options) or _began_otherwise(session)
    said += options.values()
    said += _forget_other_metric(session, monitor, content["config"], is_tried=is_tried)
    goes_back = choice == "best" and not is_tried and _set_aside_newer(session, path, step)
    return Resumed(said, goes_back, changes_rows)


def _continuing(session: Session, path: Path, content: dict[str, Any]) -> str:
    """Return the sentence with which a run begins that continues."""
    step, num_ranks = content["state"]["step"], len(content["ranks"])
    total = session.planned.known_total()
    of_total = "" if total is None else f" of {total}"
    world = ""
    if num_ranks != session.world.size:
        world = f", with {session.world.size} process{'es' * (session.world.size > 1)} in place of {num_ranks}"
    is_own = session.checkpoints is not None and path.parent.resolve() == session.checkpoints.folder.resolve()
    source = f" ({path.name})" if is_own else f", from {path}"
    return f"continuing {session.name} at step {step}{of_total}{world}{source}"


def _forget_other_metric(session: Session, monitor: Monitor, saved: Mapping[str, Any], *, is_tried: bool) -> list[str]:
    """Forget what was best if the options monitor another metric than the run has until now; return what is said."""
    now = session.options.config()
    if (saved.get("monitor"), saved.get("mode")) == (now["monitor"], now["mode"]):
        return []
    monitor.reset()
    text = f"{now['monitor']} is monitored now: what was best so far is forgotten"
    if is_tried:
        return [text]
    logger.warning("%s", text)
    if session.checkpoints is not None and session.world.is_main:
        session.checkpoints.forget_scores()
    return []


def _began_otherwise(session: Session) -> bool:
    """Return whether the last start, which may have written no checkpoint, was of another configuration than this one.

    Rank 0 knows, of a run folder that has a config.json.
    """
    if session.folder is None:
        return False
    try:
        last = json.loads((session.folder / "config.json").read_text(encoding="utf-8"))
        config, hparams = session.options.config(), session.model.hparams
        config, hparams, tables = json.loads(json.dumps([config, hparams, session.tables], default=str))
        changes = [*changed_numbers(last["made"], tables["made"]), *changes_of_run(last, tables, is_inside_epoch=False)]
        is_same_training = OF_THE_END.issuperset(changed_options(last["trainer"], config))
        return bool(changes) or last["hparams"] != hparams or not is_same_training
    except (OSError, ValueError, LookupError, TypeError):
        return False  # There is none, or it is damaged.


def _loads_itself(model: Model) -> bool:
    """Return whether a model has a `load_state_dict` of its own, of which it is not known what it does."""
    return type(model).load_state_dict is not Model.load_state_dict


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
    if option == "new" and session.folder is not None:
        logger.info('resume="new": this run is %s', session.name)
    if option == "new" or (option == "never" and is_restarted()):
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


def _set_aside_newer(session: Session, best: Path, step: int) -> bool:
    """Move what is newer than the best checkpoint, of that step, to a run folder of its own; so all of it is kept.

    It returns whether there was anything.
    """
    checkpoints, folder = session.checkpoints, session.folder
    if not session.world.is_main or checkpoints is None or folder is None:
        return False
    newer = checkpoints.newer_than(best)
    if not newer:
        return False
    target = next(path for i in itertools.count(1) if not (path := folder / f"set_aside_{i}").exists())
    target.mkdir()
    for name in ("config.json", "metrics.jsonl"):  # The rows after the best checkpoint are removed from the latter.
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    checkpoints.move(newer, target / "checkpoints")
    logger.warning("the checkpoints after step %d (%d) are in %s now", step, len(newer), target)
    return True


def load_checkpoint(
    session: Session,
    choice: str | os.PathLike[str],
    of_folder: str = "best",
    *,
    option: str = "checkpoint",
    for_evaluation: bool = False,
    candidates: Iterator[Path] | None = None,
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
        candidates: what rank 0 has found already for the choice.

    Raises:
        FileNotFoundError: the path does not exist, or is a run folder without a checkpoint that can be read.
        CheckpointError: the file cannot be read, or has another format.
        RuntimeError: a rank cannot read the checkpoint, and another one can.
    """
    world, like = session.world, session.context.parallel.sharded_parameter()
    loads_itself = _loads_itself(session.model)
    needed = tuple(f"model.{name}." for name in named_networks(session.model))
    is_all_needed = not for_evaluation or loads_itself

    def is_needed(name: str) -> bool:
        return is_all_needed or name.startswith(needed) or not name.startswith("model.")

    if candidates is None:
        candidates = _candidates(session, choice, of_folder, option) if world.is_main else iter(())
    while (path := world.broadcast(next(candidates, None))) is not None:
        try:
            content = read_on_every_rank(path, world, like, is_needed, mmap=not is_all_needed)
            require_parts(path, content, _EVALUATED if for_evaluation else _EVALUATED + _TRAINED)
            return path, placed(content, dict(stateful_parts(session.model)), session.context.mover)
        except (CheckpointError, FileNotFoundError) as error:
            if path == session.directory / choice or isinstance(error, OtherFormatError):
                raise
            if world.is_main:
                logger.warning("passing over a checkpoint: %s", error)
    if choice in ("best", "last"):
        return None
    raise FileNotFoundError(f"{choice}: this run folder has no checkpoint that can be read")


@torch.no_grad()
def placed(content: dict[str, Any], parts: Mapping[str, Any], mover: DeviceMover) -> dict[str, Any]:
    """Return the content of a checkpoint with its tensors on the device of this process, but for these:

    Networks and optimizers copy what they load to where it belongs, so it stays in CPU memory. An optimizer that counts
    its steps on the CPU would otherwise wait for the device to read them, for each parameter at every step. Generators
    and loaders have their states in CPU memory.

    Args:
        content: the content, as it was read.
        parts: the stateful parts of the model by name.
        mover: moves to the device.
    """
    if mover.device.type == "cpu":
        return content
    model = {
        name: state if is_network(parts.get(name)) or isinstance(parts.get(name), Optimizer) else mover(state)
        for name, state in content["model"].items()
    }
    ranks = [
        {name: state if name in ("rng", "data") else mover(state) for name, state in rank.items()}
        for rank in content["ranks"]
    ]
    others = {name: mover(content[name]) for name in ("callbacks", "metrics")}
    return {**content, **others, "model": model, "ranks": ranks}


def _candidates(session: Session, choice: str | os.PathLike[str], of_folder: str, option: str) -> Iterator[Path]:
    """Yield the checkpoints to read for a choice, until one of them can be read."""
    path = session.directory / choice
    if choice in ("best", "last"):
        if session.checkpoints is not None:
            yield from session.checkpoints.candidates(str(choice))
    elif not path.exists():
        words = '; it may also be "auto", "never", "new" or "best"' if option == "resume" else ""
        raise FileNotFoundError(f"{option}={str(choice)!r}: there is no such checkpoint or run folder{words}")
    elif (path / "checkpoints").is_dir():
        yield from candidates_of_run(path, of_folder, session.model.save_name)
    else:
        yield path


@harmless_errors()
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
    if not _loads_itself(model):
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
    with shared_groups(parts):
        for name in names:
            try:
                load_part(parts[name], state[name], parts, saved)
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
