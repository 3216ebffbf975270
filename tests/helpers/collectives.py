"""Records the collectives of a rank with their places, so that those of several ranks can be compared.

The ranks of a run must call the same collectives in the same order. A decision that each of them makes by something of
its own, such as its clock or a file, breaks this only when the ranks happen to differ: here they always do.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch.distributed as dist

import helios_lite
from helios_lite import Callback
from helios_lite.callbacks import EMA
from helios_lite.processes.world import World
from helios_lite.training import clock, training_log
from helpers.fuzzing import CutError, Fuzzed, make_case, make_data
from helpers.models import quiet

NAMES = ("all_reduce", "broadcast", "all_gather_object", "gather_object", "broadcast_object_list")
PACKAGE = str(Path(helios_lite.__file__).parent)


class Collectives:
    """A context in which the collectives of this process are recorded.

    Attributes:
        calls: each with the functions of the package that have led to it, innermost first.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._functions: dict[str, Any] = {}

    def __enter__(self) -> Self:
        for name in NAMES:
            self._functions[name] = getattr(dist, name)
            setattr(dist, name, functools.partial(self._call, name))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for name, function in self._functions.items():
            setattr(dist, name, function)

    def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        places = [f"{frame.f_code.co_name}:{frame.f_lineno}" for frame in _frames() if _is_ours(frame)]
        self.calls.append(" < ".join([name, *places]))
        return self._functions[name](*arguments, **options)


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(PACKAGE)


class OwnTime:
    """Stands in for the module `time`: a clock that runs at a speed of its own, and jumps at times."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._speed, self._ahead = chance.uniform(0.1, 30), chance.uniform(0, 1000)

    def monotonic(self) -> float:
        """Return the time."""
        if self._chance.random() < 0.02:
            self._ahead += self._chance.uniform(0, 5)
        return self._ahead + self._speed * time.monotonic()


class Signalled(Callback):
    """Sends this rank a signal after a step."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        if state.step == self.step:
            os.kill(os.getpid(), self.number)


def run_case(seed: int, number: int, root: Path, world: World) -> None:
    """Start a random run, end it by a limit or a signal to one rank, and let it go on to its end.

    What a case has of options, data and model is that of the random cuts, with limits by time, which the ranks measure
    differently.
    """
    case = make_case(seed, number, kills=False, workers=False)
    shared, own = random.Random(f"{seed}/{number}"), random.Random(f"{seed}/{number}/{world.rank}")
    options = {**case.options, "precision": "fp32", "accelerator": "cpu", "hang_minutes": 1}
    options["save_every_minutes"] = shared.choice([None, 0.01, 0.1])
    options["max_minutes"] = shared.choice([None, 0.5])
    data = {**case.data, "kind": "shuffle", "drop_last": False, "length": max(case.data["length"], 2 * world.size)}
    signalled = shared.randrange(world.size), shared.randint(1, 8)
    times = clock.time, training_log.time
    clock.time = training_log.time = OwnTime(own)  # type: ignore[misc]
    try:
        for number_of_start, how in enumerate([shared.choice(["limit", "SIGTERM", "SIGUSR1"]), "end"]):
            limits = {"max_steps": shared.randint(1, 6)} if how == "limit" else {}
            # Ranks have validations of different lengths, in which the model would log other names.
            parts = {**case.model, "batch_norm": False, "score": None}
            model = Fuzzed(root / f"indices-{world.rank}-{number_of_start}", 500, **parts)
            callbacks: list[Callback] = [EMA(0.8)] if case.ema else []
            if how.startswith("SIG") and signalled[0] == world.rank:
                callbacks.append(Signalled(getattr(signal, how), signalled[1]))
            trainer = quiet(root=root, callbacks=callbacks, **{**options, **limits})
            model.in_training = True
            try:
                trainer.fit(model, make_data(**data, num_workers=0, left=None))
            except (SystemExit, CutError):
                continue
    finally:
        clock.time, training_log.time = times


def first_difference(seed: int, numbers: range, root: Path, world: World) -> list[str]:
    """Run cases, and return for each in which ranks differ the first collective that does. Call on every rank."""
    found = []
    for number in numbers:
        folder = root / f"case-{number}"
        if world.is_main:
            folder.mkdir(parents=True)
        world.barrier()
        with Collectives() as collectives:
            run_case(seed, number, folder, world)
        by_rank = world.gather(collectives.calls)
        if (text := where_they_part(by_rank)) is not None:
            found.append(f"case {number}, {text}")
    return found


def where_they_part(by_rank: Sequence[Sequence[str]]) -> str | None:
    """Return the first collective that the ranks do not call alike, None if they call all of them alike."""
    for i, calls in enumerate(itertools.zip_longest(*by_rank, fillvalue="nothing")):
        if len({*calls}) > 1:
            return f"collective {i}: {' | '.join(calls)}"
    return None if len(by_rank[0]) >= 10 else f"only {len(by_rank[0])} collectives"
