"""The options of a Trainer and their checks. Standard library only: an option is judged before anything runs."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from helios_lite.hooks import Callback
from helios_lite.loggers import Logger


@dataclasses.dataclass(kw_only=True)
class Options:
    """The configuration of a run: plain values, checked when they are given.

    Run
        run_name: folder of the run below `root`; the model's `save_name` if None.
        root: folder of all runs; None writes no file at all (sweeps, tests).
        resume: "auto" continues from the newest valid checkpoint of the run folder, if there is one; "never"
            refuses a folder that has checkpoints; a path continues from that file.
        seed: of everything random: weights, order of the data, augmentation, dropout.
        deterministic: ask PyTorch for deterministic algorithms only (slower on a GPU; an error where there is none).
        benchmark: let cuDNN try out its algorithms (faster for fixed shapes, not reproducible).
        fast_dev_run: one update, one validation batch and one test batch, no file written: does it run at all?

    Length: at least one; the first that is reached ends the run
        max_epochs, max_steps (optimizer updates), max_minutes (of training, over all resumes).

    Placement
        accelerator: "auto" (CUDA, then MPS, then CPU), "cpu", "cuda" or "mps".
        devices: how many, their numbers, or "auto" (every GPU); one process for each is started on this machine. A
            process that torchrun has started joins the others instead, on any number of machines.
        strategy: "ddp" (every process has the whole network) or "fsdp" (it is sharded over them).
        max_restarts: how often all processes are started again after one failed, to go on from the newest checkpoint.

    Numerics
        precision: "fp32", "bf16" or "fp16" (autocast; the weights stay fp32). With "fp16" losses are scaled; an update
            whose gradients are not finite is left out: weights, scheduler and `state.step` stay what they were.
        compile: compile the networks that pass through `Model.parallelize`.
        accumulation_steps: micro-batches per update; an epoch's last window may be shorter and is averaged as such.
        clip_norm: largest 2-norm of the gradients of one optimizer; None does not clip. Both work in `Model.backward`
            and `Model.optimizer_step`; a model that calls `loss.backward()` itself does without.
        check_finite: a logged training value that is NaN or infinite ends the run with a FloatingPointError
            that names it and its step, before anything poisoned is saved.

    Validation
        valid_every_epochs: whole epochs between validations, or a fraction (0.25 = four times an epoch); None: never.
        valid_every_steps: updates between validations, besides the former; None: never.
        sanity_batches: validation batches run before a new training starts, to fail early.

    Best and early stop
        monitor: the validation metric that says which checkpoint is best; of several names, the sum.
        mode: "min" or "max".
        patience: validations in a row without improvement after which the run ends; None: never.
        min_delta: an improvement must be larger than this.

    Checkpoints
        save_every_epochs, save_every_steps, save_every_minutes: any of them; the last state is saved in any case.
        keep_last: newest files kept (-1: all; 0: periodic saves are left out, only best and final states are saved).
        keep_best: best files kept, judged by `monitor` (-1: all that were validated; 0: none).
        async_save: write in the background, from a copy in CPU memory; an error in it surfaces at the next save or
            at the end.

    Sight
        log_every_steps: updates between two rows of training metrics; the end of an epoch has a row as well.
        log_grad_norm: at log points, the 2-norm of each optimizer's gradients before clipping (True), and of those of
            every parameter ("per-parameter"). Measured in `Model.optimizer_step`.
        log_param_norm: the same for the values of all parameters that are trained, after the update.
        loggers: objects of the protocol `helios_lite.loggers.Logger`.
        callbacks: `helios_lite.Callback` objects, called after the model's hooks in this order.
        progress: progress bars, if stderr is a terminal.
        print_banner: banner, parameter table and final table.

    Raises:
        TypeError, ValueError: an option has a wrong type or value; the message begins with its name.
    """

    run_name: str | None = None
    root: str | os.PathLike[str] | None = "runs"
    resume: Literal["auto", "never"] | os.PathLike[str] | str = "auto"
    seed: int = 0
    deterministic: bool = False
    benchmark: bool = False
    fast_dev_run: bool = False

    max_epochs: int | None = None
    max_steps: int | None = None
    max_minutes: float | None = None

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int | list[int] | Literal["auto"] = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    max_restarts: int = 0

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    accumulation_steps: int = 1
    clip_norm: float | None = None
    check_finite: bool = True

    valid_every_epochs: float | None = 1
    valid_every_steps: int | None = None
    sanity_batches: int = 1

    monitor: str | Sequence[str] | None = None
    mode: Literal["min", "max"] = "min"
    patience: int | None = None
    min_delta: float = 0.0

    save_every_epochs: int | None = 1
    save_every_steps: int | None = None
    save_every_minutes: float | None = None
    keep_last: int = 1
    keep_best: int = 1
    async_save: bool = True

    log_every_steps: int = 50
    log_grad_norm: bool | Literal["per-parameter"] = False
    log_param_norm: bool | Literal["per-parameter"] = False
    loggers: list[Logger] | tuple[Logger, ...] = ()
    callbacks: list[Callback] | tuple[Callback, ...] = ()
    progress: bool = True
    print_banner: bool = True

    def __post_init__(self) -> None:
        flags = "deterministic benchmark fast_dev_run compile check_finite async_save progress print_banner"
        for name in flags.split():
            self._type(name, bool, "True or False")

        self._type("run_name", str | None, "a str or None")
        self._reject("run_name", self.run_name == "", "must not be empty")
        self._type("root", str | os.PathLike | None, "a path or None")
        self._type("resume", str | os.PathLike, '"auto", "never" or a path')
        self._reject("resume", self.resume == "", "must not be empty")
        self._integer("seed", least=0)
        self._reject("seed", self.seed >= 2**64, "must be below 2**64")

        self._integer("max_epochs", least=1, optional=True)
        self._integer("max_steps", least=1, optional=True)
        self._number("max_minutes", optional=True)
        if not self.fast_dev_run and self.max_epochs is self.max_steps is self.max_minutes is None:
            raise ValueError("max_epochs, max_steps, max_minutes: at least one is needed")

        self._choice("accelerator", "auto", "cpu", "cuda", "mps")
        self._devices()
        self._choice("strategy", "ddp", "fsdp")
        self._integer("max_restarts", least=0)
        self._choice("precision", "fp32", "bf16", "fp16")
        self._integer("accumulation_steps", least=1)
        self._number("clip_norm", optional=True)

        self._number("valid_every_epochs", optional=True)
        every = self.valid_every_epochs
        self._reject("valid_every_epochs", (every or 0) > 1 and every != int(every or 0), "must be whole or below 1")
        self._integer("valid_every_steps", least=1, optional=True)
        self._integer("sanity_batches", least=0)

        self._type("monitor", str | Sequence | None, "a name or a list of names")
        names = [self.monitor] if self.monitor is None or isinstance(self.monitor, str) else self.monitor
        if not all(name is None or isinstance(name, str) for name in names):
            raise TypeError(f"monitor={self.monitor!r}: must be a name or a list of names")
        self._reject("monitor", len(names) == 0 or "" in names, "must not be empty")
        self._choice("mode", "min", "max")
        self._integer("patience", least=1, optional=True)
        self._number("min_delta", zero=True)

        self._integer("save_every_epochs", least=1, optional=True)
        self._integer("save_every_steps", least=1, optional=True)
        self._number("save_every_minutes", optional=True)
        self._integer("keep_last", least=-1)
        self._integer("keep_best", least=-1)

        self._integer("log_every_steps", least=1)
        for name in ("log_grad_norm", "log_param_norm"):
            what = 'True, False or "per-parameter"'
            self._type(name, bool | str, what)
            self._reject(name, getattr(self, name) not in (True, False, "per-parameter"), f"must be {what}")
        for name, kind in (("loggers", Logger), ("callbacks", Callback)):
            self._type(name, list | tuple, f"a list of {kind.__name__} objects")
            for item in getattr(self, name):
                if isinstance(item, type) or not isinstance(item, kind):
                    raise TypeError(f"{name}={getattr(self, name)!r}: must be a list of {kind.__name__} objects")

    def config(self) -> dict[str, Any]:
        """Return every option as plain data (numbers, strings, lists); an object is told by its class's name."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(Options)}

    def _type(self, name: str, kind: Any, what: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, kind):
            raise TypeError(f"{name}={value!r}: must be {what}")

    def _reject(self, name: str, condition: bool, what: str) -> None:
        if condition:
            raise ValueError(f"{name}={getattr(self, name)!r}: {what}")

    def _integer(self, name: str, *, least: int, optional: bool = False) -> None:
        value = getattr(self, name)
        if optional and value is None:
            return
        self._type(name, int, "an int")
        if isinstance(value, bool):
            raise TypeError(f"{name}={value!r}: must be an int")
        self._reject(name, value < least, f"must be at least {least}")

    def _number(self, name: str, *, zero: bool = False, optional: bool = False) -> None:
        value = getattr(self, name)
        if optional and value is None:
            return
        self._type(name, int | float, "a number")
        if isinstance(value, bool):
            raise TypeError(f"{name}={value!r}: must be a number")
        self._reject(name, not 0 <= value < math.inf, "must be finite and positive" + (" or 0" if zero else ""))
        self._reject(name, value == 0 and not zero, "must be positive")

    def _devices(self) -> None:
        if isinstance(self.devices, list | tuple):
            numbers = list(self.devices)
            if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
                raise TypeError(f'devices={self.devices!r}: must be a number, a list of numbers or "auto"')
            bad = not numbers or len(set(numbers)) < len(numbers) or min(numbers) < 0
            self._reject("devices", bad, "must name different devices, from 0")
        elif isinstance(self.devices, str):
            self._reject("devices", self.devices != "auto", 'must be a number, a list of numbers or "auto"')
        else:
            self._integer("devices", least=1)

    def _choice(self, name: str, *choices: str) -> None:
        listed = f"one of {', '.join(choices)}"
        self._type(name, str, listed)
        self._reject(name, getattr(self, name) not in choices, f"must be {listed}")


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):  # A numpy number is a float, but no checkpoint could hold it.
            return kind.__str__(value) if kind is str else kind(value)
    if isinstance(value, os.PathLike):
        return str(Path(value))
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return type(value).__name__
