"""What a run is going to do, and how it is shown: in two lines of the banner, and whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from helios_lite.display import console


@dataclasses.dataclass(frozen=True)
class LearningRates:
    """The planned learning rates of an optimizer: the highest one of its groups after so many steps.

    Attributes:
        schedule: what sets them, such as "cosine" or "StepLR"; empty if nothing does.
        first, highest, last: of all steps of the run; the last two are None if they are not known.
        steps: some steps in ascending order, counted from 0.
        rates: the rates that their steps use.
    """

    schedule: str
    first: float
    highest: float | None = None
    last: float | None = None
    steps: Sequence[int] = ()
    rates: Sequence[float] = ()

    def __str__(self) -> str:
        """Return "lr 0.001 -> 1e-05 (cosine)", with the highest rate in between if it is not the first or the last."""
        rates = [self.first] if self.last is None else [self.first, self.last]
        if self.highest is not None and self.highest > max(rates):
            rates.insert(1, self.highest)
        name = f" ({self.schedule})" if self.schedule else ""
        return f"lr {' -> '.join(f'{rate:.3g}' for rate in rates)}{name}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a start of a run would do now; what `Trainer.plan` returns. `print` shows it.

    Attributes:
        steps: the planned number of steps, None if it is unknown.
        steps_per_epoch: the number of steps of an epoch, None if it is unknown.
        max_epochs, max_minutes: the options.
        samples_per_step: the number of samples of a step on all ranks; None if it is unknown or not always the same.
        epoch: the index of the first epoch with so many steps; those before had others.
        is_known: whether the steps of validations and checkpoints are known.
        validations: the steps after which a validation is to come.
        saves: the steps after which a checkpoint is to be saved, but for `save_every_minutes`.
        save_every_minutes: the option.
        rates: the learning rates by the name of the optimizer; those of one with several schedulers are not known.
        warnings: what is probably wrong with a schedule.
        start: what the start would do: begin, continue, or nothing; or the error that it would raise.
        changes: a sentence for each change that a run that continues would use.
        checkpoint_bytes: the size of a checkpoint in bytes, about, with the state that optimizers will have.
    """

    steps: int | None
    steps_per_epoch: int | None
    max_epochs: int | None
    max_minutes: float | None
    samples_per_step: int | None
    validations: Sequence[int]
    saves: Sequence[int]
    save_every_minutes: float | None
    rates: dict[str, LearningRates | None]
    warnings: Sequence[str]
    epoch: int = 0
    is_known: bool = True
    start: str = ""
    changes: Sequence[str] = ()
    checkpoint_bytes: int = 0

    def lines(self) -> list[str]:
        """Return the lines of the banner: the length of the run, and what comes in it."""
        return [f"plan: {self.length()}", "      " + ", ".join([*self._events(), *self._rates()])]

    def length(self) -> str:
        """Return "20 epochs x 19 steps = 380 steps of 64 samples"."""
        of_samples = "" if self.samples_per_step is None else f" of {self.samples_per_step:,} samples"
        minutes = self.max_minutes
        limit = "" if minutes is None else f", at most {minutes:g} minute{'' if minutes == 1 else 's'}"
        if self.steps is None:
            epochs = "" if self.max_epochs is None else f"{_count(self.max_epochs, 'epoch')} of unknown length"
            return (epochs or "no number of steps is set") + limit
        steps = f"{_count(self.steps, 'step')}{of_samples}"
        if self.steps_per_epoch is None:
            return steps + limit
        if self.max_epochs is not None and self.max_epochs * self.steps_per_epoch == self.steps:
            return f"{_count(self.max_epochs, 'epoch')} x {_count(self.steps_per_epoch, 'step')} = {steps}{limit}"
        if self.epoch > 0 and self.max_epochs is not None:
            epochs, each = _count(self.max_epochs, "epoch"), _count(self.steps_per_epoch, "step")
            return f"{epochs} = {steps}, {each} an epoch from epoch {self.epoch + 1} on{limit}"
        epochs = f"{self.steps / self.steps_per_epoch:.3g} epochs of {_count(self.steps_per_epoch, 'step')}"
        return f"{steps}, {epochs}{limit}"

    def __str__(self) -> str:
        """Return the whole plan as text."""
        lines = [f"{'start':12}{self.start}", *(f"{'':12}{text}" for text in self.changes)]
        lines.append(f"{'length':12}{self.length()}")
        lines.append(f"{'validations':12}{self._positions(self.validations)}")
        minutes = "" if self.save_every_minutes is None else f", and every {self.save_every_minutes:g} minutes"
        size = f", {self.checkpoint_bytes / 1e6:,.2f} MB each" if self.checkpoint_bytes else ""
        lines.append(f"{'saves':12}{self._positions(self.saves)}{minutes}{size}")
        for name, rates in self.rates.items():
            lines.append(f"{name:12}{'several schedulers, which are not read' if rates is None else rates}")
            if rates is not None and len(rates.rates) > 1 and rates.schedule:
                curve = console.sparkline(rates.rates) if console.can_print("▁█") else ""
                lines += [f"{'':12}{curve}"] if curve else []
        return "\n".join([*lines, *(f"{'warning':12}{text}" for text in self.warnings)])

    def _events(self) -> list[str]:
        if not self.is_known:
            return []
        saves = [_count(len(self.saves), "save")] if self.saves else []
        return [_count(len(self.validations), "validation") if self.validations else "no validation", *saves]

    def _positions(self, steps: Sequence[int]) -> str:
        """Return "20, after steps 19, 38, 57, ..., 380"."""
        if not steps:
            return "none" if self.is_known else "by epochs, whose length is unknown"
        shown = [f"{step:,}" for step in (steps if len(steps) <= 6 else steps[:3])]
        shown += [] if len(steps) <= 6 else ["...", f"{steps[-1]:,}"]
        return f"{len(steps):,}, after step{'s' * (len(steps) > 1)} {', '.join(shown)}"

    def _rates(self) -> list[str]:
        known = [(name, rates) for name, rates in self.rates.items() if rates is not None]
        if len(known) > 2:
            return [f"{len(known)} optimizers"]
        return [f"{name} {rates}" if len(known) > 1 else f"{rates}" for name, rates in known]


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'s' * (number != 1)}"
