"""A call of `replay`: one step of a run, computed again from the newest checkpoint before it."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import tempfile
from pathlib import Path
from typing import Any, Literal

from helios_lite.callbacks import Profile
from helios_lite.calls.launching import Call, run
from helios_lite.calls.replay_result import Replay
from helios_lite.calls.step_inspector import EarlierStepFound, Inspected, StepInspector
from helios_lite.checkpoints import naming
from helios_lite.metrics.rows import HIGHEST_LOSS, read_rows
from helios_lite.options import Options
from helios_lite.processes.signals import GracefulShutdown
from helios_lite.training.loop import Training
from helios_lite.training.session import Session, run_folder


def replay(call: Call, step: int | Literal["worst"]) -> Replay:
    """Compute one step of a run again; see `Trainer.replay`.

    Args:
        call: the call.
        step: the number of the step, from 1; or "worst".

    Raises:
        ValueError: the run ends before the step, or no row has a highest loss.
    """
    folder = run_folder(call.options, call.model, call.directory)
    recorded = [] if folder is None else read_rows(folder / "metrics.jsonl")
    after = None
    if step == "worst":
        _newest_before(call, 1)  # Raises if there is no run.
        after, step = _worst_row(recorded)
    checkpoint, started_at = _newest_before(call, step if after is None else after + 1)
    found: Replay | int = step
    with tempfile.TemporaryDirectory(prefix="helios_lite-") as scratch:
        while isinstance(found, int):
            inspector = StepInspector(found, started_at, call.options.check_finite, recorded, after is not None)
            after = None  # If this one finds the worst step, the next one shows it.
            options = _without_files(call.options, checkpoint, inspector)
            work = functools.partial(_inspect, step=found, inspector=inspector, scratch=Path(scratch))
            found = run(dataclasses.replace(call, options=options), work)
    return found


def _inspect(
    session: Session, shutdown: GracefulShutdown, *, step: int, inspector: StepInspector, scratch: Path
) -> Replay | int:
    """Train up to the step, and return what was seen of it, or the number of an earlier step that is the cause.

    Args:
        session: the session.
        shutdown: what stops it.
        step: the number of the step, from 1.
        inspector: what looks at it.
        scratch: the folder that the model sees as `root`, with a run folder in it in which hooks may write.
    """
    options = session.options
    folder = scratch / (options.run_name or session.model.save_name)
    folder.mkdir(parents=True, exist_ok=True)
    session.context.show_run(dataclasses.replace(options, root=scratch), folder)
    training = Training(session, shutdown)
    inspector.watch(training)
    try:
        training.run()
    except Inspected:
        pass
    except EarlierStepFound as found:
        return int(found.args[0])
    finally:
        inspector.unwrap()
    if inspector.result is None:
        raise ValueError(f"step={step}: the run ends after step {training.state.step}")
    return inspector.result


def _newest_before(call: Call, step: int) -> tuple[Path | None, int]:
    """Return the newest checkpoint of the run before a step, and its step; (None, 0) to begin at the start."""
    folder, name = run_folder(call.options, call.model, call.directory), call.model.save_name
    if folder is None or not folder.is_dir():
        raise FileNotFoundError(f"step={step}: there is no run to replay" + ("" if folder is None else f" in {folder}"))
    for path in naming.find(folder / "checkpoints", name):
        counters = naming.counters(path.name, name)
        if counters is not None and counters[0] < step:
            return path, counters[0]
    return None, 0


def _worst_row(rows: list[dict[str, Any]]) -> tuple[int, int]:
    """Return the steps of the row with the highest loss: the one after which it begins, and its last one."""
    found = [row for row in rows if HIGHEST_LOSS in row]
    if not found:
        raise ValueError(
            'step="worst": no row of the run has a highest loss; call self.log("loss", loss) in train_step, which rows '
            "have the mean and the maximum of"
        )
    highest = [math.inf if row[HIGHEST_LOSS] is None else row[HIGHEST_LOSS] for row in found]  # None was not finite.
    i = highest.index(max(highest))
    return (0 if i == 0 else found[i - 1]["step"]), found[i]["step"]


def _without_files(options: Options, checkpoint: Path | None, inspector: StepInspector) -> Options:
    """Return the options of a replay: those of the run, but it writes no files and prints nothing.

    The callbacks are copies, so that those of the trainer keep what they have, as the average of an EMA.
    """
    begins_elsewhere = options.resume not in ("auto", "never", "new", "best")
    start: str | Path = Path(options.resume) if begins_elsewhere else "never"
    return dataclasses.replace(
        options,
        root=None,
        resume=start if checkpoint is None else checkpoint,
        callbacks=[*(copy.copy(each) for each in options.callbacks if not isinstance(each, Profile)), inspector],
        log_level="quiet",
        progress=False,
        print_banner=False,
        verify_every_steps=None,
        hang_minutes=None,
        max_restarts=0,
    )
