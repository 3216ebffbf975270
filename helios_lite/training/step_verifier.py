"""Computes a step twice, and compares all bits before the weights change (`verify_every_steps`)."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import socket
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_pre_hooks, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from helios_lite.metrics.accumulator import MetricAccumulator
from helios_lite.metrics.digests import Digests, bits_of, digest_of_elements
from helios_lite.model_internals.attributes import (
    hooked_modules,
    named_networks,
    optimizers,
    share_groups,
    stateful_parts,
)
from helios_lite.model_internals.rollback import Rollback, elements
from helios_lite.model_internals.step_tap import Loss, StepTap
from helios_lite.nested import leaves
from helios_lite.networks.dtensors import is_dtensor
from helios_lite.processes import rng
from helios_lite.state import TrainingState
from helios_lite.training.session import Session

logger = logging.getLogger("helios_lite")
_Trace = dict[tuple[str, int], Tensor]
"""What a pass has computed, in order: digests by what they are of, and the how manieth of its name each is."""
_AVERAGED = "the gradient, averaged over the ranks, of "
"""Where a rank differs in nothing but this, another one is the cause."""


class _UpdateReached(BaseException):
    """Ends the first pass before the update; it is no Exception, which a step may catch."""


class _OutputHook:
    """A forward hook. That of a module which a step copies or pickles does nothing.

    Args:
        module: the module that has it.
        note: is called with module, inputs and output; None for nothing.
        copies: gets the copies of the module, which have a hook as well.
    """

    def __init__(
        self,
        module: nn.Module | None = None,
        note: Callable[..., None] | None = None,
        copies: list[nn.Module] | None = None,
    ) -> None:
        self._module, self._note, self._copies = module, note, copies

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._note is not None:
            self._note(module, inputs, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> _OutputHook:
        if self._copies is not None and isinstance(copied := memo.get(id(self._module)), nn.Module):
            self._copies.append(copied)
        return _OutputHook()

    def __reduce__(self) -> Any:
        return _OutputHook, ()


class StepVerifier:
    """Computes a step twice from the same state, on the same batch, and compares all bits before each update.

    `train_step` is called twice for each micro-batch of the step. What the first call has changed is taken back: random
    numbers, gradients, buffers, attributes of the model and what they hold, the batch, and what it has logged. It ends
    where the optimizer is about to step. If a step has several updates, it goes on to its end, and their changes of the
    weights are taken back too. The second call is the one that counts, so a training has the same bits as without.

    Compared are the outputs of all modules and the gradients there, the losses, and the gradients of all parameters, by
    digests. Only the step at work is watched; other steps are as fast as without.

    Args:
        session: the session.
        state: the counters of the training.
    """

    def __init__(self, session: Session, state: TrainingState) -> None:
        self._session, self._state = session, state
        self._tap = StepTap(
            train_step=self._train_step,
            on_loss=self._note_loss,
            on_log=lambda name, value, reduce: None,
            before_step=lambda name, optimizer: None,
            after_optimizer_step=self._after_optimizer_step,
        )
        self._digests = Digests()
        self._is_attached = False
        self._first_step: int | None = None  # Of this start; what cannot be verified is found there, and not later.
        self._has_several_updates = False  # As far as is known.
        self._optimizers: list[Optimizer] = []
        self._names: dict[int, str] = {}  # Of parameters by identity.
        # Of the pass at work, and of the first one: what has been computed, and the number of updates.
        self._trace: _Trace | None = None
        self._counts = Counter[str]()
        self._num_updates = 0
        self._on_outputs: list[RemovableHandle] = []
        self._fault: RuntimeError | None = None
        self._first: _Trace | None = None  # None in the first pass.

    def prepare(self) -> float:
        """Let the next step be computed twice, if it is due; return after which step this must be called again.

        Call on every rank, between two steps.
        """
        every, step = self._session.options.verify_every_steps, self._state.step
        if every is None:
            return math.inf
        if self._first_step is None:
            self._first_step = step + 1
        due = self._first_step if step < self._first_step else step + every - step % every
        if (due == step + 1) != self._is_attached:
            self.close() if self._is_attached else self._attach()
        return due if self._is_attached else due - 1

    def close(self) -> None:
        """Let steps be computed once."""
        if self._is_attached:
            self._is_attached = False
            self._tap.remove()

    def _attach(self) -> None:
        self._is_attached = True
        self._tap.attach(self._session.model)

    def _train_step(self, batch: Any, state: TrainingState) -> None:
        """Compute a micro-batch twice. Call on every rank."""
        context, model = self._session.context, self._session.model
        context.parallel.reshard()
        self._optimizers = [*optimizers(stateful_parts(model)).values()]
        self._has_several_updates |= len(self._optimizers) > 1
        parameters = [
            (f"{name}.{path}", p) for name, net in named_networks(model).items() for path, p in net.named_parameters()
        ]
        self._names = {id(p): name for name, p in parameters}
        held = {} if self._has_several_updates else {id(each): (name, each) for name, each in self._trained(parameters)}
        is_first = state.step + 1 == self._first_step
        for p in self._copied(parameters):
            held.pop(id(p), None)
        with self._watching(parameters):
            opened = [context.precision, model._tables, *context.parallel.averages()]
            before = Rollback({"": model, "batch": batch}, opened, held)
            versions = [_version(tensor) for _, tensor in held.values()]
            digests = self._digests_of(held.values()) if is_first else {}  # Later versions tell, which takes no time.
            random_numbers = rng.get_state(context.device)
            self._begin_pass(None)
            with context.logging_to(MetricAccumulator(context.device)), contextlib.suppress(_UpdateReached):
                self._tap.train_step(batch, state)
            context.parallel.reshard()
            for (name, tensor), version in zip(held.values(), versions, strict=True):
                if _has_changed(tensor, *version):
                    raise _not_taken_back(name)
            for name, digest in self._digests_of(held.values()).items() if is_first else ():
                if digest != digests[name]:
                    raise _not_taken_back(name)
            before.restore()
            del before  # Its copies are not needed any more.
            rng.set_state(random_numbers, context.device)
            self._begin_pass(self._trace)
            self._tap.train_step(batch, state)
            if self._fault is not None:
                raise self._fault  # train_step has caught it, as one that skips what does not fit into memory.
            self._compare(at_end=True)
            self._trace = self._first = None

    def _begin_pass(self, first: _Trace | None) -> None:
        self._first, self._trace, self._num_updates = first, {}, 0
        self._counts.clear()
        self._leave_outputs()

    def _leave_outputs(self) -> None:
        """Remove the hooks at outputs of a pass. An output may be a parameter or a part of the batch, which stay."""
        for handle in self._on_outputs:
            handle.remove()
        self._on_outputs.clear()

    def _trained(self, parameters: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yield what only steps of optimizers change, by name: parameters of networks, and states of optimizers."""
        yield from parameters
        for optimizer in self._optimizers:
            for p, state in optimizer.state.items():
                for name, value in leaves(state):
                    if isinstance(value, Tensor):
                        yield f"{name} of {self._names.get(id(p), 'an optimizer')}", value

    def _copied(self, parameters: Sequence[tuple[str, Tensor]]) -> list[Tensor]:
        """Return the parameters that no optimizer trains, which train_step may change itself, and which are copied.

        None if they have more elements than what is trained, as a large network has to which a small one is added.
        """
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        trained = {id(p): p.numel() for group in groups for p in group["params"] if p.requires_grad}
        others = {id(p): p for _, p in parameters if id(p) not in trained}
        return [*others.values()] if sum(p.numel() for p in others.values()) <= sum(trained.values()) else []

    def _digests_of(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
        found = {name: digest for name, tensor in tensors if (digest := self._digest(tensor)) is not None}
        return dict(zip(found, _numbers(found.values()), strict=True))

    @torch.no_grad()
    def _digest(self, tensor: Tensor) -> Tensor | None:
        return None if (own := elements(tensor)) is None else digest_of_elements(self._digests, own)

    # What is seen of a pass.

    @contextlib.contextmanager
    def _watching(self, parameters: list[tuple[str, nn.Parameter]]) -> Iterator[None]:
        """A context in which modules, parameters and optimizers are watched."""
        copies: list[nn.Module] = []
        with contextlib.ExitStack() as stack:
            for name, net in named_networks(self._session.model).items():
                for path, module in hooked_modules(net):
                    where = f"{name}.{path}" if path else name
                    watch = functools.partial(self._note_output, f"{where} ({type(module).__name__})")
                    hook = _OutputHook(module, watch, copies)
                    stack.callback(module.register_forward_hook(hook).remove)
            stack.callback(self._leave_outputs)
            stack.callback(_remove_hooks, copies)
            # Of several ranks, or if they are clipped, those that are used do not show where a difference comes from.
            is_needed = self._session.world.size > 1 or self._session.options.clip_norm is not None
            for name, p in parameters if is_needed else ():
                if p.requires_grad and not is_dtensor(p):
                    note = self._noting(f"the gradient of {name}")
                    stack.callback(p.register_hook(note).remove)  # type: ignore[no-untyped-call]
            handle = register_optimizer_step_pre_hook(self._before_update)
            stack.callback(handle.remove)
            # Before a hook that makes the step itself, of a sharded network. There is no public way to be the first.
            cast(OrderedDict[int, Any], _global_optimizer_pre_hooks).move_to_end(handle.id, last=False)
            yield

    def _note(self, name: str, tensor: Tensor) -> None:
        """Note what a pass has computed; outside of one, or while a compiler looks, nothing is noted."""
        if self._trace is None or torch.compiler.is_compiling():
            return
        if (digest := self._digest(tensor)) is not None:
            self._counts[name] += 1
            self._trace[name, self._counts[name]] = digest

    def _noting(self, name: str) -> Callable[[Tensor], None]:
        return functools.partial(self._note, name)

    def _note_output(self, where: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        for _, tensor in leaves(output):
            if isinstance(tensor, Tensor):
                self._note(f"the output of {where}", tensor)
                if tensor.requires_grad:
                    note = self._noting(f"the gradient at the output of {where}")
                    self._on_outputs.append(tensor.register_hook(note))  # type: ignore[no-untyped-call]

    def _note_loss(self, loss: Loss) -> None:
        self._note("the loss", torch.tensor(loss[0], dtype=torch.float64))

    def _before_update(self, optimizer: Optimizer, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Compare what both passes have computed up to an update; end the first pass if there is one update only.

        PyTorch calls it before the step of any optimizer.
        """
        with_gradient = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        is_inner = any(share_groups(optimizer, other) for other in self._optimizers)  # Of one that wraps another.
        is_known = any(optimizer is other for other in self._optimizers)
        if self._trace is None or is_inner or not (is_known or any(id(p) in self._names for p in with_gradient)):
            return
        if any(map(callable, (*arguments[1:], *options.values()))):
            raise ValueError(
                f"verify_every_steps: {type(optimizer).__name__} computes the loss inside of its step (closure=...), "
                "so nothing can be compared before the weights change; leave verify_every_steps out"
            )
        prefix = "the gradient in the update of " if self._session.world.size == 1 else _AVERAGED
        for p in with_gradient:
            self._note(prefix + self._names.get(id(p), "a parameter of no network"), p.grad)
        self._reach_update()

    def _after_optimizer_step(self, has_changed: bool) -> None:
        """Take a call that was no update, as in the middle of a window, for one: what follows it is done once."""
        if not (has_changed or self._has_several_updates or self._num_updates > 0 or self._trace is None):
            self._reach_update()

    def _reach_update(self) -> None:
        self._num_updates += 1
        if self._first is None:
            if not self._has_several_updates:
                raise _UpdateReached
        elif self._has_several_updates or self._num_updates == 1:
            self._compare(at_end=False)
        else:
            self._has_several_updates = True
            if self._session.world.is_main:
                logger.warning(
                    "verify_every_steps: train_step makes several updates of one batch; in step %d only the first one "
                    "was verified, in later steps all of them are",
                    self._state.step + 1,
                )
            self._trace = None

    # The comparison.

    def _compare(self, *, at_end: bool) -> None:
        """Compare what the second pass has computed with the first one. Call on every rank.

        Args:
            at_end: whether the pass has ended, so that all is compared that follows the last update.

        Raises:
            RuntimeError: it differs, on any rank; raised on every rank.
        """
        if self._trace is None or self._first is None:
            return
        if at_end and self._num_updates > 0 and not self._has_several_updates:
            return  # The first pass has ended at the update, before which all was compared.
        is_whole = at_end or not self._has_several_updates  # Otherwise the first pass went on after this update.
        mine = _first_difference(self._first, self._trace, is_whole=is_whole)
        world = self._session.world
        place = f"{socket.gethostname()}, {self._session.device}"
        found = [(rank, *each) for rank, each in enumerate(world.gather(mine and (*mine, place))) if each is not None]
        if not found:
            return
        causes = [each for each in found if not each[1].startswith(_AVERAGED)]
        where = "; ".join(f"on rank {rank} ({place}) {how} {what}" for rank, what, how, place in causes or found)
        unknown = "" if causes else ". Which rank is the cause cannot be told, as all of them have their part in it"
        self._fault = RuntimeError(
            f"verify_every_steps: step {self._state.step + 1}, computed twice, is not the same: {where}{unknown}. The "
            "update was not made. Either the hardware is faulty, or a kernel is not deterministic "
            "(deterministic=True finds those that PyTorch knows of), or train_step uses what is not taken back in "
            "between: a clock, a file, a global variable, something of another library"
        )
        raise self._fault


def _remove_hooks(copies: Iterable[nn.Module]) -> None:
    """Remove the hooks that copies of modules have taken along."""
    for module in copies:
        for key, hook in [*module._forward_hooks.items()]:
            if isinstance(hook, _OutputHook):
                del module._forward_hooks[key]


def _version(tensor: Tensor) -> tuple[int, Tensor | None]:
    """Return how often a tensor has changed in place, 0 if PyTorch does not count, and its memory, which is held."""
    return 0 if tensor.is_inference() else tensor._version, elements(tensor)


def _has_changed(tensor: Tensor, version: int, own: Tensor | None) -> bool:
    """Return whether a tensor has changed since `_version`, or has new memory with other values."""
    now, memory = _version(tensor)
    if now != version or own is None or memory is None or own.layout is not torch.strided:
        return now != version
    if own.data_ptr() == memory.data_ptr():
        return False
    first, second = (torch.view_as_real(each) if each.is_complex() else each for each in (own, memory))
    return first.shape != second.shape or not torch.equal(bits_of(first), bits_of(second))


def _not_taken_back(name: str) -> RuntimeError:
    return RuntimeError(
        f"verify_every_steps: train_step has changed {name} before the step of an optimizer, or otherwise than by the "
        "step of a PyTorch optimizer, which is not taken back for the second time that the step is computed; do it "
        "after optimizer_step, or leave verify_every_steps out"
    )


def _first_difference(first: _Trace, second: _Trace, *, is_whole: bool) -> tuple[str, str] | None:
    """Return what the second pass has computed otherwise first, and how; None if nothing is.

    Args:
        first, second: what the passes have computed.
        is_whole: whether the second one has come as far as the first one.
    """
    numbers = _numbers([first.get(key, digest) for key, digest in second.items()])
    for (key, _), one, other in zip(second.items(), numbers, _numbers(second.values()), strict=True):
        if key not in first:
            return key[0], "there is more often"
        if one != other:
            return key[0], "the first difference is in"
    missing = next((key[0] for key in first if key not in second), None) if is_whole else None
    return None if missing is None else (missing, "there is less often")


def _numbers(digests: Iterable[Tensor]) -> list[int]:
    """Return digests as numbers; of each device they are read at once."""
    digests = [*digests]
    found: dict[torch.device, list[int]] = {}
    for i, digest in enumerate(digests):
        found.setdefault(digest.device, []).append(i)
    numbers = [0] * len(digests)
    for indices in found.values():
        for i, number in zip(indices, torch.stack([digests[i] for i in indices]).tolist(), strict=True):
            numbers[i] = number
    return numbers
