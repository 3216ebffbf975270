"""Averages the gradients of replicas over the ranks, by hooks on their parameters."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import weakref
from array import array
from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable
from torch.optim.optimizer import register_optimizer_step_pre_hook

from helios_lite.networks.dtensors import is_dtensor
from helios_lite.processes.world import World

_FIRST_BYTES, _BUCKET_BYTES = 2**20, 25 * 2**20
"""The sizes of a network's bucket that is sent first, and of the others: those of DistributedDataParallel."""
_NUM_PLACES, _MODULUS = 5, 4096
"""A report ends with so many numbers, which are the same on ranks that are at the same place; modulo the second."""
MIXED_WEIGHTS = (
    "backward: losses with a weight and losses without one are in the same step, whose mean is not defined; give all "
    "of them a weight (that of a mean over samples is their number), or add them up and call backward once"
)
_USED_IN_HOOK = "backward: a hook has used or cleared a gradient before it was averaged over the ranks"
_END = _MODULUS - 1  # Where the number of the step stands, the end of a window.


@dataclasses.dataclass(eq=False)
class _Bucket:
    """Gradients that are summed over the ranks in one message.

    Attributes:
        indices: of the parameters.
        message: the gradients one after the other, divided by the number of ranks; then the report, if it can travel
            in buckets.
        parts: views of the message, one for each gradient.
        report: a view of the end of the message; zeros, unless it is used.
        missing: indices of the parameters whose gradients are awaited before the message is sent.
        work: the message on its way.
    """

    indices: list[int]
    message: Tensor
    parts: list[Tensor]
    report: Tensor
    missing: set[int] = dataclasses.field(default_factory=set)
    work: Any = None

    def expect(self, touched: set[int]) -> None:
        """Set what the next pass touches."""
        self.missing = touched.intersection(self.indices)

    def send(self) -> None:
        """Begin to sum the message over the ranks."""
        message = torch.view_as_real(self.message) if self.message.is_complex() else self.message
        self.work = dist.all_reduce(message, async_op=True)

    def wait(self) -> None:
        """Wait until the message has arrived, if it is on its way."""
        if self.work is not None:
            self.work.wait()
            self.work = None


@dataclasses.dataclass
class _Pass:
    """What a backward pass has touched.

    Attributes:
        touched: indices of the parameters in buckets that any rank has touched.
        apart: indices of other parameters, whose gradients were averaged without a bucket.
        buckets: those with any of these parameters.
        has_weights: whether its losses have weights, None if it does not say.
        report: what all ranks have reported of parameters and losses, if it was the same, and no bucket was sent again.
    """

    touched: set[int]
    apart: set[int]
    buckets: list[_Bucket]
    has_weights: bool | None
    report: bytes


