"""Random orders of so many samples that nobody wants to draw and keep them: computed from place to place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from helios_lite.processes.rng import derive_seed

LEAST_COMPUTED = 2**24
_BLOCKS_PER_WINDOW = 1024
_ROUNDS = 6
_SORTED = 4096  # Permutations up to this length are sorted, since the halves of a Feistel network would be too small.
_AT_ONCE = 8192  # Places that are computed together, because an operation costs more than its numbers.


def random_order(length: int, seed: int, block: int | None = None) -> Tensor | RandomOrder:
    """Return a random order of the numbers from 0 to a length, which depends on the arguments alone.

    Returns:
        An int64 tensor of shape (length,) as `torch.randperm` draws it; with blocks, or 2**24 or more numbers, an order
        that is computed where it is read.
    """
    if block is None and length < LEAST_COMPUTED:
        return torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    return RandomOrder(length, seed, block)


class RandomOrder:
    """A random order of the numbers from 0 to a length, of which only the places that are read are computed.

    It is a function of its arguments alone, in integers, so that no version or device changes it. Its slices are orders
    too, in which nothing is computed yet.

    With blocks, neighbours stay near each other: the numbers are cut into blocks, from a random one on, and the blocks
    are permuted. About 1,024 blocks that follow each other in this order are a window, whose numbers are permuted.

    Args:
        length: how many numbers.
        seed: the seed.
        block: how many neighbours are a block; None to permute all numbers.
    """

    def __init__(self, length: int, seed: int, block: int | None = None) -> None:
        self._length, self._block, self._seed = length, block, seed
        self._places = range(length)  # Those of this slice, counted without those that are left out.
        self._kept_before = torch.empty(0, dtype=torch.int64)  # How many are kept before each that is left out.
        if block is None:
            self._numbers = _Permutation(length, seed)
            return
        self._num_blocks = length // block  # A shorter one comes last; where they begin is another place in each order.
        self._blocks = _Permutation(self._num_blocks, derive_seed(seed, 0))
        self._first = derive_seed(seed, 1) % length
        num_windows = max(1, length // (block * _BLOCKS_PER_WINDOW))
        self._window_size = -(-length // num_windows)
        self._window: tuple[int, _Permutation] | None = None

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, part: slice) -> RandomOrder:
        order = object.__new__(RandomOrder)
        vars(order).update(vars(self), _places=self._places[part])
        return order

    def __iter__(self) -> Iterator[int]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self[start : start + _AT_ONCE].tensor().tolist()

    def tensor(self) -> Tensor:
        """Return all of it as an int64 tensor."""
        return self._computed([self._places])[0]

    def without(self, least: int, start: int) -> RandomOrder:
        """Return a whole order, or its beginning, without the numbers from `least` on that come at `start` or later.

        It takes time and memory for the numbers that are left out, and none for the others.
        """
        first, end = self._all_places(torch.tensor([start, len(self)])).tolist()
        left_out = [self._kept_before + torch.arange(len(self._kept_before))]
        for numbers in torch.split(torch.arange(least, self._length), _AT_ONCE):
            places = self._places_of(numbers)
            left_out.append(places[(places >= first) & (places < end)])
        joined = torch.unique(torch.cat(left_out))
        order = self[: len(self) + len(self._kept_before) - len(joined)]
        vars(order).update(_kept_before=joined - torch.arange(len(joined)))
        return order

    def parts(self, bounds: Iterable[tuple[int, int]]) -> Iterator[Tensor]:
        """Yield parts of it as int64 tensors, several of them computed together.

        Args:
            bounds: the first place of each part and the one behind its last, in ascending order.
        """
        group: list[range] = []
        for low, high in bounds:
            group.append(self._places[low:high])
            if sum(map(len, group)) >= _AT_ONCE:
                yield from self._computed(group)
                group = []
        if group:
            yield from self._computed(group)

    def _computed(self, parts: list[range]) -> tuple[Tensor, ...]:
        places = torch.cat([torch.arange(part.start, part.stop, part.step) for part in parts])
        return torch.split(self._at(self._all_places(places)), [len(part) for part in parts])

    def _all_places(self, places: Tensor) -> Tensor:
        """Return places counted with those that are left out."""
        return places + torch.searchsorted(self._kept_before, places, right=True)

    def _at(self, places: Tensor) -> Tensor:
        """Return the numbers at some places, which ascend."""
        if self._block is None:
            return self._numbers(places)
        if len(places) == 0:
            return places
        windows, counts = torch.unique_consecutive(places // self._window_size, return_counts=True)
        parts = torch.split(places, counts.tolist())
        permuted = torch.cat([self._in_window(*pair) for pair in zip(windows.tolist(), parts, strict=True)])
        blocks = permuted // self._block
        offsets = permuted - blocks * self._block
        if self._num_blocks > 0:
            full = self._blocks(blocks.clamp(max=self._num_blocks - 1))
            blocks = torch.where(blocks < self._num_blocks, full, blocks)
        return blocks.mul_(self._block).add_(offsets).add_(self._first).remainder_(self._length)

    def _in_window(self, window: int, places: Tensor) -> Tensor:
        """Return the places where those of a window go, which are in it too."""
        start = window * self._window_size
        return self._permutation(window)(places - start).add_(start)

    def _permutation(self, window: int) -> _Permutation:
        if self._window is None or self._window[0] != window:
            size = min(self._window_size, self._length - window * self._window_size)
            self._window = (window, _Permutation(size, derive_seed(self._seed, 2, window)))
        return self._window[1]

    def _places_of(self, numbers: Tensor) -> Tensor:
        """Return the places of some numbers; with blocks in another order than that of the numbers."""
        if self._block is None:
            return self._numbers.inverse(numbers)
        permuted = (numbers - self._first).remainder_(self._length)
        blocks = permuted // self._block
        if self._num_blocks > 0:
            full = self._blocks.inverse(blocks.clamp(max=self._num_blocks - 1))
            permuted += torch.where(blocks < self._num_blocks, full - blocks, 0).mul_(self._block)
        windows, by_window = (permuted // self._window_size).sort()
        windows, counts = torch.unique_consecutive(windows, return_counts=True)
        parts = torch.split(permuted[by_window], counts.tolist())
        found = [numbers[:0]]
        for window, places in zip(windows.tolist(), parts, strict=True):
            start = window * self._window_size
            found.append(self._permutation(window).inverse(places - start).add_(start))
        return torch.cat(found)


class _Permutation:
    """A random permutation of the numbers below a length, computed for as many of them as are asked for.

    It is a Feistel network (Luby and Rackoff, "How to construct pseudorandom permutations from pseudorandom functions",
    1988) over the row and the column of a number in a square of about that length: each round adds to one of them a
    random number that depends on the other. Numbers that fall into the unused rest of the square go through the rounds
    again until they do not (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """

    def __init__(self, length: int, seed: int) -> None:
        self._length = length
        if length <= _SORTED:
            self._sorted = _random_numbers(length, derive_seed(seed, 0)).argsort(stable=True)
            return
        self._columns = math.isqrt(length - 1) + 1
        self._rows = -(-length // self._columns)
        self._rounds = []
        for i in range(_ROUNDS):
            this, other = (self._columns, self._rows) if i % 2 == 0 else (self._rows, self._columns)
            added = (_random_numbers(other, derive_seed(seed, i)) >> 32) * this >> 31  # Below `this`.
            # The sum that selects a number is taken modulo its range only at the end.
            self._rounds.append(added.repeat((i + 1) // 2 + 1))

    def __call__(self, numbers: Tensor) -> Tensor:
        """Return where these numbers go, as an int64 tensor."""
        if self._length <= _SORTED:
            return self._sorted[numbers]
        permuted = self._through_rounds(numbers)
        while (is_outside := permuted >= self._length).any():
            permuted[is_outside] = self._through_rounds(permuted[is_outside])
        return permuted

    def inverse(self, numbers: Tensor) -> Tensor:
        """Return what goes to these numbers, as an int64 tensor."""
        if self._length <= _SORTED:
            return self._sorted.argsort()[numbers]
        found = self._back_through_rounds(numbers)
        while (is_outside := found >= self._length).any():
            found[is_outside] = self._back_through_rounds(found[is_outside])
        return found

    def _through_rounds(self, numbers: Tensor) -> Tensor:
        row = numbers.div(self._columns, rounding_mode="floor")
        column = numbers - row * self._columns
        for to_column, to_row in zip(self._rounds[::2], self._rounds[1::2], strict=True):
            column += to_column.index_select(0, row)
            row += to_row.index_select(0, column)
        return row.remainder_(self._rows).mul_(self._columns).add_(column.remainder_(self._columns))

    def _back_through_rounds(self, numbers: Tensor) -> Tensor:
        row = numbers.div(self._columns, rounding_mode="floor")
        column = numbers - row * self._columns
        for to_column, to_row in zip(self._rounds[-2::-2], self._rounds[::-2], strict=True):
            row = (row - to_row.index_select(0, column)).remainder_(self._rows)
            column = (column - to_column.index_select(0, row)).remainder_(self._columns)
        return row.mul_(self._columns).add_(column)


def _random_numbers(count: int, seed: int) -> Tensor:
    """Return random numbers of 63 bits as an int64 tensor; SplitMix64, as in `derive_seed`."""
    mixed = torch.arange(1, count + 1).mul_(_signed(0x9E3779B97F4A7C15)).add_(seed)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ _shifted(mixed, shift)) * _signed(factor)
    return _shifted(mixed ^ _shifted(mixed, 31), 1)


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Shift 64 bits to the right, without the sign."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    """Return the int64 with the 64 bits of a number."""
    return number - (1 << 64)
