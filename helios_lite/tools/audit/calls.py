"""What a step calls: losses and what they get, shapes that do not fit, states that go on, random numbers, gradients."""

from __future__ import annotations

import contextlib
import gc
import pickle
import random
import sys
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from helios_lite.model_internals.attributes import hooked_modules
from helios_lite.nested import leaves
from helios_lite.tools.audit.couplings import CouplingWatch
from helios_lite.tools.audit.record import digest

_FEWEST_CALLS, _FEWEST_SCORES = 3, 32  # Of a loss, before something is said of what it gets.
_FEWEST_USED = 8  # Tensors that are kept and used again, as those of a buffer are.
_SAME_VALUES = (
    "View",
    "UnsafeView",
    "Squeeze",
    "Unsqueeze",
    "Reshape",
    "Select",
    "Slice",
    "ToCopy",
    "Clone",
    "Transpose",
    "Permute",
)
_ELEMENTWISE = {"sub", "__sub__", "__rsub__", "rsub", "eq", "__eq__", "mse_loss", "l1_loss", "smooth_l1_loss"}
_ELEMENTWISE |= {"huber_loss", "gaussian_nll_loss", "poisson_nll_loss", "soft_margin_loss"}
_OF_PAIRS = {"matmul", "__matmul__", "__rmatmul__", "mm", "einsum", "cdist", "cosine_similarity", "addmm"}
_OF_CLASSES = (functional.cross_entropy, functional.nll_loss)
Scored = tuple[Tensor, Tensor]
"""The scores that a loss of classes got, with the classes in the last dimension, and its targets."""


