"""What a training is going to do, as far as it is known before the first step; and whether its schedules fit."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import SWALR

from helios_lite.display.plan import LearningRates, Plan
from helios_lite.hooks import Hooks
from helios_lite.loading.planned_steps import PlannedSteps
from helios_lite.loading.train_data import TrainData
from helios_lite.model_internals.attributes import optimizers, stateful_parts
from helios_lite.nested import leaves
from helios_lite.options import Options
from helios_lite.planning.due import save_steps, validation_steps
from helios_lite.planning.schedule_reading import Schedule, copied_optimizer, schedules_of
from helios_lite.state import TrainingState

logger = logging.getLogger("helios_lite")
_FEWEST = 3  # Steps, after which it is seen how often a scheduler is stepped; and epochs, for which one is made.


class Planning:
    """Reads the plan of a training, after `Model.setup` and before a checkpoint is loaded.

    Args:
        model: the model, set up.
        options: the trainer.
        planned: the planned number of steps.
        train_data: the batches of an epoch.
        saves: whether the run has a folder for checkpoints.
    """

    def __init__(
        self, model: Hooks, options: Options, planned: PlannedSteps, train_data: TrainData, *, saves: bool
    ) -> None:
        self._model, self._options, self._planned, self._train_data = model, options, planned, train_data
        self._saves = saves
        parts = list(stateful_parts(model))
        self._schedules = schedules_of(parts)
        self._rates = {
            name: max((float(group["lr"]) for group in part.param_groups), default=0.0)
            for name, part in optimizers(parts).items()
            if all(_has_rate(group) for group in part.param_groups)
        }
        self._unknown = [each for each in itertools.chain(*self._schedules.values()) if not each.is_of_package]
        self._start, self._counts = (0, 0), self._steps_of_schedulers()

    def plan(self, state: TrainingState, *, validates: bool, start: str = "", changes: Sequence[str] = ()) -> Plan:
        """Return the plan.

        Args:
            state: the counters at the start.
            validates: whether the run validates.
            start: what the start does.
            changes: what a run that continues does otherwise than before.
        """
        options, planned, saves = self._options, self._planned, self._saves
        total, per_epoch, epochs = planned.known_total(), planned.per_epoch(), planned.epoch_ends()
        misfits = self._misfits(total)
        return Plan(
            steps=total,
            steps_per_epoch=per_epoch,
            max_epochs=options.max_epochs,
            max_minutes=options.max_minutes,
            samples_per_step=planned.samples_per_step(),
            epoch=epochs[0],
            validations=validation_steps(
                options, per_epoch, total, epochs, state.step, self._train_data.batches_per_epoch()
            )
            if validates and total
            else [],
            saves=save_steps(options, per_epoch, total, epochs, state.step) if saves and total else [],
            is_known=total is not None,
            save_every_minutes=options.save_every_minutes if saves else None,
            rates={name: self._learning_rates(name, total, state) for name in self._rates},
            warnings=list(misfits.values()),
            start=start,
            changes=changes,
        )

    def start(self, state: TrainingState) -> None:
        """Note where training begins, after a checkpoint has been loaded."""
        self._start = (state.step, state.epoch)
        self._counts = self._steps_of_schedulers()

    def look(self, state: TrainingState, *, ends_epoch: bool) -> None:
        """Say what is wrong with schedules once it is seen how often they are stepped. Called on rank 0.

        Args:
            state: the counters; at the end of an epoch they do not count it yet.
            ends_epoch: whether the epoch has ended.
        """
        steps, epochs = state.step - self._start[0], state.epoch + ends_epoch - self._start[1]
        max_epochs = self._options.max_epochs
        if ends_epoch and steps > 0:
            self._warn_of_unused(is_last=max_epochs == state.epoch + 1, epochs=epochs)
        if steps < _FEWEST or not self._unknown:
            return
        total = self._planned.known_total()
        counts = self._steps_of_schedulers()
        for schedule in [each for each in self._unknown if each.name in counts]:
            number = counts[schedule.name] - self._counts.get(schedule.name, 0)
            text = None
            if number == steps and number != epochs:
                text = None if total is None else schedule.misfit(total)
                way = "once per step; call step() in on_training_epoch_end for once per epoch, or make it for "
                way += f"{total} steps"
            elif ends_epoch and number == epochs and max_epochs is not None:
                text = schedule.misfit(max_epochs)
                way = f"once per epoch; pass it to optimizer_step for once per step, or make it for {max_epochs} epochs"
            else:
                continue
            self._unknown.remove(schedule)
            if text is not None:
                logger.warning("%s (%s) %s: it is stepped %s", schedule.name, schedule.kind, text, way)

    def _warn_of_unused(self, *, is_last: bool, epochs: int) -> None:
        """Say at the end of the second epoch, or of the only one, which schedulers have never been stepped."""
        if epochs != 2 and not (epochs == 1 and is_last):
            return
        for name, count in self._steps_of_schedulers().items():
            if count == 0 == self._counts.get(name, 0):
                logger.warning(
                    "%s has not been stepped until now: pass it on, optimizer_step(optimizer, scheduler), or call its "
                    "step() in on_training_epoch_end",
                    name,
                )

    def _steps_of_schedulers(self) -> dict[str, int]:
        """Return how often each scheduler has been stepped, but for those that wait for something."""
        return {
            name: part.last_epoch
            for name, part in stateful_parts(self._model)
            if isinstance(part, LRScheduler)
            and not isinstance(part, ReduceLROnPlateau | SWALR)
            and isinstance(getattr(part, "last_epoch", None), int)
        }

    def _misfits(self, total: int | None) -> dict[str, str]:
        """Return what is wrong with the schedules of which it is known before that each step moves them, by name."""
        if total is None or self._options.fast_dev_run:
            return {}
        found = {}
        for schedule in itertools.chain(*self._schedules.values()):
            if schedule.is_of_package and (text := schedule.misfit(total)) is not None:
                found[schedule.name] = (
                    f"{schedule.name} ({schedule.kind}) {text}: make it for self.num_training_steps ({total:,}) steps"
                )
        return found

    def _learning_rates(self, name: str, total: int | None, state: TrainingState) -> LearningRates | None:
        """Return the rates of an optimizer; None if it has several schedulers.

        Those of a schedule are given if it is known how often it is stepped.
        """
        schedules, rate = self._schedules[name], self._rates[name]
        if len(schedules) > 1:
            return None
        if not schedules:
            return LearningRates("", rate)
        schedule, number = schedules[0], self._number_of_steps(schedules[0], total, state)
        ends = None if number is None else schedule.first_highest_last(number)
        kind = schedule.kind + ", once per epoch" * (number is not None and number != total)
        if ends is None or number is None:
            return LearningRates(kind, rate)
        steps = range(0, number, max(1, number // 200))
        return LearningRates(kind, *ends, steps=steps, rates=schedule.rates(steps))

    def _number_of_steps(self, schedule: Schedule, total: int | None, state: TrainingState) -> int | None:
        """Return how often a schedule is going to be stepped in all, None if it may be once per step or per epoch."""
        epochs = self._options.max_epochs
        parts = dict(stateful_parts(self._model))
        count = getattr(parts.get(schedule.name), "last_epoch", 0)
        if total is None or epochs is None or schedule.is_of_package:
            return total
        if state.epoch > 0 and count in (state.step, state.epoch):  # A run that goes on tells.
            return total if count == state.step else epochs
        fits = (schedule.misfit(total) is None, _fits_epochs(schedule, epochs))
        return {(True, False): total, (False, True): epochs}.get(fits)


def _fits_epochs(schedule: Schedule, epochs: int | None) -> bool:
    """Return whether a schedule may be made for steps that are epochs."""
    is_long = epochs is not None and epochs >= _FEWEST
    return is_long and schedule.misfit(epochs or 0) is None and schedule.moves(epochs or 0)


def _has_rate(group: Mapping[str, Any]) -> bool:
    """Return whether a group of parameters has a learning rate; some optimizers choose their own."""
    return isinstance(group.get("lr"), int | float | Tensor)


def checkpoint_bytes(parts: Sequence[tuple[str, Any]]) -> int:
    """Return the size of the states of some parts in bytes, with those that optimizers will have after a step.

    Args:
        parts: the stateful parts of a model by name.
    """
    total = 0
    for _, part in parts:
        states = part.state_dict()
        if isinstance(part, Optimizer) and not part.state:
            states = [states, _first_states(part)]
        total += sum(leaf.nbytes for _, leaf in leaves(states) if isinstance(leaf, Tensor))
    return total


def _first_states(optimizer: Optimizer) -> Any:
    """Return the states of an optimizer after a step, without memory for them; nothing if it cannot be known."""
    groups = [
        {**group, "params": [_without_values(p) for p in group["params"] if p.requires_grad]}
        for group in optimizer.param_groups
    ]
    tried = copied_optimizer(optimizer, groups)
    try:
        type(tried).step(tried)  # A scheduler has put a step of its own on the object.
    except Exception:  # An optimizer of the user may need anything.
        return []
    return list(tried.state.values())


def _without_values(parameter: Tensor) -> Tensor:
    copied = torch.empty_like(parameter, device="meta", requires_grad=True)
    copied.grad = torch.empty_like(copied)
    return copied
