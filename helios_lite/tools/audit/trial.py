"""What one training of an audit changes in the program, where the program comes from, and what an audit says of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from helios_lite.config import load
from helios_lite.data import DataModule
from helios_lite.model import Model
from helios_lite.trainer import Trainer

EPOCH_STEPS = 4
"""The steps of an epoch of a trial, so that a few steps pass the end of an epoch."""
WITHOUT_VALIDATION: Mapping[str, Any] = {"valid_every_epochs": None, "monitor": None, "sanity_batches": 0}
"""Options of a trial that only trains."""
WITHOUT_WORKERS: Mapping[str, Any] = {"num_workers": 0}
"""Values of a Split that is read in the process of the training."""
Program = tuple[Trainer, Model, DataModule]


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a program comes from; `make` returns it anew.

    Attributes:
        origin: a function without arguments that returns (Trainer, Model, DataModule), or the path of a file, see
            `helios_lite.config.load`.
        overrides: values that replace those of the file.
    """

    origin: Callable[[], Program] | Path
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def make(self) -> Program:
        """Return a trainer, a model and the data, which no run has used."""
        return load(self.origin, self.overrides) if isinstance(self.origin, Path) else self.origin()


@dataclasses.dataclass(frozen=True)
class Trial:
    """What is changed in the program, and what is recorded.

    Attributes:
        steps: the number of steps.
        options: options of the trainer that replace those of all trials.
        train, valid: values that replace those of the train Split, and of each validation Split.
        train_samples, valid_samples: use this many samples from the start of a map-style dataset; None for all.
        holds_out: train on every other sample only, and record the loss of some of the samples that are left out.
        is_evaluating: whether the networks are in evaluation mode in `train_step`: then dropout does nothing, and batch
            normalization uses its running statistics, so that no sample should look at another.
        keeps_weights: whether the networks get their weights back after every step, so that the gradients of all steps
            belong to the same weights.
        starts_from: a file with the weights of the networks to begin with, which a trial with `saves_weights` has left.
        saves_weights: whether to leave the weights after the last step in a file, see `Record.weights`.
        repeats: how often each `train_step` is called with its batch, while no weight changes; 0 trains as usual.
        records_bits: whether digests of batches and of the state are recorded, to compare them bit for bit, and where a
            batch is not finite.
        records_gradients: whether the gradients are recorded.
        reads_samples: whether samples are read before and after the training, and looked at.
        watches: whether what steps call is watched: modes of modules, losses and what they get, random numbers, tensors
            that stay alive.
        looks_for_couplings: whether to look for what couples the samples of a batch, with `repeats`.
        stirs_weights: whether to add random numbers to all weights after every step, of their own size and then of 4
            and 16 times that, so that a validation after it is one of other outputs.
        changes_targets: whether integers of a batch are changed one by one, to see which scores of a loss change with
            the target that they belong to.
        keeps_length: whether the training has the length that the program has planned.
        holds_rate: whether learning rates stay as they are from the middle of the planned training on. A schedule never
            moves beyond its planned end, where it may raise an error.
        loss_scale: the scale of fp16 at the start; None for the usual one.
        ends_after: raise `Enough` at the first batch after this step; None trains to the end of `steps`.
        ends_when: a function of a module that is given the mean losses of the steps so far, and those of the samples
            that are left out: the trial ends after the first step for which it returns True.
        processes: the number of processes.
        changes_hash_seed: start a new interpreter, whose hashes of strings differ.
        loads_checkpoint: build the model with `load_from_checkpoint` from the newest checkpoint of an earlier trial in
            the same folder, and only validate it.
    """

    steps: int = 10
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    train: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    valid: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    train_samples: int | None = None
    holds_out: bool = False
    valid_samples: int | None = None
    is_evaluating: bool = False
    keeps_weights: bool = False
    starts_from: str = ""
    saves_weights: bool = False
    repeats: int = 0
    records_bits: bool = False
    records_gradients: bool = False
    reads_samples: bool = False
    watches: bool = False
    looks_for_couplings: bool = False
    stirs_weights: bool = False
    changes_targets: bool = False
    keeps_length: bool = False
    holds_rate: bool = False
    loss_scale: float | None = None
    ends_after: int | None = None
    ends_when: Callable[[Sequence[float], Sequence[float]], bool] | None = None
    processes: int = 1
    changes_hash_seed: bool = False
    loads_checkpoint: bool = False


@dataclasses.dataclass(frozen=True)
class Finding:
    """Whether a relation holds for a program.

    Attributes:
        relation: the name of the relation.
        result: "holds", "breaks", "by intention" for a break that was accepted by name, or "not applicable".
        text: what was compared; for a break what differs first; why the relation is not applicable.
        causes: what usually causes a break; empty if there is none, or if another relation has named it.
        same_as: of a break: the relation before it that breaks of the same cause, most likely; empty if there is none.
    """

    relation: str
    result: Literal["holds", "breaks", "by intention", "not applicable"]
    text: str
    causes: str = ""
    same_as: str = ""


class Break(Exception):
    """A relation does not hold; the message says what differs first."""


class NotApplicable(Exception):
    """A relation cannot be judged for a program; the message says why."""


class ProgramError(RuntimeError):
    """The program itself fails, so that nothing can be said of it.

    Attributes:
        traceback: the traceback of its error as text; empty if there is none.
    """

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback
