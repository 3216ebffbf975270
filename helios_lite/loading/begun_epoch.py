"""What an epoch of a map-style Split has begun with: a resume finishes it so, whatever the Split is by then."""

from __future__ import annotations

import dataclasses
import operator
from array import array
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, NamedTuple

from helios_lite.loading import sample_order


class Changes(NamedTuple):
    """What a resume has found to be different from what the epoch has begun with.

    - pairs: what the Split was and what it is now, such as ("1,000 samples", "1,200").
    - num_gone: number of samples of the rest of the epoch that this resume leaves out, because they are gone.
    """

    pairs: list[tuple[str, str]]
    num_gone: int

    def text(self, name: str, unit: str, number: int) -> str:
        """Return it in words.

        Args:
            name: that of the split, "train" or "train/labelled".
            unit: "epoch" or "pass".
            number: that of the epoch, from 1.
        """
        (before, now), *others = self.pairs
        found = [f"{before} when {unit} {number} began, {now} now", *(f"{a} then, {b} now" for a, b in others)]
        gone = ""
        if self.num_gone > 0:
            samples = "1 sample of its rest is" if self.num_gone == 1 else f"{self.num_gone:,} samples of its rest are"
            gone = f", but {samples} gone and left out"
        return (
            f"the {name} split: {'; '.join(found)}; the {unit} is finished with what it began with{gone}, and the "
            f"change counts from {unit} {number + 1} on"
        )


@dataclasses.dataclass(frozen=True)
class BegunEpoch:
    """What an epoch of a map-style Split has begun with. Checkpoints have it as a dict.

    Attributes:
        epoch: index of the epoch, from which its random numbers are derived; that of the pass with `steps_per_epoch`,
            always 0 with `overfit_batches`.
        seed: the seed of the run.
        length: the length of the dataset.
        is_shuffled: whether the order is random if there is no sampler.
        sampler: the class of the sampler, None without one.
        batch_sampler: the class of the batch sampler, None without one.
        digest: 64 bits of the order that one of them has drawn, which nothing else can make again. None without a
            sampler, in an evaluation, and if it draws anything but integers.
        num_samples: number of samples of the epoch, with limits.
        shuffle_block: how many neighbours stay near each other in a random order; None for any.
        cuts: where resumes have found a shorter dataset: each a position and a length. Behind the position the indices
            from that length on are left out.
    """

    epoch: int
    seed: int
    length: int
    is_shuffled: bool
    sampler: str | None
    batch_sampler: str | None
    digest: int | None = None
    num_samples: int = 0
    shuffle_block: int | None = None
    cuts: tuple[tuple[int, int], ...] = ()

    @property
    def has_sampler(self) -> bool:
        """Whether the order is drawn by a sampler or a batch sampler."""
        return self.sampler is not None or self.batch_sampler is not None

    def check_samplers(self, now: BegunEpoch) -> None:
        """Raise a ValueError if the order of this epoch cannot be made with the samplers of now.

        Without a sampler the order is a function of the seed, so one that was added is no obstacle. A batch sampler is,
        because nothing says how large the batches would be.
        """
        for name, has_either in (("sampler", False), ("batch_sampler", True)):
            before, present = getattr(self, name), getattr(now, name)
            if (before is None) != (present is None) and (has_either or before is not None):
                raise self._error(f"{name} is {before} in the checkpoint, {present} now", now)

    def resumed(self, now: BegunEpoch, start: int, drawn: Any) -> tuple[BegunEpoch, Changes | None]:
        """Return the epoch as a resume goes on with it, and what has changed, None if nothing has.

        Args:
            now: the epoch as it would begin now.
            start: the position.
            drawn: the order that the epoch has begun with.

        Raises:
            ValueError: a sampler has drawn another order than the epoch has begun with.
        """
        if self.has_sampler:
            before, present = self.sampler or self.batch_sampler, now.sampler or now.batch_sampler
            if self.digest != now.digest or (self.digest is None and before != present):
                raise self._error(
                    f"{present} draws another order now than {before} has drawn when the epoch began", now
                )
        is_known = self.digest is not None or not self.has_sampler
        goes_on = self
        if is_known and now.length < self.length:
            goes_on = dataclasses.replace(self, cuts=(*self.cuts, (start, now.length)))
        of_batches = self.batch_sampler is not None
        left, left_before = (
            sample_order.num_samples(epoch.order(drawn), of_batches=of_batches) for epoch in (goes_on, self)
        )
        return goes_on, self._changes(now, left_before - left)

    def order(self, drawn: Any) -> Any:
        """Return what is read of the order that was drawn: as much as the epoch has, without what is gone."""
        of_batches = self.batch_sampler is not None
        order = sample_order.first_samples(drawn, self.num_samples, of_batches=of_batches)
        for start, length in self.cuts:
            order = sample_order.without_gone(order, start, length, of_batches=of_batches)
        return order

    def _changes(self, now: BegunEpoch, num_gone: int) -> Changes | None:
        pairs = []
        if self.length != now.length:
            pairs.append((f"{self.length:,} samples", f"{now.length:,}"))
        is_counted = now.num_samples > 0  # Nothing has drawn the order of a sampler that was added.
        if is_counted and self.num_samples != now.num_samples and (self._is_limited() or now._is_limited()):
            pairs.append((f"{self.num_samples:,} samples an epoch", f"{now.num_samples:,}"))
        if self.seed != now.seed:
            pairs.append((f"seed {self.seed}", f"{now.seed}"))
        if self._order_in_words() != now._order_in_words():
            pairs.append((self._order_in_words(), now._order_in_words()))
        return Changes(pairs, num_gone) if pairs else None

    def _is_limited(self) -> bool:
        return self.num_samples != self.length

    def _order_in_words(self) -> str:
        shuffled = "shuffled" if self.shuffle_block is None else f"shuffled in blocks of {self.shuffle_block}"
        return self.sampler or self.batch_sampler or (shuffled if self.is_shuffled else "in the order of the dataset")

    def _error(self, text: str, now: BegunEpoch) -> ValueError:
        lengths = "" if self.length == now.length else f" ({self.length:,} samples then, {now.length:,} now)"
        return ValueError(
            f"the train split: {text}{lengths}, so samples of epoch {self.epoch + 1}, which has begun, would "
            "be seen twice or missed. Train to its end with the sampler and the data of then, and change them after "
            "it; or start a new run from these weights (init_from). A sampler must draw the same order again for the "
            "same epoch: by its generator, the global random numbers or set_epoch"
        )


def digest_of(drawn: Iterable[Any], now: BegunEpoch) -> int | None:
    """Return 64 bits that tell the order that a sampler has drawn from others, None if there are not only integers.

    Args:
        drawn: the indices, or the batches of them, whose sizes count too.
        now: what the epoch begins with. Negative indices count from the end of its dataset.
    """
    digest = blake2b(digest_size=8)
    try:
        for part in [drawn] if now.batch_sampler is None else ((len(batch), *batch) for batch in drawn):
            numbers = map(operator.index, part)
            digest.update(array("q", (index if index >= 0 else index + now.length for index in numbers)))
    except (TypeError, OverflowError):
        return None
    return int.from_bytes(digest.digest())
