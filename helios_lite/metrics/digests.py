"""64-bit digests of tensors, by which rows of metrics name what has made them.

A digest is the sum, modulo 2^64, of the bits of the elements as integers, each times an odd number that depends on its
position. So it sees an order, which an exclusive or does not, and parts that are on several ranks are added up.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from helios_lite.nested import leaves
from helios_lite.processes.world import World

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_BLOCK = 1 << 15  # Positions whose odd numbers are kept: together with as many elements they fit into a cache.
_FIRST = 1 << 12  # So many are made at once at least.
_SMALL = 1 << 12  # New memory for so many takes less time than a part of the memory that is kept.
_MOST_ON_DEVICE = 1 << 22  # Elements that an accelerator multiplies at once, which takes 8 bytes for each.
_MOST_JOINED = 1 << 14  # Elements on the CPU, where copying more takes longer than looking at each tensor.
_MOST_SLICES = 64
_PLAIN = (Tensor, nn.Parameter)
_MOST_OF_A_TENSOR = 1 << 16  # Elements of a tensor of a batch that are looked at.
_ODD, _OTHER_ODD = 0x9E3779B97F4A7C15 - (1 << 64), 0xBF58476D1CE4E5B9 - (1 << 64)


def bits_of(tensor: Tensor) -> Tensor:
    """Return the elements of a tensor, of at most 8 bytes each, as integers in the same memory."""
    return tensor.view(_INTEGERS[tensor.element_size()])


def as_text(digest: int) -> str:
    """Return a digest as 16 hexadecimal digits, as rows have it: not every program reads integers of 64 bits."""
    return f"{digest % (1 << 64):016x}"


def number_of_name(name: str) -> int:
    """Return the odd number by which the digest of one of several splits is multiplied; 1 for the only one, ""."""
    return 2 * zlib.crc32(name.encode()) + 1


class Digests:
    """Computes digests, and keeps the numbers of the positions."""

    def __init__(self) -> None:
        self._numbers: dict[torch.device, Tensor] = {}
        self._slices: dict[tuple[torch.device, int, int], Tensor] = {}  # The last ones: to cut takes as long as to add.
        self._memory: Tensor | None = None  # For a block on the CPU: new memory takes longer.

    def parts(self, flat: Tensor, start: int = 0) -> list[Tensor]:
        """Return int64 tensors without a dimension whose sum is the digest. It waits for no device.

        Args:
            flat: a tensor of one dimension, of any dtype.
            start: the position of its first element.
        """
        return self.sums(bits_of(flat), start, folds=flat.element_size() == 8)

    def sums(self, numbers: Tensor, start: int, *, folds: bool = False) -> list[Tensor]:
        """Return the parts of the sum of integers times the odd numbers of their positions, as `parts` does.

        Args:
            numbers: a tensor of one dimension.
            start: the position of its first element.
            folds: whether the upper half of the bits is added to them. Otherwise a change of the highest of 64 bits
                alone would stay one.
        """
        length, first = numbers.numel(), start % _BLOCK
        if first + length <= _BLOCK:
            return [self._of_part(numbers, start, folds=folds)]
        begin = -first % _BLOCK
        end = begin + (length - begin) // _BLOCK * _BLOCK
        most = length if numbers.is_cpu else _MOST_ON_DEVICE
        parts = [self._of_part(numbers[:begin], start, folds=folds)] if begin > 0 else []
        for i in range(begin, end, most):
            parts.append(self._of_blocks(numbers[i : min(i + most, end)], start + i, folds=folds))
        return [*parts, self._of_part(numbers[end:], start + end, folds=folds)] if end < length else parts

    def _of_part(self, numbers: Tensor, start: int, *, folds: bool) -> Tensor:
        """Return the sum of numbers whose positions are in one block."""
        odd = self._of_positions(numbers.device, start % _BLOCK, numbers.numel())
        if numbers.is_cpu:  # `dot` takes half the time, and only the CPU has it for integers.
            total = torch.dot(self._long(numbers, folds=folds), odd)
        else:
            total = ((numbers >> 32).add_(numbers) if folds else numbers).mul(odd).sum()
        return total if start < _BLOCK else total.mul_(_signed(start // _BLOCK * _OTHER_ODD | 1))

    def _of_blocks(self, numbers: Tensor, start: int, *, folds: bool) -> Tensor:
        """Return the sum of the numbers of whole blocks."""
        odd = self._of_positions(numbers.device, 0, _BLOCK)
        if numbers.is_cpu:
            sums = torch.stack(
                [torch.dot(self._long(block, folds=folds), odd) for block in numbers.view(-1, _BLOCK).unbind()]
            )
        else:
            sums = ((numbers >> 32).add_(numbers) if folds else numbers).view(-1, _BLOCK).mul(odd).sum(1)
        indices = torch.arange(start // _BLOCK, start // _BLOCK + len(sums), device=numbers.device)
        return sums.mul_(indices.mul_(_OTHER_ODD).bitwise_or_(1)).sum()

    def _long(self, numbers: Tensor, *, folds: bool) -> Tensor:
        """Return integers on the CPU, at most a block, as those of 64 bits, in memory that the next call uses again."""
        length = numbers.numel()
        if length <= _SMALL or (numbers.dtype == torch.int64 and not folds):
            return (numbers >> 32).add_(numbers) if folds else numbers.long()
        if self._memory is None:
            with torch.inference_mode(False):  # It is written anywhere.
                self._memory = torch.empty(_BLOCK, dtype=torch.int64, device="cpu")
        memory = self._memory[:length]
        return torch.bitwise_right_shift(numbers, 32, out=memory).add_(numbers) if folds else memory.copy_(numbers)

    def _of_positions(self, device: torch.device, first: int, length: int) -> Tensor:
        """Return the odd numbers of so many positions in a block."""
        key = device, first, length
        if key in self._slices:
            return self._slices[key]
        known = self._numbers.get(device)
        if known is None or len(known) < first + length:
            size = max(_FIRST, 1 << (first + length - 1).bit_length())
            known = torch.arange(1, size + 1, device=device).mul_(_ODD)
            known = self._numbers[device] = known.bitwise_xor_(known >> 29).mul_(_OTHER_ODD).bitwise_or_(1)
        if len(self._slices) >= _MOST_SLICES:
            self._slices.clear()
        self._slices[key] = known[first : first + length]
        return self._slices[key]


class SampleDigest:
    """The digest of the indices of samples since the last row, in the order in which all ranks together read them."""

    def __init__(self) -> None:
        self._digests = Digests()
        self._total, self._number = 0, 0
        self._is_known = True

    def add(self, indices: Tensor | None) -> None:
        """Add the indices that were read next, an int64 tensor on the CPU; None if they are not known."""
        if indices is None:
            self._is_known = False
        elif len(indices) > 0:
            self._total += sum(map(int, self._digests.sums(indices, self._number)))
            self._number += len(indices)

    def take(self) -> int | None:
        """Return the digest, None if no sample was read or not all are known, and begin the next one."""
        total, number, is_known = self._total, self._number, self._is_known
        self._total, self._number, self._is_known = 0, 0, True
        return total + number * _ODD if number > 0 and is_known else None

    def state_dict(self) -> dict[str, Any]:
        """Return what has been added since the last row."""
        return {"total": self._total % (1 << 64), "number": self._number, "is_known": self._is_known}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self._total, self._number, self._is_known = (state_dict[name] for name in ("total", "number", "is_known"))


def digest_of_weights(digests: Digests, networks: Iterable[nn.Module], world: World, *, has_shards: bool) -> str | None:
    """Return the digest of all parameters and buffers. Call on every rank; it waits once for the device.

    Args:
        digests: computes it.
        networks: the networks, in an order that is the same in every run.
        world: the ranks.
        has_shards: whether networks are sharded. Then the digest is that of the full tensors, to which each rank adds
            its part; otherwise it is that of rank 0, and None on the other ranks.
    """
    if not world.is_main and not has_shards:
        return None
    with torch.no_grad():
        tensors = [tensor for net in networks for tensor in _tensors_of(net)]
        total = _added(_parts_of_rank(digests, tensors, world) if has_shards else _parts_of(digests, tensors))
    return as_text(sum(world.gather(total)) if has_shards else total)


def digest_of_batch(digests: Digests, batch: Any) -> list[Tensor]:
    """Return the parts of the digest of a batch, at most 65,536 elements of each tensor. It waits for no device."""
    if type(batch) in (list, tuple) and all(type(each) is Tensor for each in batch):
        found: Iterable[Tensor] = batch  # What most loaders yield.
    else:
        found = (leaf for _, leaf in leaves(batch) if isinstance(leaf, Tensor))
    found = [each.detach() if each.requires_grad else each for each in found]
    return _parts_of(digests, found, _MOST_OF_A_TENSOR)


def digest_of_elements(digests: Digests, tensor: Tensor) -> Tensor | None:
    """Return the digest of all elements of a tensor, an int64 tensor without a dimension on the device of these.

    A sparse tensor is that of its indices and values. It waits for no device.

    Args:
        digests: computes it.
        tensor: a tensor of no subclass.
    """
    tensors = [tensor._indices(), tensor._values()] if tensor.is_sparse else [tensor]
    parts = _parts_of(digests, tensors)
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum() if parts else None


def added(parts: list[Tensor]) -> str | None:
    """Return the digest that consists of these parts, None without any. It waits once for the device."""
    return as_text(_added(parts)) if parts else None


def _added(parts: list[Tensor]) -> int:
    if len(parts) == 1:
        return int(parts[0])
    total, by_device = 0, dict[torch.device, list[Tensor]]()
    for part in parts:
        if part.is_cpu:
            total += int(part)
        else:
            by_device.setdefault(part.device, []).append(part)
    sums = (each[0] if len(each) == 1 else torch.stack(each).sum() for each in by_device.values())
    return total + sum(map(int, sums))


def _signed(number: int) -> int:
    """Return the number of 64 bits with a sign that has the lowest bits of a number."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _tensors_of(net: nn.Module) -> list[Tensor]:
    """Return all parameters, and then all buffers, in the order of PyTorch's own methods, each once."""
    modules = [*net.modules()]
    parameters = {id(p): p for module in modules for p in module._parameters.values() if p is not None}
    buffers = {id(buffer): buffer for module in modules for buffer in module._buffers.values() if buffer is not None}
    return [*parameters.values(), *buffers.values()]


def _has_bits(tensor: Tensor) -> bool:
    """Return whether a tensor has elements in memory that are read one after the other; other classes may have none."""
    return (
        type(tensor) in _PLAIN
        and tensor.layout is torch.strided
        and not (tensor.is_meta or tensor.is_quantized or tensor.is_nested)
    )


def _flat(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    return tensor if tensor.ndim == 1 else tensor.reshape(-1)


def _parts_of(digests: Digests, tensors: Iterable[Tensor], most: int | None = None) -> list[Tensor]:
    """Return the parts of the digest of full tensors; small ones of a dtype are put together.

    Args:
        digests: computes it.
        tensors: the tensors.
        most: how many elements of each are looked at, at equal distances; None for all.
    """
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        if _has_bits(tensor):
            flat = _flat(tensor)
            if most is not None and flat.numel() > most:
                flat = flat[:: -(-flat.numel() // most)]
            kind = (flat.device, flat.dtype)
            if kind in groups:
                groups[kind].append(flat)
            else:
                groups[kind] = [flat]
    parts: list[Tensor] = []
    for i, group in enumerate(groups.values()):
        start = i << 40
        for flat in _joined(group):
            parts += digests.parts(flat, start)
            start += flat.numel()
    return parts


def _joined(group: list[Tensor]) -> list[Tensor]:
    """Return tensors of one dimension, neighbours put together that have few elements."""
    if len(group) == 1:
        return group
    lengths = [flat.numel() for flat in group]
    most = _MOST_JOINED if group[0].is_cpu else _MOST_ON_DEVICE
    if sum(lengths) <= most:
        return [torch.cat(group)]
    joined, held, size = list[Tensor](), list[Tensor](), 0
    for flat, length in zip(group, lengths, strict=True):
        if held and size + length > most:
            joined.append(torch.cat(held) if len(held) > 1 else held[0])
            held, size = [], 0
        held.append(flat)
        size += length
    return [*joined, torch.cat(held) if len(held) > 1 else held[0]]


def _parts_of_rank(digests: Digests, tensors: Iterable[Tensor], world: World) -> list[Tensor]:
    """Return the parts of the digest of full and sharded tensors that this rank adds to it."""
    from torch.distributed.tensor import DTensor

    parts: list[Tensor] = []
    starts: dict[tuple[torch.device, torch.dtype], int] = {}
    for tensor in tensors:
        if not isinstance(tensor, DTensor) and not _has_bits(tensor):
            continue
        kind = (tensor.device, tensor.dtype.to_real())  # As `_flat` returns them.
        start = starts.setdefault(kind, len(starts) << 40)
        starts[kind] += tensor.numel() * (2 if tensor.is_complex() else 1)
        if isinstance(tensor, DTensor):
            first = _first_row(tensor)
            if first is not None:
                row = (starts[kind] - start) // max(1, tensor.shape[0] if tensor.ndim > 0 else 1)
                parts += digests.parts(_flat(tensor.to_local()), start + first * row)
        elif world.is_main:
            parts += digests.parts(_flat(tensor), start)
    return parts


def _first_row(tensor: Any) -> int | None:
    """Return the first row that this rank has of a sharded tensor, None if another rank counts it."""
    first, length = 0, tensor.shape[0] if tensor.ndim > 0 else 1
    for i, placement in enumerate(tensor.placements):
        coordinate = tensor.device_mesh.get_local_rank(i)
        if placement.is_shard(0):  # As `torch.chunk` divides them.
            size = -(-length // tensor.device_mesh.size(i))
            begin = min(length, size * coordinate)
            first, length = first + begin, min(size, length - begin)
        elif placement.is_replicate() and coordinate > 0:
            return None
    return first