class GradientReducer:
    """Averages gradients over the ranks at the end of every backward pass.

    Gradients are sent in buckets, and with them each rank reports which parameters its pass has touched. A gradient
    that no rank has stays None, and a rank without one counts as zero. Parameters that no rank has touched since they
    were averaged are left alone, so that passes add up. A pass that does not synchronize just notes what it touches.

    A pass expects to touch what the same pass of an earlier step has touched. It sends a bucket as soon as all that is
    expected in it is there, while the backward pass goes on, and the report with the last one. What comes unexpectedly
    follows at the end, if need be by sending a bucket again. The result does not depend on what was expected: a resumed
    run, which at first expects nothing, has the same bits.

    Between two optimizer steps all ranks must run the same number of passes, or else no more than all have run
    together before: a rank whose optimizer steps takes part in those that it lacks, without gradients. Anything else is
    an error.

    Args:
        world: the processes.
    """

    def __init__(self, world: World) -> None:
        self._world, self._group = world, cpu_group(dist.group.WORLD)
        self._networks: list[nn.Module] = []
        self._parameters: list[nn.Parameter] = []
        self._kinds: list[Any] = []  # Identities, data types, devices and shapes of the parameters.
        self._index_of: dict[int, int] = {}  # By identity.
        self._trained: set[int] = set()  # Identities of the parameters that are in buckets.
        self._newly_trained: set[int] = set()  # Of those that get into buckets when the next window begins.
        self._hooks: list[Any] = []
        self._buckets: list[_Bucket] = []
        self._bucket_of: dict[int, _Bucket] = {}
        # What this rank reports of each parameter, a number of three digits: whether it was touched, whether its
        # bucket was sent before that, and whether its gradient is sparse. Sums over the ranks keep the digits apart.
        # Then of its losses: whether there is one without a weight, or one with. Then where it is.
        self._report = self._nothing = array("q")
        self._message = torch.empty(0)
        self._again, self._sparse = world.size + 1, (world.size + 1) ** 2
        self._passes: dict[tuple[int, int], _Pass] = {}  # The last of each step and number.
        self._num_passes: dict[int, int] = {}  # Before a step, at most.
        self._num_steps = self._num_touched = 0  # In the last window; before the next step.
        # Where this rank is: the window, the step in it, the pass before the step; which optimizers have stepped; the
        # number of messages.
        self._window = self._step = self._number = self._finished = self._num_sent = 0
        self._place = array("q")
        self._has_weights = False  # The losses of the last pass.
        self._averaged: dict[int, Tensor] = {}  # Gradients that are averages, by the identity of the parameter.
        self._finishing: torch.optim.Optimizer | None = None  # It steps next, and has averages.
        self._queue: list[_Bucket] = []  # Expected in this pass and not yet sent, the next one last.
        self._pass: int | None = None  # PyTorch's number of the backward pass that goes on.
        self._is_on = self._syncs = True
        self._step_hook = register_optimizer_step_pre_hook(functools.partial(_tell_of_step, weakref.ref(self)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def add(self, net: nn.Module) -> None:
        """Average the gradients of a network from now on. Call on every rank, in the same order."""
        self._networks.append(net)
        self.refresh()

    def close(self) -> None:
        """Remove all hooks. Gradients are not averaged any more."""
        for hook in (*self._hooks, self._step_hook):
            hook.remove()

    def refresh(self) -> list[nn.Parameter]:
        """Find the parameters of the networks, and return those that are new."""
        found = {
            id(p): p for net in self._networks for p in net.parameters() if p.is_floating_point() or p.is_complex()
        }
        kinds = [(key, p.dtype, p.device, p.shape) for key, p in found.items()]
        known = {id(p) for p in self._parameters}
        if kinds != self._kinds:
            self._parameters, self._kinds = [*found.values()], kinds
            self._newly_trained.update(key for key, p in found.items() if p.requires_grad and key not in known)
            self._make_buckets()
        return [p for key, p in found.items() if key not in known]

    def begin_micro_batch(self, *, begins_window: bool, syncs: bool) -> None:
        """Begin a micro-batch, of a window whose gradients begin at zero.

        Args:
            begins_window: whether it is the first of its window.
            syncs: whether its backward passes are averaged.
        """
        self._syncs = syncs
        if not begins_window:
            return
        if self._step != _END:
            self._num_steps = self._step
        self._window, self._step, self._number, self._num_touched = self._window + 1, 0, 0, 0
        self._averaged.clear()
        self._has_weights = False
        self._report[:] = self._nothing
        if self._newly_trained:
            self._make_buckets()

    def note_loss(self, *, has_weight: bool) -> None:
        """Report with the next pass whether a loss has a weight."""
        self._report[len(self._parameters)] = self._again if has_weight else 1

    def finish(self, optimizer: torch.optim.Optimizer) -> bool:
        """Take part in the passes that this rank has not run, before an optimizer steps. Call on every rank.

        Gradients of the optimizer's parameters that no backward pass has computed are averaged, too.

        Returns:
            Whether the losses of the last pass have weights.

        Raises:
            ValueError: the optimizer trains a tensor that is in none of the networks.
            RuntimeError: the ranks are at different places.
        """
        self._pass, self._finishing = None, optimizer  # The pass is one that an error has ended.
        expected = self._num_passes.get(self._step, int(self._step == 0)) if self._buckets else 0
        while self._number < expected:
            self._end_pass()
        self._average_others(optimizer)
        self._num_passes[self._step] = max(expected, self._num_touched)
        self._passes.pop((self._step, self._number), None)
        self._step, self._number, self._num_touched = self._step + 1, 0, 0
        which = next((self._index_of.get(id(p), 0) for group in optimizer.param_groups for p in group["params"]), 0)
        self._finished = (31 * self._finished + which + 1) % _MODULUS
        return self._has_weights

    def _average_others(self, optimizer: torch.optim.Optimizer) -> None:
        """Average gradients of an optimizer that are no averages: computed by hand, or without synchronization."""
        with_gradient = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        others = [p for p in with_gradient if self._averaged.pop(id(p), None) is not p.grad and not is_dtensor(p)]
        for p in others:
            if id(p) not in self._index_of:
                raise ValueError(
                    f"optimizer_step: trains a tensor of shape {tuple(p.shape)} that was in no network passed to "
                    "parallelize when the epoch began, so that every rank would train its own; add parameters in setup "
                    "or on_training_epoch_start"
                )
            if 0 in p.grad.stride():
                p.grad = p.grad.contiguous()  # Several elements are one in memory.
            self._note(self._index_of[id(p)], p)
        if others:
            self._end_pass()

    def _before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Do for an optimizer that a program steps itself what `finish` does; PyTorch calls it."""
        if not any(id(p) in self._index_of for group in optimizer.param_groups for p in group["params"]):
            return
        if self._pass is not None:
            raise RuntimeError(_USED_IN_HOOK)
        if self._finishing is optimizer:
            self._finishing = None
        else:
            self._average_others(optimizer)

    def skip_pass(self) -> None:
        """Take part in a backward pass without a gradient. Call on every rank, some of which run it."""
        if self._syncs:
            self._pass = None
            self._end_pass()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which ranks may run different backward passes, which are not averaged."""
        self._is_on = False
        try:
            yield
        finally:
            self._is_on = True

    def check_place(self) -> None:
        """Check that all ranks have come to the end of a window. Call on every rank, before they communicate otherwise.

        The message goes where those of a pass go. A rank that is in a pass sends a message of another size, by which
        gloo ends the processes.

        Raises:
            RuntimeError: the ranks are at different places.
        """
        if self._step != _END:
            self._num_steps, self._step, self._number = self._step, _END, 0
        rides = any(len(bucket.report) for known in self._passes.values() for bucket in known.buckets)
        total = torch.tensor([*self._where(_END), 0])
        expected = total * self._world.size
        dist.all_reduce(total, group=None if rides else self._group)
        self._compare(total, expected)

    def state_dict(self) -> dict[str, Any]:
        """Return which parameters were ever trained, and the numbers of passes; the same on all ranks.

        The bits of sums over more than two ranks depend on the former.
        """
        trained = self._trained | self._newly_trained
        return {"trained": [id(p) in trained for p in self._parameters], "passes": dict(self._num_passes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` has returned."""
        self._num_passes = dict(state["passes"])
        if len(state["trained"]) == len(self._parameters):
            self._trained = {id(p) for p, was in zip(self._parameters, state["trained"], strict=True) if was}
            self._make_buckets()

    def _make_buckets(self) -> None:
        """Hook the parameters; divide those that were ever trained into buckets, the last defined one first."""
        for hook in self._hooks:
            hook.remove()
        own = weakref.ref(self)  # A parameter that held this object by its hook would never be let go.
        self._hooks = [hook_gradient(p, functools.partial(_tell, own, i)) for i, p in enumerate(self._parameters)]
        self._trained = {id(p) for p in self._parameters if id(p) in self._trained | self._newly_trained}
        self._newly_trained.clear()
        self._index_of = {id(p): index for index, p in enumerate(self._parameters)}
        index_of = {key: index for key, index in self._index_of.items() if key in self._trained}
        contents = list[list[int]]()
        for net in self._networks:
            filled = dict[Any, list[list[int]]]()
            room = dict[Any, int]()
            for p in reversed([*net.parameters()]):
                if id(p) in index_of:
                    kind = p.dtype, p.device
                    lists = filled.setdefault(kind, [[]])
                    if room.setdefault(kind, _FIRST_BYTES) <= 0:
                        lists.append([])
                        room[kind] = _BUCKET_BYTES
                    lists[-1].append(index_of.pop(id(p)))
                    room[kind] -= p.nbytes
            contents = [*(indices for lists in filled.values() for indices in lists), *contents]
        self._report = array("q", [0] * (len(self._parameters) + 1 + _NUM_PLACES))
        self._nothing = array("q", self._report)
        self._message = torch.frombuffer(self._report, dtype=torch.int64)  # In the same memory.
        # Exact in the message of a bucket of the CPU; a device would have to be waited for.
        trained = [self._parameters[i] for indices in contents for i in indices]
        rides = self._world.size < 256 and all(p.is_cpu and p.dtype in (torch.float32, torch.float64) for p in trained)
        self._buckets = [self._make_bucket(indices, len(self._report) if rides else 0) for indices in contents]
        self._bucket_of = {index: bucket for bucket in self._buckets for index in bucket.indices}
        self._passes.clear()

    def _make_bucket(self, indices: list[int], report_size: int) -> _Bucket:
        parameters = [self._parameters[i] for i in indices]
        sizes = [*(p.numel() for p in parameters), report_size]
        message = torch.zeros(sum(sizes), dtype=parameters[0].dtype, device=parameters[0].device)
        *parts, report = torch.split(message, sizes)
        return _Bucket(indices, message, [part.view_as(p) for part, p in zip(parts, parameters, strict=True)], report)

    def _note(self, index: int, p: Tensor) -> None:
        """Note that a gradient has changed."""
        if p.grad is None:
            raise RuntimeError(_USED_IN_HOOK)
        bucket = self._bucket_of.get(index)
        report = 1 if bucket is None or bucket.work is None else 1 + self._again
        self._report[index] = report + self._sparse if p.grad.is_sparse else report

    def _ready(self, index: int, p: Tensor) -> None:
        """Note that a backward pass has added to a gradient, and send what is complete. PyTorch calls it."""
        if not self._is_on:
            return
        number = torch._C._current_graph_task_id()
        if self._syncs and number != self._pass:
            self._begin_pass()
            self._pass = number
            Variable._execution_engine.queue_callback(self._end_pass)
        self._note(index, p)
        if not self._syncs:
            return
        if index in self._bucket_of and len(p._post_accumulate_grad_hooks) == 1:  # Others may change the gradient yet.
            self._bucket_of[index].missing.discard(index)
            while len(self._queue) > 1 and not self._queue[-1].missing:
                self._send(self._queue.pop())

    def _where(self, number: int) -> list[int]:
        """Return numbers that are the same on ranks that are at the same place, in the pass with that number."""
        places = self._window, self._step, number, self._finished, self._num_sent
        return [place % _MODULUS for place in places]

    def _begin_pass(self) -> None:
        """Set what is expected. Where nothing is known it is what another rank that is elsewhere may send next."""
        self._place = array("q", self._where(self._number))
        follows = (self._step + 1, 0) if self._step + 1 < self._num_steps else (0, 0)
        expected = self._passes.get((self._step, self._number)) or self._passes.get(follows)
        for bucket in self._buckets:
            bucket.wait()  # Of a pass that an error has ended.
            bucket.expect(set() if expected is None else expected.touched)
        self._queue = [] if expected is None else expected.buckets[::-1]
        for index, p in enumerate(self._parameters) if any(self._report[: len(self._parameters)]) else ():
            if p.grad is None:
                self._report[index] = 0  # Cleared since it was noted.

    def _send(self, bucket: _Bucket) -> None:
        """Begin to sum the gradients of a bucket over the ranks."""
        with torch.no_grad():
            for index, part in zip(bucket.indices, bucket.parts, strict=True):
                gradient = self._parameters[index].grad
                if gradient is None and self._report[index]:
                    raise RuntimeError(_USED_IN_HOOK)
                if gradient is None or gradient.is_sparse:
                    part.zero_()
                else:
                    torch.mul(gradient, 1.0 / self._world.size, out=part)
        bucket.send()
        self._num_sent += 1

    def _end_pass(self) -> None:
        """Send what is left, and put the averages in place."""
        if self._pass is None:
            self._begin_pass()
        self._pass = None
        key, mine = (self._step, self._number), self._report[:-_NUM_PLACES].tobytes()
        sums = self._meet_other_ranks()
        known = self._passes.get(key)
        if known is None or sums is not None or known.report != mine:
            known = self._passes[key] = self._send_rest(sums, mine)
        for bucket in self._buckets:
            bucket.wait()  # Also those that were expected in vain.
        for bucket in known.buckets:
            self._put_averages(bucket, known.touched)
        for index in (*known.touched, *known.apart):
            p = self._parameters[index]
            self._averaged[id(p)] = p.grad  # type: ignore[assignment]
        self._report[:] = self._nothing
        self._number += 1
        if known.buckets or known.apart:
            self._num_touched = self._number
            self._has_weights = self._has_weights if known.has_weights is None else known.has_weights

    def _send_rest(self, sums: list[int] | None, mine: bytes) -> _Pass:
        """Send what was not expected, and what was sent too early.

        Args:
            sums: of the reports of all ranks; None if they are equal.
            mine: what this rank has reported of parameters and losses.
        """
        *reports, losses = (self._report.tolist() if sums is None else sums)[:-_NUM_PLACES]
        if losses % self._again and losses // self._again:
            raise RuntimeError(MIXED_WEIGHTS)
        touched = {index for index, report in enumerate(reports) if report}
        apart = {index for index in touched if reports[index] >= self._sparse or index not in self._bucket_of}
        buckets = [bucket for bucket in self._buckets if not touched.isdisjoint(bucket.indices)]
        for bucket in buckets:
            if bucket.work is None:
                self._send(bucket)
        again = [bucket for bucket in buckets if any(reports[i] // self._again % self._again for i in bucket.indices)]
        for bucket in again:
            bucket.wait()
            self._send(bucket)
        for index in sorted(apart):
            self._average_apart(index, is_sparse=reports[index] >= self._sparse)
        is_plain = sums is None and not apart and not again
        has_weights = losses >= self._again if losses else None
        return _Pass(touched - apart, apart, buckets, has_weights, mine if is_plain else b"")

    def _meet_other_ranks(self) -> list[int] | None:
        """Send what is expected, with the report of this rank. Return the sums of the reports, None if all are equal.

        Raises:
            RuntimeError: the ranks are at different places.
        """
        self._report[-_NUM_PLACES:] = self._place
        rides = len(self._queue) > 0 and len(self._queue[-1].report) > 0
        while len(self._queue) > rides:
            self._send(self._queue.pop())
        if rides:
            bucket = self._queue.pop()
            total = bucket.report.copy_(self._message)
            expected = total * self._world.size
            self._send(bucket)
            bucket.work.wait()
        else:
            total, expected = self._message.clone(), self._message * self._world.size
            dist.all_reduce(total, group=self._group)
        sums = None if torch.equal(total, expected) else [int(number) for number in total.tolist()]
        self._compare(total[-_NUM_PLACES:], expected[-_NUM_PLACES:])
        total.zero_()
        return sums

    def _compare(self, total: Tensor, expected: Tensor) -> None:
        if not torch.equal(total, expected):
            place = f"backward pass {self._number + 1} before optimizer step {self._step + 1}"
            raise RuntimeError(
                f"rank {self._world.rank} has come to {'the end' if self._step == _END else place} of a step, but "
                "another rank has called backward or optimizer_step more or less often, or in a hook of its own. All "
                "ranks must call both equally often; where a rank has nothing to learn, multiply its loss by 0"
            )

    def _put_averages(self, bucket: _Bucket, touched: set[int]) -> None:
        gradients, averages = list[Tensor](), list[Tensor]()
        for index, part in zip(bucket.indices, bucket.parts, strict=True):
            if index in touched:
                p = self._parameters[index]
                if p.grad is None:
                    p.grad = torch.empty_like(p)
                gradients.append(p.grad)
                averages.append(part)
        if gradients:
            with torch.no_grad():
                torch._foreach_copy_(gradients, averages)

    def _average_apart(self, index: int, *, is_sparse: bool) -> None:
        """Average a gradient that is sparse on some rank, or of a parameter that is in no bucket yet."""
        p = self._parameters[index]
        mine = None if p.grad is None else p.grad.detach() / self._world.size
        if is_sparse:
            parts: list[Any] = [None] * self._world.size
            dist.all_gather_object(parts, None if mine is None else mine.cpu(), group=self._group)
            parts = [part for part in parts if part is not None]
            if not all(part.is_sparse for part in parts):
                parts = [part.to_dense() if part.is_sparse else part for part in parts]
            p.grad = functools.reduce(torch.add, parts).to(p.device)
        else:
            mean = torch.zeros_like(p) if mine is None else mine.contiguous()
            dist.all_reduce(torch.view_as_real(mean) if mean.is_complex() else mean)
            p.grad = mean.detach()
            self._newly_trained.add(id(p))


def _tell(reducer: weakref.ref[GradientReducer], index: int, p: Tensor) -> None:
    if (own := reducer()) is not None:
        own._ready(index, p)


def _tell_of_step(reducer: weakref.ref[GradientReducer], optimizer: Any, *arguments: Any) -> None:
    if (own := reducer()) is not None:
        own._before_step(optimizer)


def hook_gradient(p: nn.Parameter, function: Callable[[Tensor], None]) -> Any:
    """Let a function be called after each backward pass that adds to a gradient, also if it is frozen until then."""
    is_trainable = p.requires_grad
    hook = p.requires_grad_(True).register_post_accumulate_grad_hook(function)  # type: ignore[no-untyped-call]
    p.requires_grad_(is_trainable)
    return hook


@functools.cache
def cpu_group(world: Any) -> Any:
    """Return the process group by which the ranks agree from CPU to CPU. Call on every rank."""
    return dist.new_group(backend="gloo")