class CallWatch:
    """Sees what train steps call.

    Args:
        keeps_scores: whether to keep what losses of classes get.
        looks_for_couplings: whether to look for what couples the samples of a batch.
        growth: is shown what functions are called with; None for nothing.

    Attributes:
        pairs: an operation that has computed a matrix of all pairs of samples of a batch, "" if there was none.
        couplings: sees what couples the samples of a batch; None if it is not looked for.
        scored: what losses of classes got in the present step, if it is kept.
    """

    def __init__(
        self, *, keeps_scores: bool = False, looks_for_couplings: bool = False, growth: GrowthWatch | None = None
    ) -> None:
        self._growth = growth
        self.pairs = ""
        self.couplings = CouplingWatch() if looks_for_couplings else None
        self.scored: list[Scored] = []
        self._keeps_scores = keeps_scores
        self._size = 0  # Of the present batch.
        self._losses: dict[str, list[bool]] = {}  # Of each loss: whether it got what it does not want, call by call.
        self._num_scores: dict[str, int] = {}
        self._shapes: list[str] = []
        self._carried: list[str] = []
        self._hidden: set[str] = set()  # Digests of hidden states of steps before, and of this one.
        self._new_hidden: set[str] = set()

    def watch(self, networks: Mapping[str, nn.Module]) -> None:
        """Watch recurrent and attention modules of the networks from now on."""
        for name, net in networks.items():
            for path, module in hooked_modules(net):
                where = f"{name}.{path}".rstrip(".")
                if isinstance(module, nn.RNNBase | nn.RNNCellBase):
                    module.register_forward_pre_hook(self._enter_recurrent(where), with_kwargs=True)
                    module.register_forward_hook(self._leave_recurrent)
                if getattr(module, "batch_first", None) is False:
                    module.register_forward_pre_hook(self._look_at_batch(where))

    @contextlib.contextmanager
    def during(self, size: int) -> Iterator[None]:
        """Context of a train step with a batch of this size."""
        self._size, self.scored = size, []
        self._hidden |= self._new_hidden
        self._new_hidden = set()
        with _Calls(self, self._growth):
            yield

    def findings(self) -> dict[str, list[str]]:
        """Return what was seen, by the name of the relation."""
        wrong = [
            text
            for text, calls in self._losses.items()
            if all(calls) and len(calls) >= _FEWEST_CALLS and self._num_scores[text] >= _FEWEST_SCORES
        ]
        return {"scores": wrong, "shapes": self._shapes, "carried": self._carried}

    def note(self, function: Any, arguments: Any, options: Mapping[str, Any], output: Any) -> None:
        """Note a call of a function of PyTorch."""
        name = getattr(function, "__name__", "")
        if self.couplings is not None:
            self.couplings.note(name, arguments, options, output, self._size)
        if name in _OF_PAIRS and self.pairs == "" and self._size > 1:
            self._look_for_pairs(name, arguments, output)
        elif name in _ELEMENTWISE:
            self._look_at_shapes(name, [*arguments, options.get("target")])
        elif function in _LOOKS:
            given = dict(zip(("input", "target"), arguments, strict=False)) | dict(options)
            with torch.no_grad():
                for text, is_wrong in _LOOKS[function](given):
                    self._losses.setdefault(text, []).append(is_wrong)
                    self._num_scores[text] = self._num_scores.get(text, 0) + given["input"].numel()
                if self._keeps_scores and function in _OF_CLASSES and not given["target"].is_floating_point():
                    scores = given["input"].detach()
                    classes = scores.movedim(1, -1) if scores.ndim > 1 else scores[None]
                    self.scored.append((classes.reshape(-1, classes.shape[-1]), given["target"].detach().flatten()))

    def _look_for_pairs(self, name: str, arguments: Any, output: Any) -> None:
        tensors = [each for each in arguments if isinstance(each, Tensor)]
        sizes = (self._size, 2 * self._size)
        is_square = isinstance(output, Tensor) and output.ndim == 2 and output.shape[0] == output.shape[1]
        if is_square and output.shape[0] in sizes and not any(isinstance(each, nn.Parameter) for each in tensors):
            self.pairs = name

    def _look_at_shapes(self, name: str, arguments: list[Any]) -> None:
        pair = [each for each in arguments if isinstance(each, Tensor)][:2]
        if len(pair) < 2 or self._size < 2:
            return
        shapes = [tuple(each.shape) for each in pair]
        if sorted(shapes) != [(self._size,), (self._size, 1)]:
            return
        if pair[0].untyped_storage().data_ptr() == pair[1].untyped_storage().data_ptr():
            return  # The differences of all pairs of one thing.
        text = f"{name.strip('_')} gets {shapes[0]} and {shapes[1]}, which makes {(self._size, self._size)} of them"
        if not self._shapes:
            self._shapes.append(text)

    def _look_at_batch(self, where: str) -> Any:
        def look(module: nn.Module, arguments: Any) -> None:
            shape = tuple(arguments[0].shape) if arguments and isinstance(arguments[0], Tensor) else ()
            if len(shape) == 3 and shape[0] == self._size != shape[1] and self._size > 1:
                text = f"{where} has batch_first=False, but gets {shape} of a batch of {self._size}"
                if text.split(",")[0] not in {each.split(",")[0] for each in self._shapes}:
                    self._shapes.append(text)

        return look

    def _enter_recurrent(self, where: str) -> Any:
        def enter(module: nn.Module, arguments: Any, options: Any) -> None:
            state = arguments[1] if len(arguments) > 1 else options.get("hx")
            for _, part in leaves(state) if state is not None else ():
                if isinstance(part, Tensor) and digest(part) in self._hidden and not self._carried:
                    self._carried.append(f"{where} begins with the hidden state that the step before has ended with")

        return enter

    def _leave_recurrent(self, module: nn.Module, arguments: Any, output: Any) -> None:
        state = output if isinstance(module, nn.RNNCellBase) else output[1]
        for _, part in leaves(state):
            if isinstance(part, Tensor) and part.numel() > 0 and bool(part.count_nonzero() > 0):
                self._new_hidden.add(digest(part))


class _Calls(TorchFunctionMode):
    """Shows every call of a function of PyTorch to a watch."""

    def __init__(self, watch: CallWatch, growth: GrowthWatch | None) -> None:
        super().__init__()
        self._watch, self._growth = watch, growth

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        self._watch.note(func, args, kwargs, output)
        if self._growth is not None:
            self._growth.note(args)
        return output


