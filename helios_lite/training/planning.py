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

from helios_lite.display.plan import LearningRates, Plan
from helios_lite.model_internals.attributes import stateful_parts
from helios_lite.model_internals.schedule_reading import copied_optimizer, schedules_of
from helios_lite.nested import leaves
from helios_lite.state import TrainingState
from helios_lite.training.due import save_steps, validation_steps
from helios_lite.training.session import Session

logger = logging.getLogger("helios_lite")
_FEWEST_EPOCHS = 3  # With fewer no schedule is made for epochs.


class Planning:
    """Reads the plan of a training, after `Model.setup` and before a checkpoint is loaded.

    Args:
        session: the session, set up.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        parts = list(stateful_parts(session.model))
        self._schedules = schedules_of(parts)
        self._rates = {
            name: max((float(group["lr"]) for group in part.param_groups), default=0.0)
            for name, part in parts
            if isinstance(part, Optimizer) and all(_has_rate(group) for group in part.param_groups)
        }
        self._warned: set[str] = set()

    def plan(self, *, validates: bool, start: str = "", changes: Sequence[str] = ()) -> Plan:
        """Return the plan.

        Args:
            validates: whether the run validates.
            start: what the start does.
            changes: what a run that continues does otherwise than before.
        """
        session, options = self._session, self._session.options
        planned, saves = session.planned, session.checkpoints is not None
        total, per_epoch, epochs = planned.known_total(), planned.per_epoch(), planned.epoch_ends()
        misfits = self._misfits(total)
        self._warned = set(misfits)
        return Plan(
            steps=total,
            steps_per_epoch=per_epoch,
            max_epochs=options.max_epochs,
            max_minutes=options.max_minutes,
            samples_per_step=session.train_data.samples_per_step(),
            validations=validation_steps(options, per_epoch, total, epochs) if validates and total else [],
            saves=save_steps(options, per_epoch, total, epochs) if saves and total else [],
            save_every_minutes=options.save_every_minutes if saves else None,
            rates={name: self._learning_rates(name, total) for name in self._rates},
            warnings=list(misfits.values()),
            start=start,
            changes=changes,
        )

    def warn_of_stepping(self, state: TrainingState) -> None:
        """Say at the end of the first epoch which schedulers were not stepped, or otherwise than they are made for."""
        if not self._session.world.is_main or state.step == 0:
            return
        counts = {
            name: getattr(part, "last_epoch", None)
            for name, part in stateful_parts(self._session.model)
            if isinstance(part, LRScheduler) and not isinstance(part, ReduceLROnPlateau)
        }
        for name, count in counts.items():
            if count == 0:
                logger.warning(
                    "%s has not been stepped in the first epoch: pass it on, optimizer_step(optimizer, scheduler), or "
                    "call its step() in on_training_epoch_start",
                    name,
                )
        total, epochs = self._session.planned.known_total(), self._session.options.max_epochs
        for schedule in itertools.chain(*self._schedules.values()):
            count = counts.get(schedule.name)
            if count is None or schedule.name in self._warned or state.step < _FEWEST_EPOCHS:
                continue
            is_per_step = count > state.step / 2
            number = total if is_per_step else epochs if count == 1 else None
            if number is not None and (text := schedule.misfit(number)) is not None:
                unit = "step" if is_per_step else "epoch"
                logger.warning("%s (%s) %s: it is stepped once per %s", schedule.name, schedule.kind, text, unit)

    def _misfits(self, total: int | None) -> dict[str, str]:
        """Return what is wrong with schedules, however often they are stepped, by their names."""
        epochs = self._session.options.max_epochs
        if total is None or self._session.options.fast_dev_run:
            return {}
        found = {}
        for schedule in itertools.chain(*self._schedules.values()):
            text = schedule.misfit(total)
            is_for_epochs = epochs is not None and epochs >= _FEWEST_EPOCHS and schedule.misfit(epochs) is None
            if text is not None and not (is_for_epochs and schedule.moves(epochs or 0)):
                found[schedule.name] = (
                    f"{schedule.name} ({schedule.kind}) {text}: make it for self.num_training_steps ({total:,}) steps"
                )
        return found

    def _learning_rates(self, name: str, total: int | None) -> LearningRates | None:
        """Return the rates of an optimizer, whose only scheduler is stepped at every step; None if it has several."""
        schedules, rate = self._schedules[name], self._rates[name]
        if len(schedules) > 1:
            return None
        ends = schedules[0].first_highest_last(total) if schedules and total is not None else None
        if ends is None:
            return LearningRates("", rate, rate, rate)
        steps = range(0, total or 0, max(1, (total or 0) // 200))
        return LearningRates(schedules[0].kind, *ends, steps=steps, rates=schedules[0].rates(steps))


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
