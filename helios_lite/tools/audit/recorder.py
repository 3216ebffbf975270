"""The callback of a trial, which changes the program where it runs and records what happens."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import SWALR
from torch.utils.data import default_collate

from helios_lite.callbacks import Callback
from helios_lite.model_internals.attributes import named_networks, optimizers, stateful_parts
from helios_lite.model_internals.step_tap import Loss, StepTap
from helios_lite.nested import items, leaves, rebuilt
from helios_lite.planning.schedule_reading import Schedule
from helios_lite.processes import rng
from helios_lite.state import TrainingState
from helios_lite.tools.audit.calls import CallWatch, GradientWatch, GrowthWatch, RandomWatch, rng_states
from helios_lite.tools.audit.couplings import coupling_of
from helios_lite.tools.audit.program_data import (
    SampleReader,
    change_train,
    change_valid,
    count_streamed,
    describe_splits,
)
from helios_lite.tools.audit.record import Facts, Record, SampleRead, Step, digest, place_not_finite
from helios_lite.tools.audit.trial import EPOCH_STEPS, Trial
from helios_lite.tools.audit.watches import ModeWatch, OptimizerWatch
from helios_lite.trainer import Trainer

_HELD_OUT = 128  # Samples at most.
_CHANGED = 8  # Samples of a batch of which an integer is changed, and samples that are not finite that are tried.


class Enough(Exception):
    """Raised in a hook to end a trial as a crash would."""


class Recorder(Callback):
    """Changes what a trial asks for, and records what happens; it must be the last callback.

    Args:
        trial: what to change and to record.
    """

    def __init__(self, trial: Trial, program: Trainer, weights: Path) -> None:
        self._trial, self._program, self._weights = trial, program, weights
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
        self._moved, self._modes_found = list[str](), list[str]()
        self._validated, self._shared, self._strayed = list[str](), list[str](), list[str]()
        self._random, self._growth = RandomWatch(), GrowthWatch()
        self._calls = CallWatch(looks_for_couplings=trial.looks_for_couplings, growth=self._growth)
        self._coupled, self._trained_names = "", dict[str, None]()
        self._gradients = GradientWatch()
        self._optimizers = OptimizerWatch(trial.records_gradients)
        self._schedulers: dict[str, tuple[Any, int]] = {}  # With how often each had been stepped.
        self._misfits: dict[str, tuple[str, str]] = {}
        self._leaks = 0, 0
        self._streamed: dict[int, int | None] = {}
        self._reader: SampleReader | None = None
        self._changed_train: Any = None
        self._state = TrainingState()
        self._num_calls = 0  # Of train_step.
        self._norm_before = 0.0  # Of the trained weights, before a step.
        self._is_stepping = self._has_stepped = False  # Whether train_step runs, and an optimizer has stepped in it.
        self._tap = StepTap(
            train_step=self._train_step,
            on_loss=self._note_loss,
            on_log=self._note_log,
            before_step=self._note_step,
            on_graph=self._note_graph if trial.looks_for_couplings else None,
        )

    def record(self) -> Record:
        """Return what has been recorded."""
        calls = {**self._calls.findings(), "random": self._random.found, "gradients": self._gradients.found}
        calls["growth"] = self._growth.findings(EPOCH_STEPS)
        counts = {name: part.last_epoch - before for name, (part, before) in self._schedulers.items()}
        return Record(
            facts=Facts(**self._facts, num_optimizers=self._optimizers.num_stepped()),
            steps=self._steps,
            first_step=self._first_step,
            validations=self._validations,
            reduced=self._reduced,
            samples=self._samples,
            parameters=self._optimizers.parameters(),
            modes=self._modes_found,
            num_modules=self._modes.num_used(),
            moved=self._moved,
            validated=self._validated,
            shared=self._shared,
            strayed=self._strayed,
            calls=calls,
            schedulers=counts,
            misfits=self._misfits,
            coupled=self._coupled or ("" if self._calls.couplings is None else self._calls.couplings.found()),
            trained_names=[*self._trained_names],
            leaks=self._leaks,
            streamed=self._streamed,
            weights=str(self._weights) if self._weights.exists() else "",
            not_finite_batch=self._not_finite_batch,
            held_out=self._held_out_losses,
        )

    # Hooks.

    def setup(self, fast_init: bool = False) -> None:
        """Change the splits, and wrap what evaluations call."""
        data, options = self.datamodule, self.model.trainer
        self._facts.update(describe_splits(data, options.accumulation_steps), precision=options.precision)
        self._facts.update(accumulation_steps=options.accumulation_steps)
        names = self._program.monitor or ()
        self._facts.update(monitored=[names] if isinstance(names, str) else [*names], mode=self._program.mode)
        if self._trial.holds_out:
            indices = range(len(data.train.dataset))[1 : 2 * _HELD_OUT : 2]
            self._held_out = (data.train.collate_fn or default_collate)([data.train.dataset[i] for i in indices])
        change_train(data, self._trial)
        change_valid(data, self._trial)
        self._changed_train = data.train
        vars(self.model).update(valid_step=self._valid_step(self.model.valid_step))
        self._tap.attach(self.model)

    def on_training_start(self) -> None:
        """Begin to record."""
        model, trial = self.model, self._trial
        self._tap.watch_optimizers()
        networks, parts = named_networks(model), list(stateful_parts(model))
        self._optimizers.watch(networks, [*optimizers(parts).values()])
        if trial.starts_from:
            for name, values in torch.load(trial.starts_from, weights_only=True).items():
                networks[name].load_state_dict(values)
        if trial.keeps_weights:
            values = [value for net in networks.values() for value in [*net.parameters(), *net.buffers()]]
            self._initial = [(value, value.detach().clone()) for value in values]
        if trial.is_evaluating:
            for module in (each for net in networks.values() for each in net.modules()):
                module.eval()
                vars(module).update(train=_stay(module))  # Steps may switch modes themselves.
        if trial.watches:
            self._modes.watch(networks)
            self._calls.watch(networks)
            if self._facts["accumulation_steps"] == 1:
                self._gradients.watch(optimizers(parts))
        if trial.reads_samples:
            self._reader = SampleReader(self.datamodule)
            self._samples = self._reader.read()
            if self._facts.get("train_kind") == "iterable" and self._facts["num_workers"] > 1:
                numbers = (1, self._facts["num_workers"])
                self._streamed = {number: count_streamed(self.datamodule.train, number) for number in numbers}
        self._watch_schedulers(parts)
        scaler = model._context.precision.scaler
        if trial.loss_scale is not None and scaler is not None:
            scaler.scale(torch.zeros((), device=model.device))  # It makes its scale when it is first used.
            scaler.update(trial.loss_scale)

    def _watch_schedulers(self, parts: list[tuple[str, Any]]) -> None:
        """Note the schedulers, and let none of them go beyond its planned end."""
        inner = {id(each) for _, part in parts for each in getattr(part, "_schedulers", ())}
        steps, epochs = self._planned()
        for name, part in parts:
            if not isinstance(part, LRScheduler) or isinstance(part, ReduceLROnPlateau | SWALR):
                continue
            groups = {id(group) for each in optimizers(parts).values() for group in each.param_groups}
            if groups and not groups & {id(group) for group in part.optimizer.param_groups}:
                self._strayed.append(name)
            if id(part) not in inner:
                self._schedulers[name] = part, part.last_epoch
                with contextlib.suppress(Exception):  # Whatever a schedule of the user may raise.
                    schedule = Schedule(name, part)
                    texts = [schedule.misfit(number) if number else None for number in (steps, epochs)]
                    self._misfits[name] = texts[0] or "", texts[1] or ""
            limits = [
                number if number is None or not self._trial.holds_rate else number // 2 for number in (steps, epochs)
            ]
            if not self._trial.keeps_length:
                self._hold(part, limits)

    def _planned(self) -> tuple[int | None, int | None]:
        """Return the number of steps and of epochs that the program has planned, None if it is not known."""
        length, window = self._facts.get("length"), self._facts["accumulation_steps"]
        program, per_epoch = self._program, self._program.steps_per_epoch
        if per_epoch is None and length is not None:
            batches = length / self._facts["batch_size"]
            batches = math.floor(batches) if self._facts["drop_last"] else math.ceil(batches)
            limit = program.limit_train_batches
            batches = (
                min(batches, limit) if isinstance(limit, int) else math.ceil(batches * (1 if limit is None else limit))
            )
            per_epoch = math.ceil(batches / window)
        total = None if per_epoch is None or program.max_epochs is None else per_epoch * program.max_epochs
        known = [number for number in (total, program.max_steps) if number is not None]
        return min(known, default=None), program.max_epochs

    def _hold(self, scheduler: Any, limits: list[int | None]) -> None:
        """Let a scheduler stay where it is after so many steps of it; the first number is for those in train_step."""
        kind, original = type(scheduler), scheduler.step
        count = 0

        def step(itself: Any, *arguments: Any, **options: Any) -> None:
            nonlocal count
            limit = limits[0 if self._is_stepping else 1]
            count += 1
            if limit is None or count <= limit:
                original(*arguments, **options)

        # An attribute of its own would be part of its state.
        scheduler.__class__ = type(kind.__name__, (kind,), {"step": step, "__module__": kind.__module__})

    def on_training_epoch_start(self, current_epoch: int) -> None:
        """Change a train split that the program has assigned for this epoch; count what is alive."""
        if self.datamodule.train is not self._changed_train:
            change_train(self.datamodule, self._trial)
            self._changed_train = self.datamodule.train
            self._facts["assigns_splits"] = True
        if self._trial.watches:
            self._growth.count()

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
            if self._trial.stirs_weights:
                self._stir(4.0 ** (len(self._steps) - 1))
        ends_when = self._trial.ends_when
        if ends_when is not None and ends_when(self._mean_losses, self._held_out_losses):
            raise Enough

    def on_training_end(self) -> None:
        """Record what only the end shows."""
        networks = named_networks(self.model)
        if self._trial.watches:
            self._growth.count()
            updated = [*optimizers(stateful_parts(self.model)).values()]
            self._modes_found, self._moved = self._modes.findings(updated)
            self._validated = self._modes.validated()
        self._shared = self._optimizers.shared()
        if self._trial.saves_weights:
            torch.save({name: net.state_dict() for name, net in networks.items()}, self._weights)
        if self._reader is not None:
            self._reader.read_again(self._samples)
            for name, read in self._samples.items():
                if read.not_finite:
                    tried = [index for index, _ in read.not_finite[:_CHANGED]]
                    is_handled = all(self._is_handled(self._reader, name, index) for index in tried)
                    self._samples[name] = dataclasses.replace(read, is_handled=is_handled)

    def _is_handled(self, reader: SampleReader, name: str, index: int) -> bool:
        """Return whether the loss of a sample that is not finite, with some that are, and its gradient are finite."""
        read, collate = self._samples[name], self.datamodule.train.collate_fn or default_collate
        bad = {each for each, _ in read.not_finite}
        others = [each for each in range(len(read.digests)) if each not in bad][:3]
        parameters = [p for net in named_networks(self.model).values() for p in net.parameters()]
        for parameter in parameters:
            parameter.grad = None
        try:
            batch = self.model.batch_to_device(
                collate([reader.sample(name, each) for each in (index, *others)]), "train"
            )
            with self._tap.probing(runs_backward=True) as losses:
                self._tap.train_step(batch, self._state)
        except Exception:  # The samples of a validation may be others.
            return False
        gradients = [p.grad for p in parameters if p.grad is not None]
        is_finite = all(math.isfinite(value) for value, _ in losses) and all(
            bool(g.isfinite().all()) for g in gradients
        )
        for parameter in parameters:
            parameter.grad = None
        return len(losses) > 0 and is_finite

    def process_metrics(self, phase: str, metrics: dict[str, float]) -> dict[str, float]:
        """Record the metrics of a validation."""
        if phase == "valid":
            self._validations.append(dict(metrics))
        return {}

    # What the model calls.

    def _train_step(self, batch: Any, state: TrainingState) -> None:
        trial, self._state = self._trial, state
        if trial.records_bits:
            self._batches.append(digest(batch))
            if not self._not_finite_batch and (place := place_not_finite(batch)) is not None:
                self._not_finite_batch = f"{place} of the batch of step {state.step + 1}"
        if trial.holds_out and len(self._steps) % 8 == 0:
            losses = self._probe(self.model.batch_to_device(self._held_out, "train"), state)
            self._held_out_losses.append(sum(value for value, _ in losses) / max(1, len(losses)))
        if trial.changes_targets and self._num_calls == 0:
            self._leaks = self._change_targets(batch, state)
        self._num_calls += 1
        self._is_stepping = True
        try:
            if trial.repeats > 0:
                self._repeat(batch, state)
            elif trial.watches:
                self._norm_before, self._has_stepped = self._trained_norm(), False
                averaged = self._averaged_norm()
                calls = self._calls.during(self._size())
                with self._modes.during("train"), self._random.during(self._num_calls), calls:
                    self._tap.train_step(batch, state)
                self._note_pairs()
                if self._averaged_norm() != averaged:
                    self._facts["moves_averages"] = True
            else:
                self._tap.train_step(batch, state)
        finally:
            self._is_stepping = False

    def _repeat(self, batch: Any, state: TrainingState) -> None:
        """Call `train_step` several times without a change of weights; note whether it draws or uses its past.

        The counters are those of the first step, on which a loss may depend: as of networks that are trained in turn.
        """
        state = dataclasses.replace(state, step=0, batch=0, epoch_batch=0)
        device, states = self.model.device, rng_states()
        before = rng.get_state(device)
        repeated = [self._probe(batch, state)]
        draws = rng_states() != states
        if self._trial.repeats == 2:
            rng.set_state(before, device)
            repeated.append(self._probe(batch, state))
            carries = repr(repeated[1]) != repr(repeated[0])
            self._facts["carries_state"] = carries or self._facts.get("carries_state", False)
        else:
            repeated += [self._probe(batch, state) for _ in range(1, self._trial.repeats)]
        self._losses.extend(loss for losses in repeated for loss in losses)
        self._facts["num_losses"] = len(repeated[0])
        self._facts["draws_in_training"] = draws or self._facts.get("draws_in_training", False)

    def _probe(self, batch: Any, state: TrainingState) -> list[Loss]:
        """Return the losses of a batch, and change nothing."""
        watch = self._calls.during(self._size()) if self._trial.looks_for_couplings else contextlib.nullcontext()
        with self._tap.probing() as losses, watch:
            self._tap.train_step(batch, state)
        return losses

    def _size(self) -> int:
        """Return the number of samples in the present batch."""
        return self.model._context._batch_size

    def _change_targets(self, batch: Any, state: TrainingState) -> tuple[int, int]:
        """Return how many integers of the batch are targets of a loss of classes, and of how many the score changes.

        One integer is changed at a time. The score of a target must not change with it: otherwise it is an input.
        """
        device, size = self.model.device, self._size()
        start, watch = rng.get_state(device), CallWatch(keeps_scores=True)

        def scored(batch: Any) -> list[tuple[Tensor, Tensor]]:
            rng.set_state(start, device)
            with watch.during(size):
                self._probe(batch, state)
            return watch.scored

        before, number, changed = scored(batch), 0, 0
        for _, leaf in leaves(batch):
            is_integer = isinstance(leaf, Tensor) and not leaf.is_floating_point() and leaf.dtype is not torch.bool
            if not is_integer or leaf.ndim == 0 or len(leaf) != size or not before:
                continue
            values = leaf.unique()
            for row in range(min(size, _CHANGED)):
                other = leaf.clone()
                flat = other[row].reshape(-1)
                place = (row + 1) * flat.numel() // (_CHANGED + 1)
                different = values[values != flat[place]]
                if len(different) == 0 or flat.numel() == 0:
                    continue
                flat[place] = different[row % len(different)]
                other[row] = flat.view_as(other[row])
                after = scored(_with_leaf(batch, leaf, other))
                for (scores, targets), (new_scores, new_targets) in zip(before, after, strict=False):
                    if targets.shape != new_targets.shape or scores.shape != new_scores.shape:
                        continue
                    at = (targets != new_targets).nonzero().flatten()
                    if len(at) > 0:
                        number += 1
                        difference = (scores[at] - new_scores[at]).abs().max()
                        changed += bool(difference > 1e-6 * (1 + scores[at].abs().max()))
        rng.set_state(start, device)
        return number, changed

    def _stir(self, factor: float) -> None:
        """Add random numbers to all weights, so many times as large as they are: then outputs differ more."""
        generator = torch.Generator().manual_seed(0)
        for net in named_networks(self.model).values():
            for value in net.parameters():
                noise = torch.randn(value.shape, generator=generator).to(value)
                value.add_(noise * value.square().mean().sqrt(), alpha=factor)

    def _trained_norm(self) -> float:
        return _sum_of_norms(self._trained())

    def _trained(self) -> list[Tensor]:
        found = optimizers(stateful_parts(self.model)).values()
        return [p for optimizer in found for group in optimizer.param_groups for p in group["params"]]

    def _averaged_norm(self) -> float:
        """Return the norm of the parameters that no optimizer has, which train_step may move itself."""
        trained = {id(p) for p in self._trained()}
        nets = named_networks(self.model).values()
        return _sum_of_norms([p for net in nets for p in net.parameters() if id(p) not in trained])

    def _note_pairs(self) -> None:
        if self._calls.pairs and not self._facts.get("compares_samples"):
            self._facts["compares_samples"] = self._calls.pairs

    def _note_loss(self, loss: Loss) -> None:
        self._losses.append(loss)
        if self._trial.watches:
            self._gradients.note_loss()
            if not self._has_stepped and self._trained_norm() != self._norm_before:
                self._facts["moves_weights"] = True

    def _note_step(self, name: str, optimizer: Optimizer) -> None:
        self._has_stepped = True
        self._gradients.note_step(name)
        self._optimizers.note_step(name, optimizer)

    def _note_graph(self, loss: Tensor) -> None:
        if not self._coupled and loss.requires_grad:
            watch = self._calls.couplings
            has_statistics = watch is not None and watch.has_statistics
            self._coupled = coupling_of(loss, self._size(), has_statistics=has_statistics)

    def _note_log(self, name: str, value: Any, reduce: Any) -> None:
        if self._is_stepping:
            self._trained_names[name] = None
        self._reduced[name] = reduce if isinstance(reduce, str) else ",".join(reduce)

    def _valid_step(self, original: Callable[[Any, int], None]) -> Callable[[Any, int], None]:
        def valid_step(batch: Any, step: int) -> None:
            states = rng_states()
            watches = self._trial.watches
            with (
                self._modes.during("valid"),
                self._calls.during(self._size()) if watches else contextlib.nullcontext(),
            ):
                original(batch, step)
            if watches:
                self._note_pairs()
            draws = rng_states() != states
            self._facts["draws_in_validation"] = draws or self._facts.get("draws_in_validation", False)

        return valid_step


def _sum_of_norms(values: list[Tensor]) -> float:
    return sum(float(norm) for norm in torch._foreach_norm([value.detach() for value in values])) if values else 0.0


def _stay(module: torch.nn.Module) -> Callable[..., torch.nn.Module]:
    """Return a `train` that leaves the mode as it is."""
    return lambda mode=True: module


def _with_leaf(value: Any, old: Any, new: Any) -> Any:
    """Return nested containers with another leaf in place of one."""
    if value is old:
        return new
    inside = items(value)
    return value if inside is None else rebuilt(value, [_with_leaf(part, old, new) for _, part in inside])
