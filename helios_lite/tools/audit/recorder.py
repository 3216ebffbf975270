"""The callback of a trial, which changes the program where it runs and records what happens."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from helios_lite.callbacks import Callback
from helios_lite.model_internals.attributes import named_networks, optimizers, stateful_parts
from helios_lite.model_internals.step_tap import Loss, StepTap
from helios_lite.nested import leaves
from helios_lite.state import TrainingState
from helios_lite.tools.audit.program_data import SampleReader, change_splits, describe_splits
from helios_lite.tools.audit.record import Facts, Record, SampleRead, Step, digest, place_not_finite
from helios_lite.tools.audit.trial import Trial
from helios_lite.tools.audit.watches import ModeWatch, OptimizerWatch, frozen_buffers

_HELD_OUT = 128  # Samples at most.


class Enough(Exception):
    """Raised in a hook to end a trial as a crash would."""


class Recorder(Callback):
    """Changes what a trial asks for, and records what happens; it must be the last callback.

    Args:
        trial: what to change and to record.
    """

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._facts: dict[str, Any] = {}
        self._steps: list[Step] = []
        self._first_step = 1
        self._batches: list[str] = []  # Of the present step, as the losses.
        self._losses: list[Loss] = []
        self._mean_losses: list[float] = []  # Of the steps.
        self._validations: list[dict[str, float]] = []
        self._reduced: dict[str, str] = {}
        self._samples: dict[str, SampleRead] = {}
        self._not_finite_batch = ""
        self._held_out: Any = None  # A batch of samples that are not trained on.
        self._held_out_losses: list[float] = []
        self._initial: list[tuple[Tensor, Tensor]] = []  # What is written back, and its values.
        self._modes = ModeWatch()
        self._frozen, self._moved = dict[str, str](), list[str]()
        self._optimizers = OptimizerWatch(trial.records_gradients)
        self._reader: SampleReader | None = None
        self._tap = StepTap(
            train_step=self._train_step,
            on_loss=self._losses.append,
            on_log=self._note_log,
            before_step=self._optimizers.note_step,
        )

    def record(self) -> Record:
        """Return what has been recorded."""
        return Record(
            facts=Facts(**self._facts, num_optimizers=self._optimizers.num_stepped()),
            steps=self._steps,
            first_step=self._first_step,
            validations=self._validations,
            reduced=self._reduced,
            samples=self._samples,
            parameters=self._optimizers.parameters(),
            modes=self._modes.modes,
            moved=self._moved,
            not_finite_batch=self._not_finite_batch,
            held_out=self._held_out_losses,
        )

    # Hooks.

    def setup(self, fast_init: bool = False) -> None:
        """Change the splits, and wrap what evaluations call."""
        data, options = self.datamodule, self.model.trainer
        self._facts.update(describe_splits(data, options.accumulation_steps), precision=options.precision)
        self._facts.update(accumulation_steps=options.accumulation_steps)
        if self._trial.holds_out:
            indices = range(len(data.train.dataset))[1 : 2 * _HELD_OUT : 2]
            self._held_out = (data.train.collate_fn or default_collate)([data.train.dataset[i] for i in indices])
        change_splits(data, self._trial)
        vars(self.model).update(valid_step=self._valid_step(self.model.valid_step))
        self._tap.attach(self.model)

    def on_training_start(self) -> None:
        """Begin to record."""
        model, trial = self.model, self._trial
        self._tap.watch_optimizers()
        networks = named_networks(model)
        self._optimizers.watch(networks, [*optimizers(stateful_parts(model)).values()])
        if trial.keeps_weights:
            values = [value for net in networks.values() for value in [*net.parameters(), *net.buffers()]]
            self._initial = [(value, value.detach().clone()) for value in values]
        if trial.watches_modes:
            self._modes.watch(networks)
            self._frozen = frozen_buffers(networks)
        if trial.reads_samples:
            self._reader = SampleReader(self.datamodule)
            self._samples = self._reader.read()
        scaler = model._context.precision.scaler
        if trial.loss_scale is not None and scaler is not None:
            scaler.scale(torch.zeros((), device=model.device))  # It makes its scale when it is first used.
            scaler.update(trial.loss_scale)

    def on_training_batch_start(self, state: TrainingState) -> None:
        """End the trial if it has enough steps."""
        if not self._steps:
            self._first_step = state.step + 1
        if self._trial.ends_after is not None and state.step >= self._trial.ends_after:
            raise Enough

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        """Record the step, if the batch has completed it."""
        if state.step < self._first_step + len(self._steps):
            return
        content = self.model.state_dict() if self._trial.records_bits else {}
        digests = {name: digest(leaf) for name, leaf in leaves(content)} if content else {}
        self._steps.append(Step(self._batches, [*self._losses], digests, *self._optimizers.take_step()))
        self._mean_losses.append(self._steps[-1].mean_loss())
        self._batches = []
        self._losses.clear()
        with torch.no_grad():
            for value, initial in self._initial:
                value.copy_(initial)
        ends_when = self._trial.ends_when
        if ends_when is not None and ends_when(self._mean_losses, self._held_out_losses):
            raise Enough

    def on_training_end(self) -> None:
        """Record what only the end shows."""
        if self._trial.watches_modes:
            after = frozen_buffers(named_networks(self.model))
            self._moved = [name for name, value in self._frozen.items() if after.get(name) != value]
        if self._reader is not None:
            self._reader.read_again(self._samples)

    def process_metrics(self, phase: str, metrics: dict[str, float]) -> dict[str, float]:
        """Record the metrics of a validation."""
        if phase == "valid":
            self._validations.append(dict(metrics))
        return {}

    # What the model calls.

    def _train_step(self, batch: Any, state: TrainingState) -> None:
        trial = self._trial
        if trial.records_bits:
            self._batches.append(digest(batch))
            if not self._not_finite_batch and (place := place_not_finite(batch)) is not None:
                self._not_finite_batch = f"{place} of the batch of step {state.step + 1}"
        if trial.is_evaluating:
            for net in named_networks(self.model).values():
                net.eval()
        if trial.holds_out and len(self._steps) % 8 == 0:
            losses = self._probe(self.model.batch_to_device(self._held_out, "train"), state)
            self._held_out_losses.append(sum(value for value, _ in losses) / max(1, len(losses)))
        if trial.repeats > 0:
            self._repeat(batch, state)
            return
        with self._modes.during("train"):
            self._tap.train_step(batch, state)

    def _repeat(self, batch: Any, state: TrainingState) -> None:
        """Call `train_step` several times without a change of weights; note whether it draws or uses its past."""
        states = _rng_states()
        repeated = [self._probe(batch, state) for _ in range(self._trial.repeats)]
        draws = _rng_states() != states
        carries = not draws and repeated[-1] != repeated[0]
        self._losses.extend(loss for losses in repeated for loss in losses)
        self._facts["num_losses"] = len(repeated[0])
        self._facts["draws_in_training"] = draws or self._facts.get("draws_in_training", False)
        self._facts["carries_state"] = carries or self._facts.get("carries_state", False)

    def _probe(self, batch: Any, state: TrainingState) -> list[Loss]:
        """Return the losses of a batch, and change nothing."""
        with self._tap.probing() as losses:
            self._tap.train_step(batch, state)
        return losses

    def _note_log(self, name: str, value: Any, reduce: Any) -> None:
        self._reduced[name] = reduce if isinstance(reduce, str) else ",".join(reduce)

    def _valid_step(self, original: Callable[[Any, int], None]) -> Callable[[Any, int], None]:
        def valid_step(batch: Any, step: int) -> None:
            states = _rng_states()
            with self._modes.during("valid"):
                original(batch, step)
            draws = _rng_states() != states
            self._facts["draws_in_validation"] = draws or self._facts.get("draws_in_validation", False)

        return valid_step


def _rng_states() -> tuple[Any, ...]:
    """Return the states of the global generators of torch, random and numpy, to be compared."""
    states = digest(torch.get_rng_state()), random.getstate()
    if "numpy" not in sys.modules:
        return states
    _, words, *rest = sys.modules["numpy"].random.get_state(legacy=True)
    return *states, digest(words), tuple(rest)
