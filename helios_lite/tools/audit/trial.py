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
        origin: a function without arguments that returns (Trainer, Model, DataModule), or the path of a TOML file.
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
        keeps_weights: whether the networks get their initial weights back after every step, so that the gradients of
            all steps belong to the same weights.
        repeats: how often each `train_step` is called with its batch, while no weight changes; 0 trains as usual.
        records_bits: whether digests of batches and of the state are recorded, to compare them bit for bit, and where a
            batch is not finite.
        records_gradients, reads_samples, watches_modes: what is recorded beside the losses.
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
    repeats: int = 0
    records_bits: bool = False
    records_gradients: bool = False
    reads_samples: bool = False
    watches_modes: bool = False
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
        result: "holds", "breaks" or "not applicable".
        text: what was compared; for a break what differs first; why the relation is not applicable.
        causes: what usually causes a break; empty if there is none.
    """

    relation: str
    result: Literal["holds", "breaks", "not applicable"]
    text: str
    causes: str = ""


class Break(Exception):
    """A relation does not hold; the message says what differs first."""


class NotApplicable(Exception):
    """A relation cannot be judged for a program; the message says why."""