def _are_probabilities(values: Tensor, dim: int) -> bool:
    """Return whether values are probabilities of several classes in a dimension."""
    if values.ndim == 0 or values.shape[dim] < 2 or not values.is_floating_point() or values.numel() == 0:
        return False
    tolerance = 1e-4 if values.dtype in (torch.float32, torch.float64) else 2e-2
    sums = values.sum(dim, dtype=torch.float64)
    return bool(values.min() >= 0) and bool(((sums - 1).abs() <= tolerance).all())


def _look_at_cross_entropy(given: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    scores = given["input"]
    dim = 1 if scores.ndim > 1 else 0
    yield "cross_entropy wants scores, but gets probabilities", _are_probabilities(scores, dim)


def _look_at_nll(given: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    scores = given["input"]
    text = "nll_loss wants logarithms of probabilities, but gets "
    are_probabilities = _are_probabilities(scores, 1 if scores.ndim > 1 else 0)
    yield text + "probabilities", are_probabilities
    yield text + "scores, of which some are positive", not are_probabilities and bool((scores > 1e-3).any())


def _look_at_divergence(given: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    text = "kl_div wants logarithms of probabilities as its input, but gets probabilities"
    yield text, _are_probabilities(given["input"], -1)
    is_log, target = bool(given.get("log_target")), given["target"]
    yield (
        "kl_div with log_target=True gets probabilities as its target",
        is_log and _are_probabilities(target, -1),
    )
    yield (
        "kl_div without log_target=True gets logarithms of probabilities as its target",
        not is_log and target.numel() > 0 and bool((target < 0).all()),
    )


def _look_at_binary(given: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    function = given["input"].grad_fn
    if function is None:  # In a validation: it is not known where the scores are from.
        return
    for _ in range(8):
        if function is None or not type(function).__name__.startswith(_SAME_VALUES):
            break
        function = function.next_functions[0][0] if function.next_functions else None
    yield (
        "binary_cross_entropy_with_logits wants scores, but gets probabilities",
        type(function).__name__.startswith(("Sigmoid", "Softmax")),
    )


_LOOKS: dict[Any, Any] = {
    functional.cross_entropy: _look_at_cross_entropy,
    functional.nll_loss: _look_at_nll,
    functional.kl_div: _look_at_divergence,
    functional.binary_cross_entropy_with_logits: _look_at_binary,
}


class RandomWatch:
    """Finds steps that seed the global generators anew: two of them end in the same state, though they begin in others.

    Attributes:
        found: what was seen.
    """

    def __init__(self) -> None:
        self.found: list[str] = []
        self._ends: dict[str, dict[str, int]] = {}  # Of each generator, the states after steps, and their numbers.

    @contextlib.contextmanager
    def during(self, number: int) -> Iterator[None]:
        """Context of a step, before which each generator is moved to another state."""
        torch.rand(number)
        random.random()
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.rand()
        yield
        for name, state in rng_states().items():
            ends = self._ends.setdefault(name, {})
            if state in ends and not self.found:
                self.found.append(
                    f"the generator of {name} has the same state after the steps {ends[state]} and {number}"
                )
            ends[state] = number


def rng_states() -> dict[str, str]:
    """Return digests of the states of the global generators of torch, random and numpy."""
    states = {"torch": digest(torch.get_rng_state()), "random": digest(pickle.dumps(random.getstate()))}
    if "numpy" in sys.modules:
        _, words, *rest = sys.modules["numpy"].random.get_state(legacy=True)
        states["numpy"] = digest([words, rest])
    return states


class GrowthWatch:
    """Counts the tensors that are alive at the start of epochs.

    What a deque with a greatest length holds, or what steps use again, as samples in a buffer, is no history.
    """

    def __init__(self) -> None:
        self._counts: list[tuple[int, int, int]] = []  # Tensors, those with a graph, and their bytes.
        self._known: set[int] = set()
        self._is_bounded = False
        self._used: set[int] = set()
        self._kept: dict[int, weakref.ref[Tensor]] = {}  # Those that are alive since an earlier epoch, but the first.

    def note(self, arguments: Any) -> None:
        """Note that a function of PyTorch is called with arguments."""
        for part in arguments if self._kept and len(self._used) < _FEWEST_USED else ():
            for each in part if isinstance(part, list | tuple) else (part,):
                kept = self._kept.get(id(each))
                if kept is not None and kept() is each:
                    self._used.add(id(each))

    def count(self) -> None:
        """Count those that are alive now."""
        gc.collect()
        tensors = [
            each for each in gc.get_objects() if issubclass(type(each), Tensor) and type(each) is not nn.Parameter
        ]
        new = [each for each in tensors if id(each) not in self._known]
        self._is_bounded = bool(new) and all(map(_is_in_bounded_deque, new[:32]))
        if len(self._counts) > 1:
            self._kept.update((id(each), weakref.ref(each)) for each in new)
        self._known = {id(each) for each in tensors}
        with_graph = sum(each.grad_fn is not None for each in tensors)
        self._counts.append((len(tensors), with_graph, sum(_bytes(each) for each in tensors)))

    def findings(self, steps: int) -> list[str]:
        """Return what has grown in each of the last three epochs of so many steps."""
        if len(self._counts) < 4 or self._is_bounded:
            return []
        grown = [
            [b - a for a, b in zip(before, after, strict=True)]
            for before, after in zip(self._counts[-4:], self._counts[-3:], strict=False)
        ]
        if min(each[1] for each in grown) >= steps:
            return [f"{grown[-1][1]} more tensors with a graph are alive after each {steps} steps"]
        if len(self._used) >= _FEWEST_USED:
            return []
        if min(each[0] for each in grown) >= steps:
            return [f"{grown[-1][0]} more tensors are alive after each {steps} steps"]
        if min(each[2] for each in grown) >= 4 * steps:
            return [f"the tensors that are alive have {grown[-1][2]:,} bytes more after each {steps} steps"]
        return []


def _bytes(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().nbytes() if tensor.layout is torch.strided else 0
    except (RuntimeError, NotImplementedError):  # One without a storage.
        return 0


def _is_in_bounded_deque(tensor: Tensor) -> bool:
    """Return whether a deque with a greatest length holds a tensor, or a container that holds it."""
    holders = gc.get_referrers(tensor)
    above = [each for holder in holders if isinstance(holder, tuple | list | dict) for each in gc.get_referrers(holder)]
    return any(isinstance(each, deque) and each.maxlen is not None for each in [*holders, *above])


class GradientWatch:
    """Finds gradients of one loss that are still there when the next is computed, though a step has ended in between.

    Attributes:
        found: what was seen.
    """

    def __init__(self) -> None:
        self.found: list[str] = []
        self._optimizers: Mapping[str, Optimizer] = {}
        self._stepped: list[str] = []  # Since the last loss.
        self._pending: dict[str, str] = {}  # Optimizers with gradients that are left, and whose step has ended.

    def watch(self, optimizers: Mapping[str, Optimizer]) -> None:
        """Watch these from now on."""
        self._optimizers = optimizers

    def note_loss(self) -> None:
        """Note a loss whose gradients are about to be computed."""
        for name, optimizer in self._optimizers.items():
            others = [other for other in self._stepped if other != name]
            if others and name not in self._stepped and _has_gradients(optimizer):
                self._pending[name] = others[-1]
        self._stepped = []

    def note_step(self, name: str) -> None:
        """Note a step that an optimizer is about to make."""
        self._stepped.append(name)
        other = self._pending.pop(name, None)
        if other is not None and not self.found:
            self.found.append(
                f"{name} steps with gradients of two losses: those of the loss for which {other} has stepped are left"
            )


def _has_gradients(optimizer: Optimizer) -> bool:
    return any(
        p.grad is not None and bool(p.grad.count_nonzero() > 0)
        for group in optimizer.param_groups
        for p in group["params"]
    )
