"""Looks at one step of a training, and ends the training after it; finds what is not finite in it."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from helios_lite.callbacks import Callback
from helios_lite.calls.replay_result import Replay, ReplayedBatch
from helios_lite.metrics.measurements import is_measured, learning_rates
from helios_lite.model_internals.attributes import hooked_modules, named_networks
from helios_lite.model_internals.step_tap import Loss, StepTap
from helios_lite.nested import items, leaves, rebuilt
from helios_lite.networks.dtensors import full_tensor, is_dtensor
from helios_lite.processes import rng
from helios_lite.processes.devices import DeviceMover
from helios_lite.state import TrainingState
from helios_lite.training.loop import Training


class NotFiniteFinder:
    """Finds the first module with an output that is not finite, or else the first with such a gradient.

    Attributes:
        first: where it is, None if all is finite.
    """

    def __init__(self) -> None:
        self.first: str | None = None

    def note(self, where: str) -> None:
        """Note a place, if there is none before it."""
        if self.first is None:
            self.first = where

    @contextlib.contextmanager
    def watching(self, networks: dict[str, nn.Module]) -> Iterator[None]:
        """Context in which the modules of networks are watched."""
        with contextlib.ExitStack() as stack:
            for name, net in networks.items():
                for path, module in hooked_modules(net):
                    handle = module.register_forward_hook(self._hook(f"{name}.{path}" if path else name))
                    stack.callback(handle.remove)
            yield

    def _hook(self, path: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if not tensor.isfinite().all():
                    self.note(f"the output of {path}" + ("" if _is_finite(inputs) else ", whose input is not finite"))
                elif tensor.requires_grad:
                    tensor.register_hook(  # type: ignore[no-untyped-call]
                        lambda gradient: None if gradient.isfinite().all() else self.note(f"the gradient at {path}")
                    )

        return look


NO_SAMPLE = object()
"""What `sample_of` returns for a batch that cannot be divided."""


def sample_of(value: Any, position: int, size: int) -> Any:
    """Return one sample of a batch as a batch of one; `NO_SAMPLE` if a part has another first dimension."""
    if isinstance(value, Tensor):
        return value[position : position + 1] if value.ndim > 0 and len(value) == size else NO_SAMPLE
    inside = items(value)
    if inside is None:
        return NO_SAMPLE
    is_of_leaves = not any(isinstance(part, Tensor) or items(part) is not None for _, part in inside)
    if is_of_leaves and isinstance(value, list | tuple) and len(value) == size:
        return value[position : position + 1]
    parts = [sample_of(part, position, size) for _, part in inside]
    return NO_SAMPLE if any(part is NO_SAMPLE for part in parts) else rebuilt(value, parts)


def samples_not_finite(batch: Any, size: int) -> list[int]:
    """Return the positions of the samples of a batch that have a value that is not finite."""
    found = set()
    for tensor in _tensors(batch):
        if tensor.ndim > 0 and len(tensor) == size:
            bad = ~tensor.isfinite().flatten(1).all(1) if tensor.ndim > 1 else ~tensor.isfinite()
            found |= set(bad.nonzero().flatten().tolist())
    return sorted(found)


def _copied(batch: Any) -> Any:
    """Return a copy of a batch, or the batch itself if it holds something that cannot be copied."""
    try:
        return copy.deepcopy(batch)
    except Exception:  # Whatever a class of the user raises.
        return batch


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of floating-point or complex numbers in nested containers."""
    tensors = (leaf for _, leaf in leaves(value) if isinstance(leaf, Tensor))
    return (tensor for tensor in tensors if tensor.is_floating_point() or tensor.is_complex())


def _is_finite(value: Any) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in _tensors(value))


def _is_as_recorded(value: Any, recorded: Any) -> bool:
    """Return whether a value is that of a row in a file, which has null for what is not finite."""
    return value == recorded or (recorded is None and isinstance(value, float) and not math.isfinite(value))


def _last_row(rows: Sequence[Mapping[str, Any]], step: int) -> int:
    """Return the step of the last row of a training before a step, 0 without one."""
    is_of_training = (row["step"] for row in rows if row["step"] < step and any(map(_is_of_training, row)))
    return max(is_of_training, default=0)


