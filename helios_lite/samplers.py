"""A batch sampler for samples of different lengths, for `Split(batch_sampler=...)`."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import RandomSampler, Sampler

from helios_lite.arguments import integer, optional, require

_BATCHES_PER_POOL = 100  # More leave less padding, but the samples of a batch then change less between epochs.


class BucketBatchSampler(Sampler[list[int]]):
    """Batches samples of similar length, so that little padding is needed.

    With `shuffle` the dataset is permuted and divided into pools of about a hundred batches. The samples of each pool
    are sorted by length and cut into batches, and the batches of all pools are shuffled. Every sample is in one batch
    of the epoch. Without `shuffle` the whole dataset is sorted.

    As the `batch_sampler` of a `Split` its order depends on (seed, epoch) alone, and a resume in the middle of an epoch
    reads no sample before its position. The batches do not depend on the number of processes, which get them in turn.
    So each process computes on a batch of this size, the number of processes may change at a resume, and two processes
    do the same steps as one with two `accumulation_steps` (not as one with batches of twice the size). At the end of
    an epoch of training, batches that are fewer than the processes are cut into smaller ones.

    Attributes:
        lengths: the lengths as an int64 tensor of shape (number of samples,).
        sampler: draws the permutation; None without `shuffle`. The trainer seeds its `generator`. Without a trainer it
            uses the default generator of PyTorch.
    """

    def __init__(
        self,
        lengths: Sequence[int] | Tensor,
        batch_size: int | None = None,
        max_tokens: int | None = None,
        shuffle: bool = True,
    ) -> None:
        """Read the lengths.

        Args:
            lengths: the length of every sample in the order of the dataset, as a sequence or a tensor of ints. It is
                read once, here.
            batch_size: the largest number of samples in a batch; None for any.
            max_tokens: the largest size of a padded batch: the number of its samples times the length of the longest;
                None for any. At least one of `batch_size` and `max_tokens` is needed.
            shuffle: use new batches in a new random order in every epoch.

        Raises:
            TypeError, ValueError: an argument has a wrong value, or a sample is longer than `max_tokens`.
        """
        if batch_size is None and max_tokens is None:
            raise ValueError("batch_size, max_tokens: at least one is needed")
        for name, value in (("batch_size", batch_size), ("max_tokens", max_tokens)):
            require(name, value, optional(integer(least=1)))
        self.lengths = _checked(lengths, max_tokens)
        self.sampler = RandomSampler(self.lengths) if shuffle else None
        self._max_samples = len(self.lengths) if batch_size is None else batch_size
        self._max_tokens = max_tokens

    def __iter__(self) -> Iterator[list[int]]:
        if self.sampler is None:
            yield from map(Tensor.tolist, self._cut(torch.arange(len(self.lengths))))
            return
        order, pool_size = torch.frombuffer(array("q", self.sampler), dtype=torch.int64), self._pool_size()
        # As tensors, because a list takes five times their memory.
        batches = [batch for pool in torch.split(order, pool_size) for batch in self._cut(pool)]
        for i in torch.randperm(len(batches), generator=self.sampler.generator).tolist():
            yield batches[i].tolist()

    def _pool_size(self) -> int:
        """Return the number of samples in a pool."""
        samples = self._max_samples
        if self._max_tokens is not None:
            total = max(1, int(self.lengths.sum()))
            samples = min(samples, max(1, self._max_tokens * len(self.lengths) // total))
        return _BATCHES_PER_POOL * samples

    def _cut(self, pool: Tensor) -> Iterator[Tensor]:
        """Yield the batches of some samples, from the shortest to the longest."""
        pool = pool[self.lengths[pool].argsort(stable=True)]
        if self._max_tokens is None:
            yield from torch.split(pool, self._max_samples)
            return
        start = 0
        for end, length in enumerate(self.lengths[pool].tolist()):
            size = end - start + 1
            if end > start and (size > self._max_samples or size * length > self._max_tokens):
                yield pool[start:end]
                start = end
        yield pool[start:]


def _checked(lengths: Sequence[int] | Tensor, max_tokens: int | None) -> Tensor:
    """Return the lengths as an int64 tensor."""
    try:
        values = torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"lengths: must be a sequence or a tensor of ints, one per sample ({error})") from None
    if values.numel() == 0:
        raise ValueError("lengths: is empty")
    if values.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8) or values.ndim != 1:
        raise TypeError(f"lengths: must be ints, one per sample, but is {values.dtype} of shape {tuple(values.shape)}")
    values = values.to("cpu", torch.int64, copy=True)
    if int(values.min()) < 0:
        raise ValueError(f"lengths: sample {int(values.argmin())} has the length {int(values.min())}")
    if max_tokens is not None and int(values.max()) > max_tokens:
        raise ValueError(
            f"max_tokens={max_tokens}: sample {int(values.argmax())} alone has the length {int(values.max())}; "
            "shorten it, leave it out or raise max_tokens"
        )
    return values
