"""A training with two ranks, one of which gets into trouble in a method of the user's: any method, any trouble."""

import dataclasses
import functools
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from helios_lite import Callback, DataModule, Model, Split
from helpers import troubled
from helpers.models import HOOKS, Indices, Tiny, quiet
from helpers.processes import SLOWNESS, alive

SECONDS = 10.0 * SLOWNESS
Class = TypeVar("Class", bound=type)


def abort() -> None:
    os.abort()


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


DEAD = r"rank {rank} was killed by SIG%s \(exit status -%d\)"
GONE = r"rank {rank} ended without an exception \(exit status %d\)"

TROUBLES: dict[str, tuple[Callable[[], None], type[BaseException] | tuple[type[BaseException], ...], str]] = {
    "fail": (troubled.fail, ValueError, "enough of this"),
    "leave": (troubled.leave, SystemExit, "0"),
    "vanish": (troubled.vanish, RuntimeError, GONE % 3),
    "vanish_as_if_done": (troubled.vanish_as_if_done, RuntimeError, GONE % 0),
    "die": (troubled.die, RuntimeError, DEAD % ("KILL", 9)),
    "abort": (abort, RuntimeError, DEAD % ("ABRT", 6)),
    "stop": (stop, RuntimeError, r"rank {rank} was stopped by a signal \(SIGSTOP\) for 5 seconds"),
    # In the loop it saves first, elsewhere the process dies.
    "terminate": (troubled.terminate, (SystemExit, RuntimeError), rf"143|{DEAD % ('TERM', 15)}"),
}
"""By name: what a rank does, and the exception that reaches the caller."""

# Methods of Model that a user calls; the others are called by the trainer, and may be overridden.
FOR_CALLERS = {
    "parallelize", "autocast", "backward", "optimizer_step", "log", "gather", "num_parameters",
    "load_from_checkpoint", "trained_state_dict", "request_stop", "request_save", "request_validation",
}  # fmt: skip

FOR_LOADERS = {"count_samples"}  # Of users; a Split knows it.

HOOKS_WITHOUT_ERROR = [hook for hook in HOOKS if hook != "on_exception"]

METHODS = {
    "AttackedModel": [
        *HOOKS_WITHOUT_ERROR,
        *(
            name
            for name, method in vars(Model).items()
            if callable(method) and not name.startswith("_") and name not in {*FOR_CALLERS, *HOOKS, *FOR_LOADERS}
        ),
    ],
    "AttackedData": ["setup", "teardown"],  # `prepare_data` runs before there are ranks.
    "AttackedDataset": ["__len__", "__getitem__"],
    "AttackedLogger": ["log_config", "log_metrics", "close"],
    "AttackedCallback": [*HOOKS_WITHOUT_ERROR, "state_dict", "load_state_dict"],
}
"""The methods that the trainer calls, by class."""

ON_RANK_0 = {"append_to_banner", "append_metadata_to_chkpt_name", "summary", *METHODS["AttackedLogger"]}
"""Methods that are called on rank 0 only."""

PLACES = [f"{kind}.{name}" for kind, names in METHODS.items() for name in names]


@dataclasses.dataclass(frozen=True)
class Attack:
    """What happens where; in the launching process nothing does.

    Attributes:
        place: a class and a method, as in `PLACES`.
        trouble: as in `TROUBLES`.
        rank: the rank that gets into trouble.
        folder: where it notes that it does.
    """

    place: str
    trouble: str
    rank: int
    folder: Path

    def meet(self, place: str) -> None:
        if place == self.place and os.environ.get("RANK") == str(self.rank):
            (self.folder / "trouble").touch()
            TROUBLES[self.trouble][0]()


def attackable(kind: Class) -> Class:
    """Let every method of a class that the trainer calls meet the attack first."""

    def wrap(method: Callable[..., Any], place: str) -> Callable[..., Any]:
        @functools.wraps(method)
        def meet_and_call(self: Any, *arguments: Any, **keywords: Any) -> Any:
            self.attack.meet(place)
            return method(self, *arguments, **keywords)

        return meet_and_call

    for name in METHODS[kind.__name__]:
        setattr(kind, name, wrap(getattr(kind, name), f"{kind.__name__}.{name}"))
    return kind


@attackable
class AttackedModel(Tiny):
    def __init__(self, attack: Attack) -> None:
        super().__init__()
        self.attack = attack

    def test_step(self, batch: Any, step: int) -> None:
        self.valid_step(batch, step)

    def predict_step(self, batch: Any, step: int) -> Any:
        return self.net(batch[1])


@attackable
class AttackedDataset(Indices):
    def __init__(self, length: int, attack: Attack) -> None:
        super().__init__(length)
        self.attack = attack


@attackable
class AttackedData(DataModule):
    def __init__(self, attack: Attack, num_workers: int) -> None:
        def split(length: int) -> Split:
            return Split(AttackedDataset(length, attack), batch_size=2, num_workers=num_workers)

        super().__init__(split(12), split(4), split(4))
        self.attack = attack


@attackable
class AttackedCallback(Callback):
    def __init__(self, attack: Attack) -> None:
        self.attack = attack


@attackable
class AttackedLogger:
    def __init__(self, attack: Attack) -> None:
        self.attack = attack

    def log_config(self, config: Mapping[str, Any]) -> None:
        pass

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def close(self) -> None:
        pass


def run(attack: Attack, *, num_workers: int = 0, **options: Any) -> None:
    """Train; or test or predict, where the place of the attack belongs to that."""
    shows = attack.place.endswith((".append_to_banner", ".summary"))
    options |= {"callbacks": [AttackedCallback(attack)], "loggers": [AttackedLogger(attack)], "print_banner": shows}
    options |= {"accelerator": "cpu", "log_every_steps": 1, "save_every_steps": 1}
    trainer = quiet(root=attack.folder, max_epochs=2, **options)
    model, datamodule = AttackedModel(attack), AttackedData(attack, num_workers)
    if "test" in attack.place:
        trainer.test(model, datamodule)
    elif "predict" in attack.place:
        list(trainer.predict(model, datamodule))
    else:
        trainer.fit(model, datamodule)


def prepare(folder: Path) -> None:
    """Leave a checkpoint after one step, so that an attacked training resumes."""
    folder.mkdir()
    run(Attack("", "", -1, folder), max_steps=1)


def verdict(place: str, trouble: str, rank: int, folder: Path, prepared: Path, num_workers: int = 0) -> str:
    """Attack a training; return what is wrong with its end, "" if nothing is.

    Args:
        place, trouble, rank: see `Attack`.
        folder: a new one for this training.
        prepared: what `prepare` has left.
        num_workers: of each rank.
    """
    if place.endswith("load_for_testing"):  # Called if there is no checkpoint.
        folder.mkdir()
    else:
        shutil.copytree(prepared, folder)
    error: BaseException | None = None
    try:
        run(Attack(place, trouble, rank, folder), num_workers=num_workers, devices=2)
    except BaseException as caught:
        error = caught
    ended = time.time()
    note = folder / "trouble"
    if not note.exists():
        return f"there was no trouble, but {error!r}"
    _, kind, message = TROUBLES[trouble]
    if not isinstance(error, kind) or re.search(message.format(rank=rank), str(error)) is None:
        return f"{error!r} instead of {kind} {message.format(rank=rank)}"
    if (seconds := ended - note.stat().st_mtime) > SECONDS:
        return f"it took {seconds:.1f} seconds"
    while (left := alive()) and time.time() < ended + 2:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return f"processes were left: {left}" if left else ""