def _is_of_training(name: str) -> bool:
    return name.startswith("train/")


def _order_of_effects(name: str) -> int:
    return {"samples_digest": 0, "batch_digest": 1, "weights_digest": 3}.get(name, 2)


_MAX_SAMPLES = 4096  # The samples of a batch of which the losses are computed one by one.
_TOLERANCE = 1e-3  # Relative difference of a batch's loss and the mean of its samples' losses.


class Inspected(Exception):
    """Raised after the step, to end the training."""


class EarlierStepFound(Exception):
    """Raised after a step before the one to inspect whose loss is not finite; its argument is the number."""


class _Part(NamedTuple):
    """A micro-batch of the step as it was before it, on the device, and what is needed to compute it again.

    A step may change its batch in place, and may do something else in every second step: so the batch is a copy, and
    the state is that before the step.
    """

    data: Any
    size: int
    indices: Tensor | dict[str, Tensor] | None
    rng_state: dict[str, Any]
    state: TrainingState
    losses: list[Loss]


class StepInspector(Callback):
    """Records one step; it must be the last callback. Nothing is touched before the step is done.

    What needs more than looking (the losses of samples, the first module that is not finite) is computed again
    afterwards, from the weights and the RNG states before the step.

    Args:
        step: the number of the step, from 1.
        started_at: the step after which the training begins.
        checks_finite: whether to look for an earlier step whose loss is not finite.
        recorded: the rows that the run has, with which those of the replay are compared.
        finds_worst: whether `EarlierStepFound` names the step up to this one with the highest value logged as "loss".
    """

    def __init__(
        self,
        step: int,
        started_at: int,
        checks_finite: bool,
        recorded: Sequence[Mapping[str, Any]] = (),
        finds_worst: bool = False,
    ) -> None:
        self._step, self._started_at, self._checks_finite = step, started_at, checks_finite
        self._recorded = recorded
        self._finds_worst = finds_worst
        self._highest: list[tuple[float, int]] = []  # Losses, each with minus the step, so that the first one wins.
        self._training: Training | None = None
        self._tap = StepTap(
            train_step=self._train_step,
            on_loss=self._note_loss,
            on_log=self._note_log,
            before_step=self._note_step,
        )
        self._num_done = self._num_skipped = 0  # Steps before the present batch.
        self._parts: list[_Part] = []
        self._before: list[Tensor] = []
        self._names: dict[int, str] = {}
        self._rates: dict[str, float] = {}
        self._norms: dict[str, float] = {}
        self._logged: dict[str, float] = {}
        self._records = False
        self.result: Replay | None = None

    def watch(self, training: Training) -> None:
        """Use a training, which has not begun."""
        self._training = training

    def unwrap(self) -> None:
        """Give the model back as it was before `on_training_start`."""
        self._tap.remove()

    # Hooks.

    def on_training_start(self) -> None:
        """Begin to see what the model calls."""
        self._tap.attach(self.model)

    def on_training_batch_start(self, state: TrainingState) -> None:
        """Begin to record, if the step to inspect begins."""
        self._num_done = state.step
        if state.step != self._step - 1:
            return
        precision = self.model._context.precision
        if state.skipped_steps != self._num_skipped:  # The windows before were no step: fp16 has skipped them.
            self._num_skipped = state.skipped_steps
            self._before = [value.detach().clone() for value in self._values()]
            for noted in (self._parts, self._rates, self._norms, self._logged):
                noted.clear()
        if not self._records:
            self._records = True
            self._before = [value.detach().clone() for value in self._values()]
            for name, net in named_networks(self.model).items():
                self._names.update((id(p), f"{name}.{path}") for path, p in net.named_parameters())
            self._tap.watch_optimizers()
        precision.add_gradient_report(self._note_gradients)

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        """End the training after the step to inspect, or after an earlier one whose loss is not finite."""
        if state.step >= self._step and self._finds_worst:
            everywhere = [found for rank in self.model._context.world.gather(self._highest) for found in rank]
            raise EarlierStepFound(-max(everywhere, default=(0.0, -self._step))[1])
        if state.step >= self._step:
            self.result = self._inspect(state)
            raise Inspected
        world = self.model._context.world
        loss = self.model._context.precision.last_loss
        if self._records or not self._checks_finite:
            return
        if any(world.gather(loss is not None and not math.isfinite(float(loss.detach())))):
            raise EarlierStepFound(self._num_done + 1)

    # What the model and its optimizers call.

    def _train_step(self, batch: Any, state: TrainingState) -> None:
        assert self._training is not None
        if self._records:
            context, indices = self.model._context, self._training.train_data.indices(state)
            rng_state = rng.get_state(context.device)
            part = _Part(_copied(batch), context._batch_size, indices, rng_state, copy.copy(state), [])
            self._parts.append(part)
        self._tap.train_step(batch, state)

    def _note_loss(self, loss: Loss) -> None:
        if self._records:
            self._parts[-1].losses.append(loss)

    def _note_log(self, name: str, value: Tensor | float, reduce: Any) -> None:
        if not self._records and not self._finds_worst:
            return
        number = float(value.detach()) if isinstance(value, Tensor) else float(value)
        if name == "loss" and self._finds_worst:  # Those before the row that has the highest one are lower.
            self._highest.append((number if math.isfinite(number) else math.inf, -self._num_done - 1))
        if self._records:
            self._logged[name] = number

    def _note_step(self, name: str, optimizer: Optimizer) -> None:
        rates = learning_rates(optimizer)
        self._rates.update((f"{name}/{i}" if len(rates) > 1 else name, rate) for i, rate in enumerate(rates))
        with_gradient = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if any(self._names.get(id(p)) not in self._norms for p in with_gradient):  # It did not use optimizer_step.
            self._note_gradients(optimizer, with_gradient, None)

    def _note_gradients(self, optimizer: Optimizer, parameters: list[Tensor], norm: Any) -> None:
        for parameter in parameters:
            assert parameter.grad is not None
            name = self._names.get(id(parameter), "a parameter of no network")
            self._norms.setdefault(name, float(full_tensor(parameter.grad.detach().float().norm())))

    # After the step.

    def _inspect(self, state: TrainingState) -> Replay:
        """Return what the step shows. Call on every rank."""
        world = self.model._context.world
        compared_until, differs_from_row = self._compare_with_rows()
        numbers = [*self._norms.values(), *(loss for part in self._parts for loss, _ in part.losses)]
        finite_parts = [samples_not_finite(part.data, part.size) for part in self._parts]
        is_odd = not all(map(math.isfinite, numbers)) or any(finite_parts)
        after = [value.detach().clone() for value in self._values()]
        first, details = None, []
        if any(world.gather(is_odd)):
            first = self._find_first_not_finite()
        for part, bad in zip(self._parts, finite_parts, strict=True):
            losses, why = self._sample_losses(part)
            bad_losses = [] if losses is None else [i for i, x in enumerate(losses.tolist()) if not math.isfinite(x)]
            details.append((losses, why, tuple(sorted({*bad, *bad_losses}))))
        self._write_back(after)
        for net in named_networks(self.model).values():
            net.zero_grad(set_to_none=True)
        to_cpu = DeviceMover(torch.device("cpu"))
        mine = [
            ReplayedBatch(
                world.rank,
                to_cpu(part.data),
                part.indices,
                tuple(loss for loss, _ in part.losses),
                part.losses[-1][1] if part.losses else None,
                *detail,
            )
            for part, detail in zip(self._parts, details, strict=True)
        ]
        everything = world.gather((mine, first))
        return Replay(
            step=self._step,
            epoch=state.epoch + 1,
            started_at=self._started_at,
            batches=tuple(batch for batches, _ in everything for batch in batches),
            learning_rates=self._rates,
            gradient_norms=self._norms,
            logged=self._logged,
            first_not_finite=next((text for _, text in everything if text is not None), None),
            compared_until=compared_until,
            differs_from_row=differs_from_row,
        )

    def _compare_with_rows(self) -> tuple[int | None, str | None]:
        """Return the last step whose row was compared with that of the run, and what differs first; None without one.

        Call on every rank.
        """
        assert self._training is not None
        log, recorded = self._training.log, self._recorded
        rows = [*(log.rows or []), {"step": self._step, **log.digests()}]
        before = _last_row(recorded, self._started_at + 1)
        until, found = None, None
        for row in sorted(rows, key=lambda row: row["step"]):
            step = row["step"]
            # With other options than the run the means of the replay may be those of more or fewer steps.
            has_same_start = (_last_row(log.rows or [], step) or before) == _last_row(recorded, step)
            for other in recorded:
                if found is not None or other["step"] != step or "kind" in other:
                    continue
                names = [name for name in row if name in other and not is_measured(name)]
                names = [name for name in names if has_same_start or name == "weights_digest"]
                differing = [name for name in names if not _is_as_recorded(row[name], other[name])]
                if differing:
                    name = min(differing, key=_order_of_effects)
                    found = f"{name} was {other[name]} at step {step}, and is {row[name]}"
                elif "weights_digest" in names:
                    until = step
        until, found = self.model._context.world.broadcast((until, found))  # Rank 0 alone has some of the digests.
        return until, found

    def _values(self) -> Iterator[Tensor]:
        for net in named_networks(self.model).values():
            for value in [*net.parameters(), *net.buffers()]:
                yield value.to_local() if is_dtensor(value) else value  # type: ignore[attr-defined]

    def _write_back(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for value, kept in zip(self._values(), values, strict=True):
                value.copy_(kept)

    def _find_first_not_finite(self) -> str | None:
        """Compute the step again, and return the first module that is not finite. Call on every rank."""
        self._write_back(self._before)
        finder = NotFiniteFinder()
        with (
            self._tap.probing(runs_backward=True),
            finder.watching(named_networks(self.model)),
            self.model._context.parallel.without_averages(),
        ):
            for part in self._parts:
                rng.set_state(part.rng_state, self.model.device)
                if samples_not_finite(part.data, part.size):
                    finder.note("the batch itself")
                self._tap.train_step(_copied(part.data), copy.copy(part.state))
        return finder.first

    def _sample_losses(self, part: _Part) -> tuple[Tensor | None, str]:
        """Return the loss of each sample alone, or why there is none."""
        if self.model._context.world.size > 1:
            return None, "the training has several processes"
        if len(part.losses) != 1:
            return None, f"train_step passed {len(part.losses)} losses to backward"
        if not 1 < part.size <= _MAX_SAMPLES:
            return None, f"the batch has {part.size} samples"
        samples = [sample_of(part.data, position, part.size) for position in range(part.size)]
        if any(sample is NO_SAMPLE for sample in samples):
            return None, "the batch cannot be divided into samples"
        self._write_back(self._before)
        try:
            together, alone = (self._evaluated(each, part) for each in ([part.data], samples))
        except Exception as error:
            return None, f"train_step fails for a sample alone ({type(error).__name__}: {error})"
        finite = [loss for loss in alone if math.isfinite(loss)]
        mean, loss = sum(finite) / max(1, len(finite)), together[0]
        if len(finite) == len(alone) and math.isfinite(loss) and abs(mean - loss) > _TOLERANCE * max(abs(loss), 1e-6):
            return None, f"their mean is {mean:.6g}, and the loss of the batch {loss:.6g}"
        return torch.tensor(alone), ""

    def _evaluated(self, batches: list[Any], part: _Part) -> list[float]:
        """Return the loss of each batch in evaluation mode, without gradients."""
        modes = [(module, module.training) for net in named_networks(self.model).values() for module in net.modules()]
        try:
            with self._tap.probing() as losses, torch.no_grad():
                for batch in batches:
                    for net in named_networks(self.model).values():
                        net.eval()
                    rng.set_state(part.rng_state, self.model.device)
                    self._tap.train_step(_copied(batch), copy.copy(part.state))
        finally:
            for module, mode in modes:
                module.train(mode)
        return [loss for loss, _ in losses]
