"""How a loss may couple the samples of a batch by its form, so that it is no mean over them by intention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_REDUCING = ("Mean", "Sum", "Nansum", "Dot")
_REDUCING_OTHERWISE = ("Std", "Var", "Logsumexp", "LinalgVectorNorm", "Norm", "Max", "Min", "Amax", "Amin", "Prod")
_LINEAR = (
    *(
        "Add",
        "Sub",
        "Rsub",
        "Neg",
        "Mm",
        "Mv",
        "Bmm",
        "View",
        "UnsafeView",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Select",
    ),
    *("Slice", "Index", "MaskedSelect", "Gather", "Stack", "Cat", "Expand", "ToCopy", "Clone", "Permute", "Transpose"),
    *("T", "Alias", "Where", "MaskedFill", "AsStrided", "Unbind", "Split", "Copy"),
)
_OF_TWO = ("Mul", "Div")  # Linear if one of the two has no gradient.
_ORDERED = {"sort": 1, "argsort": 1, "median": 1, "nanmedian": 1, "topk": 2, "kthvalue": 2}
_ORDERED |= {"quantile": 2, "nanquantile": 2}
"""Functions that order values, and which argument of each is the dimension."""
_OVER = {"mean": 1, "sum": 1, "roll": 2, "flip": 1}
"""Functions over dimensions, and the first argument of each that is one."""


def coupling_of(loss: Tensor, size: int, *, has_statistics: bool = False) -> str:
    """Return the operation that makes a loss another thing than a weighted mean over samples, "" if none does.

    The samples are reduced over the batch, to a number or to a statistic of each feature, and what follows is not
    linear: the root of a mean, a variance, a product of two means, as in losses that balance, decorrelate or compare
    distributions. An error, such as a sum or a softmax over the wrong axis, has no such form.

    Args:
        loss: a scalar with its graph.
        size: the number of samples in the batch, a number that no other dimension has.
        has_statistics: whether there are statistics of the batch without a gradient, of which the graph has nothing.
    """
    stack: list[tuple[Any, str, str]] = [(loss.grad_fn, "", "")]
    seen = set[tuple[Any, str, str]]()
    while stack:
        node, above, coupled = stack.pop()
        if node is None or (node, above, coupled) in seen:
            continue
        seen.add((node, above, coupled))
        if node.name().endswith("AccumulateGrad"):
            continue  # A parameter, whose shape may look like that of a batch.
        shapes = [tuple(part.shape) for part in node._input_metadata] or [()]
        if any(_is_of_samples(shape, size) for shape in shapes):
            if coupled:
                return coupled
            continue
        before = [each for each, _ in node.next_functions]
        name = node.name().rpartition("::")[2].rstrip("0123456789").removesuffix("Backward")
        is_product = name in ("Mm", "Bmm") and all(each is not None and "Grad" not in each.name() for each in before)
        if name in _REDUCING_OTHERWISE:
            above = coupled = name.lower()
        elif name in _REDUCING or "Loss" in name or is_product:
            coupled = coupled or above
            above = name.lower() if "Loss" in name else above
        elif name not in _LINEAR and not (name in _OF_TWO and None in before and not (has_statistics and shapes[0])):
            above = name.lower()
        stack += [(each, above, coupled) for each in before]
    return ""


def _is_of_samples(shape: tuple[int, ...], size: int) -> bool:
    """Return whether a shape has a dimension of samples, or of their parts, such as those that a mask selects."""
    return any(each > 0 and each % size == 0 for each in shape) or (
        len(shape) > 1 and shape[0] > size and shape[0] != shape[1]
    )


class CouplingWatch:
    """Sees calls that compare samples of a batch, take others in their place, or order them.

    Whoever sorts samples and puts them back, as sequences are sorted by their length, couples none.

    Attributes:
        has_statistics: whether a call has reduced what has no gradient over the batch, to a value of each feature.
    """

    def __init__(self) -> None:
        self.has_statistics = False
        self._found = ""
        self._orders: Counter[tuple[int, ...]] = Counter()  # Of the samples, in which a call has put them.

    def found(self) -> str:
        """Return a call that couples samples, "" if none does."""
        for order, number in self._orders.items():
            back = tuple(torch.tensor(order).argsort().tolist())
            if self._orders[back] == 0 or (back == order and number % 2 == 1):
                return self._found or "an index that takes samples of the batch in another order"
        return self._found

    def note(self, name: str, arguments: Sequence[Any], options: Mapping[str, Any], output: Any, size: int) -> None:
        """Note a call of a function of PyTorch in a step with a batch of so many samples."""
        tensors = [each for each in arguments if isinstance(each, Tensor)]
        if self._found or size < 2 or not tensors or any(isinstance(each, nn.Parameter) for each in tensors[:2]):
            return
        first = tensors[0]
        dims = _dims(name, arguments, options, first.ndim) if name in _OVER and first.ndim > 0 else set[int]()
        if len(tensors) > 1 and _are_all_pairs(first, tensors[1], output, size):
            self._found = f"{name.strip('_')} of all pairs"
        elif name == "index_select" and len(arguments) > 2 and first.shape[arguments[1]] == size:
            self._note_index(arguments[2], size)  # Hidden states have their samples in the second dimension.
        elif first.ndim == 0 or len(first) != size:
            return
        elif name in ("mean", "sum") and dims == {0} and first.ndim > 1 and not first.requires_grad:
            self.has_statistics = True
        elif name == "__getitem__":
            self._note_index(arguments[1], size)
        elif (name in ("roll", "flip") and 0 in dims) or (
            name in _ORDERED
            and first.is_floating_point()
            and (first.ndim == 1 or _dim_of_order(name, arguments, options) in (0, -first.ndim))
        ):
            self._found = f"{name} over the samples"

    def _note_index(self, index: Any, size: int) -> None:
        index = index[0] if isinstance(index, tuple) and index else index
        if not isinstance(index, Tensor) or index.ndim != 1 or index.dtype is not torch.int64 or len(index) < 2:
            return
        order = tuple(index.tolist())
        if order == (*range(len(order)),):
            return
        if sorted(order) == [*range(size)]:
            self._orders[order] += 1
        else:
            self._found = "an index that takes other samples of the batch"


def _dims(name: str, arguments: Sequence[Any], options: Mapping[str, Any], ndim: int) -> set[int]:
    """Return the dimensions that a call of a function of `_OVER` has; 0 if it rolls all elements as one row."""
    given = _listed(
        next((options[each] for each in ("dims", "dim", "axis") if each in options), arguments[_OVER[name] :])
    )
    if name != "roll":
        return {each % ndim for each in given}
    shifts = _listed(options.get("shifts", arguments[1:2]))
    return {each % ndim for each, shift in zip(given, shifts, strict=False) if shift != 0} if given else {0}


def _listed(given: Any) -> list[int]:
    """Return the integers that a call was given, one or several."""
    while isinstance(given, tuple | list) and len(given) == 1:
        given = given[0]
    return [each for each in (given if isinstance(given, tuple | list) else [given]) if type(each) is int]


def _dim_of_order(name: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """Return the dimension that a call orders, None if none is given."""
    position = _ORDERED[name]
    return arguments[position] if len(arguments) > position else options.get("dim")


def _are_all_pairs(a: Tensor, b: Tensor, output: Any, size: int) -> bool:
    """Return whether (N, 1, ...) meets (1, N, ...)."""
    shapes = [tuple(each.shape[:2]) for each in (a, b)]
    is_square = isinstance(output, Tensor) and tuple(output.shape[:2]) == (size, size)
    return is_square and sorted(shapes) == [(1, size), (size, 1)]
