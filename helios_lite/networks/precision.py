"""From a loss to a step: the number format of the forward pass, accumulation windows, weights, clipping."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from helios_lite.arguments import require_kind
from helios_lite.networks.dtensors import alike, full_tensor, total_norm
from helios_lite.networks.gradient_reducer import MIXED_WEIGHTS
from helios_lite.networks.parallel import ParallelStrategy
from helios_lite.processes.devices import sum_dtype
from helios_lite.processes.world import World

_AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_MAX_SKIPPED_IN_A_ROW = 100
"""Steps in a row that may be skipped: the loss scale has then fallen from 2**16 to 2**-84."""
GradientReport = Callable[[Optimizer, list[Tensor], Tensor], None]
"""Takes an optimizer, its parameters (which have gradients) and the 2-norm of these gradients before clipping."""


_NO_OPTIMIZER = "none yet, or several"


class Window(NamedTuple):
    """What an accumulation window was.

    Attributes:
        is_step: whether it was a step, also that of a model that does not use `optimizer_step`.
        is_skipped: whether an optimizer was skipped, or all were.
        is_left_out: whether the model has not called `optimizer_step`, or no loss has reached its parameters.
    """

    is_step: bool
    is_skipped: bool
    is_left_out: bool = False


class _Noted(NamedTuple):
    """An optimizer that steps: a reference, as one that is made in a step ends with it, and its first window."""

    ref: weakref.ref[Optimizer]
    window: int


class Precision:
    """Makes steps exact: an accumulation window equals one large batch.

    Args:
        name: "fp32", "bf16" or "fp16": the format of the forward pass.
        device: the device it runs on.
        clip_norm: largest 2-norm of the gradients of one optimizer, None for no limit.
        world: the ranks over which gradients are averaged.
        parallel: averages gradients over the ranks; None for a single process.

    Attributes:
        scaler: scales the losses of fp16, so that small gradients do not underflow; None for other formats.
        last_loss: the last loss passed to `backward`, whose graph has been freed; None after one of weight 0, and after
            a step that fp16 has skipped.
        num_steps: grows with every step of an optimizer: by one if it is the only optimizer, in fp32 or bf16. A window
            in which it has not grown by one is closed by `close_window`.
    """

    def __init__(
        self,
        name: str,
        device: torch.device,
        clip_norm: float | None = None,
        world: World = World(),  # noqa: B008 (frozen)
        parallel: ParallelStrategy | None = None,
    ) -> None:
        self._world, self._parallel = world, parallel
        self._dtype = _AUTOCAST_DTYPES[name]
        self._device = device
        self._clip_norm = clip_norm
        self.scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None
        self.last_loss: Tensor | None = None
        self._loss_weight = 1.0
        self._is_first_micro_batch = self._is_last_micro_batch = True
        self._is_part = world.size > 1  # Of a step: others are computed from other micro-batches, or on other ranks.
        self._report_gradients: GradientReport | None = None
        # The weight of the last backward, the optimizers that have counted it, and the weight of each in this window.
        self._weight: Tensor | float | None = None
        self._counted: set[int] = set()
        self._totals: dict[int, Tensor | float] = {}
        # Whether the losses since the last step have weights, and those of each optimizer in this window.
        self._is_weighted: bool | None = None
        self._are_weighted: dict[int, bool] = {}
        self.num_steps, self._growth = 0, 1 if self.scaler is None else 2
        self._has_skipped = False  # Any optimizer, in this window, because its gradients were not finite.
        self._optimizers: list[_Noted] = []
        self._only: object = _NO_OPTIMIZER
        self._has_several = False
        # Whether the model steps with `step`; unknown until it does, or a parameter changes without it.
        self._makes_steps: bool | None = None
        self._trained: list[Optimizer] = []
        self._check_held: Callable[[Optimizer], None] | None = None
        self._num_windows = 0  # That have ended, but for those of the only optimizer, in fp32 or bf16.
        self._before: list[tuple[int, float]] = []
        self._not_stepped_in_a_row = self._skipped_in_a_row = 0

    def begin_micro_batch(
        self, loss_weight: float, completes_step: bool, report_gradients: GradientReport | None = None
    ) -> None:
        """Prepare for the next micro-batch; called by the loop before `train_step`.

        Args:
            loss_weight: the micro-batch's part of the samples of its window, times the number of ranks.
            completes_step: whether it is the last of its window.
            report_gradients: called before clipping by every optimizer that steps.
        """
        self._loss_weight = loss_weight
        self._is_first_micro_batch, self._is_last_micro_batch = self._is_last_micro_batch, completes_step
        self._is_part = not (self._is_first_micro_batch and completes_step and self._world.size == 1)
        self._report_gradients = report_gradients

    def add_gradient_report(self, report: GradientReport) -> None:
        """Call one more report in the present micro-batch; see `begin_micro_batch`."""
        earlier = self._report_gradients

        def both(optimizer: Optimizer, parameters: list[Tensor], norm: Tensor) -> None:
            if earlier is not None:
                earlier(optimizer, parameters, norm)
            report(optimizer, parameters, norm)

        self._report_gradients = both

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the last loss, which is not a leaf and cannot be copied. To detach it would cost every step."""
        of_run: dict[str, Any] = {"_optimizers": [], "_only": _NO_OPTIMIZER, "_trained": [], "_check_held": None}
        return {**vars(self), "last_loss": None, **of_run}

    def keep_loss(self) -> None:
        """Copy the last loss before an evaluation, in which a compiled network may use its memory again."""
        if self.last_loss is not None:
            self.last_loss = self.last_loss.detach().clone()

    def forget_loss(self) -> None:
        """Forget the last loss, which has been checked."""
        self.last_loss = None

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which PyTorch chooses the format of each operation; for fp32 it does nothing."""
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, self._dtype)

    def backward(self, loss: Tensor, weight: Tensor | float | None, retain_graph: bool = False) -> None:
        """Add the gradients of a loss; see `Model.backward`."""
        if weight is None and not self._is_part:
            self.last_loss, self._weight = loss, None
        elif not self._counts(loss, weight):
            return
        elif self._is_part:  # A step of one batch would be multiplied by the weight and divided again.
            loss = loss * (self._loss_weight if weight is None else weight)
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        try:
            loss.backward(None, retain_graph)  # type: ignore[no-untyped-call]
        except AttributeError:
            require_kind("loss", loss, Tensor, "a tensor of one element")
            raise

    def _counts(self, loss: Tensor, weight: Tensor | float | None) -> bool:
        """Note a loss that has a weight or is a part of a step; return False if its weight is known to be 0."""
        if weight is not None:
            if self._weight is not None and not self._counted:
                raise RuntimeError("backward(weight=...): the optimizer_step of the previous one is missing")
            self._counted.clear()
        self._weight = weight
        self.last_loss = loss
        if self._is_part:
            if self._is_weighted not in (None, weight is not None):
                raise RuntimeError(MIXED_WEIGHTS)
            self._is_weighted = weight is not None
        if weight is not None and _is_known_zero(weight) and (self._parallel is None or self._parallel.skip_pass()):
            self.last_loss = None
            return False  # The mean over no items may not be finite, and neither are gradients of it times 0.
        if self._is_part and self._parallel is not None:
            self._parallel.note_loss(has_weight=weight is not None)
        return True

    def step(self, optimizer: Optimizer, scheduler: Any, clip_norm: float | None) -> bool:
        """Update the parameters if the window is complete; see `Model.optimizer_step`."""
        if optimizer is not self._only:
            self._note(optimizer)
        if self._weight is not None:
            self._add_weight(optimizer)
        if self._is_weighted is not None:
            self._note_weighting(optimizer)
        if not self._is_last_micro_batch:
            return False
        limit = self._clip_norm if clip_norm is None else clip_norm
        total = self._totals.pop(id(optimizer), None) if self._totals else None
        if self._parallel is not None and self._parallel.average_gradients(optimizer) and total is None:
            total = 0.0  # Another rank has a weight, and this one no loss.
        first = optimizer.param_groups[0]["params"]  # Nearly always enough to know, and cheaper than a call.
        if (not first or first[0].grad is None) and not _has_gradients(optimizer):
            if not _step_without_gradients(optimizer):
                return False
            self.num_steps += self._growth
        elif limit is None and total is None and self._report_gradients is None and self.scaler is None:
            optimizer.step()
            self.num_steps += self._growth
        elif not self._clip_and_step(optimizer, limit, total):
            optimizer.zero_grad(set_to_none=True)
            return False
        if scheduler is not None:
            scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        return True

    def step_with_closure(
        self, optimizer: Optimizer, scheduler: Any, clip_norm: float | None, closure: Callable[[], Any]
    ) -> None:
        """Let an optimizer step that computes the loss itself; see `Model.optimizer_step`."""
        if self.scaler is not None or (self._parallel is not None and self._parallel.has_shards):
            found = 'precision="fp16"' if self.scaler is not None else "sharded networks"
            raise ValueError(f'optimizer_step(closure=...): not for {found}; use precision="bf16", strategy="ddp"')
        if not (self._is_first_micro_batch and self._is_last_micro_batch):
            raise ValueError(
                "optimizer_step(closure=...): computes the loss of one batch, so accumulation_steps must be 1"
            )
        self._note(optimizer)
        limit = self._clip_norm if clip_norm is None else clip_norm
        report = self._report_gradients

        def evaluate() -> Any:
            with torch.enable_grad():
                loss = closure()
            if self._weight is not None:
                raise ValueError("optimizer_step(closure=...): its losses must have no weight in backward")
            self._is_weighted = None  # Those of another optimizer may have weights.
            self._finish_gradients(optimizer, limit)
            return self._mean_over_ranks(loss) if isinstance(loss, Tensor) else loss

        if _has_gradients(optimizer):  # SAM finds those of the weights as they are.
            self._finish_gradients(optimizer, limit)
        optimizer.step(evaluate)
        self._report_gradients = report  # Of the optimizers that follow.
        self.num_steps += self._growth
        if scheduler is not None:
            scheduler.step()
        optimizer.zero_grad(set_to_none=True)

    def _finish_gradients(self, optimizer: Optimizer, limit: float | None) -> None:
        """Average, report and clip the gradients of a whole step."""
        if self._parallel is not None:
            self._parallel.average_gradients(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._report_and_clip(optimizer, parameters, limit)
        self._report_gradients = None  # It is that of the first evaluation.

    def _mean_over_ranks(self, loss: Tensor) -> Tensor:
        if self._world.size == 1:
            return loss
        mean = loss.detach() * self._loss_weight  # The part of this rank in the samples, times the number of ranks.
        dist.all_reduce(mean)
        return mean / self._world.size

    @property
    def makes_steps(self) -> bool:
        """Whether the model uses `Model.optimizer_step`, as far as is known."""
        return bool(self._makes_steps)

    def set_optimizers(self, optimizers: Sequence[Optimizer], check_held: Callable[[Optimizer], None] | None) -> None:
        """Take the optimizers of the model, whose gradients a window without a step leaves behind.

        Args:
            optimizers: those that checkpoints hold.
            check_held: called with another one when it steps in a second window. One that is made for a step ends with
                it, and has nothing to be held.
        """
        self._trained, self._check_held = [*optimizers], check_held
        if self._makes_steps is None:
            self._before = _fingerprints(self._trained)

    def close_window(self, num_steps: int) -> Window:
        """End a window in which not just the only optimizer has stepped, in fp32 or bf16.

        What a loss has left in the parameters of an optimizer that has stepped before, or in a window that has ended
        before its optimizers have stepped, is cleared. A resumed run does not have these gradients either. The scale of
        the next losses of fp16 is adapted.

        Args:
            num_steps: what `num_steps` was before the window.

        Raises:
            FloatingPointError: gradients were not finite for so many windows in a row that no scale will help.
            RuntimeError: the losses of so many windows were passed to `backward`, and no optimizer has stepped in any.
        """
        self._num_windows += 1
        has_stepped, has_skipped = self.num_steps != num_steps, self._has_skipped
        self._has_skipped = False
        if has_stepped or has_skipped:
            if self.scaler is not None:
                self.scaler.update()
            if len(self._optimizers) > 1:
                _clear_gradients(self._noted())
        elif self._is_left_out():
            _clear_gradients([*self._trained, *self._noted()])
            self._forget_weights()
            return Window(is_step=False, is_skipped=True, is_left_out=True)
        if has_skipped:
            self.last_loss = None
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if has_skipped and not has_stepped else 0
        if self._skipped_in_a_row == _MAX_SKIPPED_IN_A_ROW:
            raise FloatingPointError(f"gradients were not finite in {_MAX_SKIPPED_IN_A_ROW} steps in a row")
        return Window(has_stepped or not has_skipped, has_skipped)

    def _is_left_out(self) -> bool:
        """Return whether the model uses `Model.optimizer_step`, but not in the window that ends."""
        if self._makes_steps is None and self.last_loss is not None:
            if self._before != _fingerprints(self._trained) or not any(map(_has_gradients, self._trained)):
                self._makes_steps = False  # It calls the method of an optimizer itself, or something else steps.
                return False
            self._not_stepped_in_a_row += 1
            if self._not_stepped_in_a_row == _MAX_SKIPPED_IN_A_ROW:
                raise RuntimeError(
                    f"no optimizer has stepped in {_MAX_SKIPPED_IN_A_ROW} accumulation windows: "
                    "train_step does not call optimizer_step(optimizer)"
                )
            return True
        return self._makes_steps is True

    def _forget_weights(self) -> None:
        self._weight = self._is_weighted = None
        self._counted.clear()
        self._totals.clear()
        self._are_weighted.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scaler and what is known of the model: tensors and plain containers."""
        state = {} if self.scaler is None else self.scaler.state_dict()
        return state if self._makes_steps is None else {**state, "makes_steps": self._makes_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; that of the scaler without effect if the format was or is not fp16."""
        state = dict(state_dict)
        self._makes_steps = state.pop("makes_steps", None)
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)

    def _note(self, optimizer: Optimizer) -> None:
        if not hasattr(optimizer, "param_groups"):
            raise TypeError(f"optimizer_step: needs an optimizer, not a {type(optimizer).__name__}")
        self._makes_steps = True
        is_held, window = self._check_held is None or optimizer in self._trained, self._num_windows
        if self._check_held is not None and not is_held:
            window = next((noted.window for noted in self._optimizers if noted.ref() is optimizer), window)
            if is_held := window != self._num_windows:
                self._check_held(optimizer)
                self._trained.append(optimizer)
        self._optimizers = [noted for noted in self._optimizers if noted.ref() not in (None, optimizer)]
        self._optimizers.append(_Noted(weakref.ref(optimizer), window))
        self._has_several |= len(self._optimizers) > 1
        self._only = optimizer if is_held and not self._has_several else _NO_OPTIMIZER
        self._growth = 1 if self._only is optimizer and self.scaler is None else 2

    def _noted(self) -> list[Optimizer]:
        """Return the optimizers that have stepped and still exist."""
        return [optimizer for noted in self._optimizers if (optimizer := noted.ref()) is not None]

    def _clip_and_step(self, optimizer: Optimizer, limit: float | None, total: Tensor | float | None) -> bool:
        """Unscale, divide by the weight, report, clip, step, in this order; return whether parameters changed."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.scaler is not None and not self._unscale(self.scaler, optimizer):
            self._has_skipped = True
            return False
        if total is not None:
            weight = self._mean_weight(total)
            if _is_known_zero(weight):
                return False
            # Without any item there is nothing to divide, which a device must not be asked about.
            divisor = torch.where(weight == 0, 1, weight) if isinstance(weight, Tensor) else weight
            for values in self._alike(gradient_values(parameters)):
                torch._foreach_div_(values, divisor)
        self._report_and_clip(optimizer, parameters, limit)
        optimizer.step()
        self.num_steps += self._growth
        return True

    def _report_and_clip(self, optimizer: Optimizer, parameters: list[Tensor], limit: float | None) -> None:
        """Report the norm of the gradients, and scale them down to the limit, if there is one."""
        if limit is None and self._report_gradients is None:
            return
        norm = total_norm(self._alike(gradient_values(parameters)))
        if self._report_gradients is not None:
            self._report_gradients(optimizer, parameters, norm)
        if limit is not None:
            for each in self._alike(parameters):
                nn.utils.clip_grads_with_norm_(each, limit, norm)

    def _alike(self, tensors: list[Tensor]) -> list[list[Tensor]]:
        return [tensors] if self._parallel is None or not self._parallel.has_shards else alike(tensors)

    def _unscale(self, scaler: torch.amp.GradScaler, optimizer: Optimizer) -> bool:
        """Divide gradients by the scale, and return whether they are finite. All ranks agree."""
        if scaler._scale is None:
            scaler.scale(torch.zeros((), device=self._device))  # It makes its scale. This rank had no loss yet.
        state = scaler._per_optimizer_states[id(optimizer)]
        found = dict[torch.device, Tensor]()
        for each in self._alike([p for group in optimizer.param_groups for p in group["params"]]):
            part: Any = SimpleNamespace(param_groups=[{"params": each}])
            scaler.unscale_(part)
            _add_flags(found, scaler._per_optimizer_states.pop(id(part))["found_inf_per_device"])
        is_finite = not any(flag.item() for flag in found.values())
        _add_flags(found, state["found_inf_per_device"])  # Of its step before in this window.
        state["found_inf_per_device"] = found
        return is_finite

    def _add_weight(self, optimizer: Optimizer) -> None:
        """Add the weight of the last backward to the optimizer's weight in this window."""
        assert self._weight is not None
        if id(optimizer) not in self._counted:
            self._counted.add(id(optimizer))
            if self._is_part:
                self._totals[id(optimizer)] = self._totals.get(id(optimizer), 0.0) + self._weight

    def _note_weighting(self, optimizer: Optimizer) -> None:
        """Require that all losses of a window have a weight, or none, for each optimizer."""
        assert self._is_weighted is not None
        if self._are_weighted.setdefault(id(optimizer), self._is_weighted) != self._is_weighted:
            raise RuntimeError(MIXED_WEIGHTS)
        self._is_weighted = None
        if self._is_last_micro_batch:
            self._are_weighted.clear()

    def _mean_weight(self, total: Tensor | float) -> Tensor | float:
        """Return the weight of the window over all ranks, divided by their number, as their gradients are."""
        if self._world.size == 1:
            return total
        if isinstance(total, Tensor):
            weight = total.detach().to(self._device, torch.float32, non_blocking=True, copy=True)
        else:
            weight = torch.full((), total, dtype=torch.float32, device=self._device)  # Waits for no device.
        dist.all_reduce(weight)
        return weight / self._world.size


def gradient_values(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return the gradients of parameters, of sparse ones the values of all indices, each once."""
    values = []
    for p in parameters:
        assert p.grad is not None
        if p.grad.is_sparse:
            p.grad = p.grad.coalesce()
        values.append(p.grad._values() if p.grad.is_sparse else p.grad)
    return values


def _add_flags(flags: dict[torch.device, Tensor], others: dict[torch.device, Tensor]) -> None:
    for device, other in others.items():
        flags[device] = torch.maximum(flags.get(device, other), other)


def _is_known_zero(weight: Tensor | float) -> bool:
    """Return whether a weight is 0, if it can be read without waiting for a device."""
    return weight.is_cpu and weight.item() == 0 if isinstance(weight, Tensor) else weight == 0


def _clear_gradients(optimizers: Iterable[Optimizer]) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)


def _fingerprints(optimizers: Iterable[Optimizer]) -> list[tuple[int, float]]:
    """Return what tells whether parameters have changed: how often each has in place, and the sum of each."""
    parameters = [p for each in optimizers for group in each.param_groups for p in group["params"]]
    return [(p._version, float(_sum(full_tensor(p.detach())))) for p in parameters]


def _sum(tensor: Tensor) -> Tensor:
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real.sum(dtype=sum_dtype(tensor.device))


def _has_gradients(optimizer: Optimizer) -> bool:
    """Return whether any parameter has a gradient. All ranks agree."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                return True
    return False


def _step_without_gradients(optimizer: Optimizer) -> bool:
    """Let an optimizer step, and return whether it has changed a parameter.

    Those of PyTorch do nothing without gradients. Others may compute something of their own, or take the gradients
    from copies of the parameters.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    before = [p._version for p in parameters]
    optimizer.step()
    return _has_gradients(optimizer) or before != [p._version for p in parameters]
