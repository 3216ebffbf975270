"""A call of `replay`: one update of a run, computed again from the newest checkpoint before it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from helios_lite.calls.launching import describe_call, prepare_data, single_call
from helios_lite.calls.replay_result import Replay
from helios_lite.calls.update_inspector import EarlierUpdateFound, Inspected, UpdateInspector
from helios_lite.checkpoints import naming
from helios_lite.data import DataModule
from helios_lite.model import Model
from helios_lite.options import Options
from helios_lite.processes.launch import launch
from helios_lite.processes.signals import GracefulShutdown
from helios_lite.training.loop import Training
from helios_lite.training.session import open_session, run_folder


def replay(options: Options, model: Model, datamodule: DataModule, step: int, processes: int) -> Replay:
    """Compute one update of a run again; see `Trainer.replay`.

    Args:
        options: the trainer.
        model: the model.
        datamodule: its data.
        step: the number of the update, from 1.
        processes: the number of processes to launch; 1 replays in this process.
    """
    checkpoint, started_at = _newest_before(options, model, step)
    if processes == 1:
        return replay_here(options, model, datamodule, step, checkpoint, started_at)
    with single_call(describe_call("replay", options, model)):
        arguments = {
            "options": options,
            "model": model,
            "datamodule": datamodule,
            "step": step,
            "checkpoint": checkpoint,
            "started_at": started_at,
            "is_worker": True,
        }
        return launch(
            replay_here,
            arguments,
            before_start=lambda: prepare_data(datamodule),
            processes=processes,
            max_restarts=0,
        )


def _newest_before(options: Options, model: Model, step: int) -> tuple[Path | None, int]:
    """Return the newest checkpoint of the run before an update, and its step; (None, 0) to begin at the start."""
    folder = run_folder(options, model)
    if folder is None or not folder.is_dir():
        raise FileNotFoundError(f"step={step}: there is no run to replay" + ("" if folder is None else f" in {folder}"))
    for path in naming.find(folder / "checkpoints", model.save_name):
        counters = naming.counters(path.name, model.save_name)
        if counters is not None and counters[0] < step:
            return path, counters[0]
    return None, 0


def replay_here(
    options: Options,
    model: Model,
    datamodule: DataModule,
    step: int,
    checkpoint: Path | None,
    started_at: int,
    is_worker: bool = False,
) -> Replay:
    """Replay in this process. Call on every rank.

    Args:
        options, model, datamodule, step: as for `replay`.
        checkpoint: the checkpoint from which to go on, None to begin at the start.
        started_at: its step.
        is_worker: whether the trainer has launched this process.

    Raises:
        ValueError: the run ends before the update.
    """
    inspector = UpdateInspector(step, started_at, options.check_finite)
    changed = _without_files(options, checkpoint, inspector)
    shutdown = GracefulShutdown(ignore_further_signals=is_worker)
    earlier: int | None = None
    with (
        single_call(describe_call("replay", options, model)),
        open_session(changed, model, datamodule, is_training=True, data_is_prepared=is_worker) as session,
    ):
        training = Training(session, shutdown)
        inspector.watch(training)
        try:
            training.run()
        except Inspected:
            pass
        except EarlierUpdateFound as found:
            earlier = int(found.args[0])
        finally:
            inspector.unwrap()
    if earlier is not None:
        return replay_here(options, model, datamodule, earlier, checkpoint, started_at, is_worker)
    if inspector.result is None:
        raise ValueError(f"step={step}: the run ends after update {training.state.step}")
    return inspector.result


def _without_files(options: Options, checkpoint: Path | None, inspector: UpdateInspector) -> Options:
    """Return the options of a replay: those of the run, but it writes no files, calls no loggers and prints nothing."""
    begins_elsewhere = options.resume not in ("auto", "never", "best")
    start: str | Path = Path(options.resume) if begins_elsewhere else "never"
    return dataclasses.replace(
        options,
        root=None,
        resume=start if checkpoint is None else checkpoint,
        callbacks=[*options.callbacks, inspector],
        loggers=[],
        log_level="quiet",
        progress=False,
        print_banner=False,
        hang_minutes=None,
    )
