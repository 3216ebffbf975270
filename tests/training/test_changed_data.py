"""A train split that is changed when a run goes on: an epoch that has begun is finished with what it began with."""

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from helpers.models import Stream, Tiny, quiet
from helpers.processes import deadline
from helpers.scenarios import Results, scenario
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from helios_lite import DataModule, Split
from helios_lite.loading.loaders import make_loader
from helios_lite.processes.world import World
from helios_lite.samplers import BucketBatchSampler

EPOCHS = 3
Seen = list[tuple[int, float]]


class Noisy(Dataset):
    """Sample i is (i, a random number), so that the seeds of samples are seen too."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, float]:
        return index, torch.rand(()).item()


class Told(Noisy):
    """Has two samples more in every epoch that it is told of."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.first = length

    def set_epoch(self, epoch: int) -> None:
        self.length = self.first + 2 * epoch


class Drawn:
    """A sampler that draws from the global random numbers, some indices twice."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[int]:
        return iter([random.randrange(self.length) for _ in range(self.length)])


class Reversed(Drawn):
    def __iter__(self) -> Iterator[int]:
        return reversed([*super().__iter__()])


class Turned(Drawn):
    """Begins at another index in every epoch that it is told of."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter([(index + self.epoch) % self.length for index in range(self.length)])


class Reading(Tiny):
    """Notes the samples that it sees, and how many it has seen at the end of every epoch."""

    def __init__(self) -> None:
        super().__init__("reading")
        self.pairs: Seen = []
        self.ends = [0]

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Linear(1, 1))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01)

    def train_step(self, batch: Any, state: Any) -> None:
        index, noise = batch
        self.pairs += zip(index.tolist(), noise.tolist(), strict=True)
        self.backward(self.net(noise[:, None].float()).square().mean())
        self.optimizer_step(self.optimizer)

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self.ends.append(len(self.pairs))


@dataclasses.dataclass(frozen=True)
class Data:
    """A train split and the options of a trainer that concern it."""

    length: int = 11
    kind: type[Noisy] = Noisy
    split: Callable[[], dict[str, Any]] = lambda: {"batch_size": 2, "shuffle": True}
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def fit(self, root: Path | None = None, **options: Any) -> Reading:
        model, split = Reading(), Split(self.kind(self.length), **self.split())
        quiet(root=root, sanity_batches=0, **{**self.options, **options}).fit(model, DataModule(split))
        return model

    def epochs(self, number: int) -> list[Seen]:
        """The samples of every epoch of a run that is never stopped."""
        model = self.fit(max_epochs=number)
        return [model.pairs[low:high] for low, high in itertools.pairwise(model.ends)]

    def checkpoints(self, root: Path, **options: Any) -> list[tuple[Path, int]]:
        """Checkpoints after every step, each with the number of samples that were seen until then."""
        numbers = []

        class Saving(Reading):
            def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
                numbers.append(len(self.pairs))

        model, split = Saving(), Split(self.kind(self.length), **self.split())
        options = {**self.options, "save_every_steps": 1, "keep_last": -1, "async_save": False, **options}
        quiet(root=root, sanity_batches=0, **options).fit(model, DataModule(split))
        paths = sorted((root / "reading/checkpoints").glob("*.pth"), key=lambda path: int(path.stem.split("_")[-1]))
        return [*zip(paths, numbers, strict=True)]


def in_order() -> dict[str, Any]:
    return {"batch_size": 2}


def drawn(kind: type[Drawn] = Drawn, length: int = 11) -> Callable[[], dict[str, Any]]:
    return lambda: {"batch_size": 2, "sampler": kind(length)}


def buckets(size: int = 3, length: int = 11) -> Callable[[], dict[str, Any]]:
    lengths = [1 + index % 4 for index in range(length)]

    return lambda: {"batch_sampler": BucketBatchSampler(lengths, batch_size=size)}


def batches_of(*sizes: int) -> Callable[[], dict[str, Any]]:
    """A batch sampler of batches of these sizes, in random order."""

    def make() -> dict[str, Any]:
        numbers = iter(range(sum(sizes)))
        batches = [[*itertools.islice(numbers, size)] for size in sizes]
        return {"batch_sampler": torch.utils.data.SubsetRandomSampler(batches)}  # type: ignore[arg-type]

    return make


CHANGES: dict[str, tuple[Data, Data]] = {
    "nothing": (Data(), Data()),
    "grown": (Data(), Data(17)),
    "shrunk": (Data(), Data(7)),
    "grown in order": (Data(split=in_order), Data(17, split=in_order)),
    "shrunk in order": (Data(split=in_order), Data(7, split=in_order)),
    "other seed": (Data(), Data(options={"seed": 5})),
    "not shuffled any more": (Data(), Data(split=in_order)),
    "shuffled": (Data(split=in_order), Data()),
    "all at once": (Data(), Data(7, split=in_order, options={"seed": 5})),
    "other batch size": (Data(), Data(split=lambda: {"batch_size": 3, "shuffle": True})),
    "accumulation": (Data(), Data(options={"accumulation_steps": 2})),
    "epochs of other lengths": (Data(kind=Told), Data(kind=Told)),
    "epochs of other lengths, grown": (Data(kind=Told), Data(14, Told)),
    "epochs of other lengths, shrunk": (Data(kind=Told), Data(6, Told)),
    "a sampler that stays": (Data(split=drawn()), Data(split=drawn())),
    "a sampler that stays, other seed": (Data(split=drawn()), Data(split=drawn(), options={"seed": 5})),
    "a sampler that stays, grown": (Data(split=drawn()), Data(17, split=drawn())),
    "a sampler that stays, shrunk": (Data(split=drawn()), Data(7, split=drawn())),
    "a sampler that is told": (Data(split=drawn(Turned)), Data(split=drawn(Turned))),
    "a sampler that is added": (Data(), Data(split=drawn(Reversed))),
    "batches that stay": (Data(split=batches_of(1, 2, 3, 1, 4)), Data(split=batches_of(1, 2, 3, 1, 4))),
    "batches that stay, shrunk": (Data(split=batches_of(1, 2, 3, 1, 4)), Data(7, split=batches_of(1, 2, 3, 1, 4))),
}
LIMITED: dict[str, tuple[Data, Data]] = {
    "higher": (Data(options={"limit_train_batches": 3}), Data(options={"limit_train_batches": 5})),
    "lower": (Data(options={"limit_train_batches": 5}), Data(options={"limit_train_batches": 2})),
    "removed": (Data(options={"limit_train_batches": 4}), Data()),
    "set": (Data(), Data(options={"limit_train_batches": 2})),
    "a part": (Data(options={"limit_train_batches": 0.6}), Data(20, options={"limit_train_batches": 0.6})),
    "of batches": (
        Data(split=batches_of(1, 2, 3, 1, 4), options={"limit_train_batches": 3}),
        Data(split=batches_of(1, 2, 3, 1, 4), options={"limit_train_batches": 2}),
    ),
    "overfitting": (Data(), Data(options={"overfit_batches": 3})),
    "no more overfitting": (Data(options={"overfit_batches": 3}), Data()),
}  # fmt: skip


def rule(before: list[Seen], after: list[Seen], lengths: list[int], num_seen: int) -> Seen:
    """What a run sees after so many samples, by the rule.

    Args:
        before: the epochs of a run that is never stopped, with the split of before.
        after: the same with the split of after.
        lengths: the lengths of that one in every epoch.
        num_seen: number of samples that were seen before the change.
    """
    epoch = 0
    while num_seen >= len(before[epoch]):
        num_seen -= len(before[epoch])
        epoch += 1
    if num_seen == 0:
        return [*itertools.chain.from_iterable(after[epoch:])]
    rest = [pair for pair in before[epoch][num_seen:] if pair[0] < lengths[epoch]]
    return [*rest, *itertools.chain.from_iterable(after[epoch + 1 :])]


def require_rule(before: Data, after: Data, root: Path, passes: int = EPOCHS, every: int = 1, **options: Any) -> None:
    """Require the rule of a change at every position, or at each second one."""
    whole, changed = before.epochs(passes), after.epochs(passes)
    lengths = [after.length + 2 * epoch * (after.kind is Told) for epoch in range(passes)]
    found = before.checkpoints(root, max_epochs=2, **options)
    for path, num_seen in found[every - 1 :: every]:
        seen = after.fit(resume=path, max_epochs=EPOCHS, **options).pairs
        expected = rule(whole, changed, lengths, num_seen)
        assert seen == (expected if passes == EPOCHS else expected[: len(seen)]), path.name
        assert len(seen) > 1
    assert len(found) > 5


IN_PASSES = [
    "nothing",
    "grown",
    "all at once",
    "accumulation",
    "epochs of other lengths, shrunk",
    "a sampler that stays, shrunk",
    "a sampler that is added",
    "batches that stay, shrunk",
]


@pytest.mark.parametrize("name", [*CHANGES, *LIMITED])
def test_an_epoch_that_has_begun_is_finished_as_it_began_at_every_position(name: str, tmp_path: Path) -> None:
    """At each second one of changes of which the other kinds are tried at all of them."""
    require_rule(*{**CHANGES, **LIMITED}[name], tmp_path, every=1 if name in IN_PASSES else 2)


@pytest.mark.parametrize("name", IN_PASSES)
def test_a_pass_that_has_begun_is_finished_as_it_began_at_every_position(name: str, tmp_path: Path) -> None:
    require_rule(*CHANGES[name], tmp_path, passes=5, steps_per_epoch=4)


# Several changes, and those that cannot be made.


def test_what_is_gone_stays_gone_when_the_epoch_is_stopped_again(tmp_path: Path) -> None:
    """The dataset shrinks, shrinks again, and has grown at last; batches of one sample, so that all positions come.

    With this seed the order begins with 3, 5, 9, 2, 6, 7, 8, so that at some positions samples of later ones are gone.
    """

    def fit(root: Path, length: int, **options: Any) -> list[int]:
        data = Data(length, split=lambda: {"batch_size": 1, "shuffle": True}, options={"seed": 103})
        return [index for index, _ in data.fit(root, max_epochs=2, **options).pairs]

    order = fit(tmp_path / "whole", 11)[:11]
    next_order = fit(tmp_path / "next", 13)[13:]
    for first, second, third in itertools.combinations(range(1, 6), 3):
        root = tmp_path / f"{first}-{second}-{third}"
        seen = fit(root, 11, max_steps=first)
        expected = [*order[:first], *(index for index in order[first:] if index < 9)]
        seen += fit(root, 9, max_steps=second)
        assert seen == expected[:second]
        expected = [*expected[:second], *(index for index in expected[second:] if index < 6)]
        if third < len(expected):
            seen += fit(root, 6, max_steps=third)
            assert seen == expected[:third]
        else:
            expected = [*order[:first], *(index for index in order[first:] if index < 9)]
        seen += fit(root, 13)
        assert seen == [*expected, *next_order], (first, second, third)
        assert fit(tmp_path / "whole", 11) == []


def test_an_epoch_of_which_nothing_is_left_is_over(tmp_path: Path) -> None:
    data = Data(8, split=in_order)
    assert len(data.fit(tmp_path, max_steps=2).pairs) == 4
    model = Data(3, split=in_order).fit(tmp_path, max_epochs=2)
    assert [index for index, _ in model.pairs] == [0, 1, 2]


IMPOSSIBLE: dict[str, tuple[Data, Data, str]] = {
    "another order": (Data(split=drawn()), Data(split=drawn(Reversed)), "Reversed draws another order now than Drawn"),
    "another order of the same class": (Data(split=drawn()), Data(split=drawn(length=9)), "Drawn draws another order"),
    "grown with its sampler": (
        Data(split=drawn()),
        Data(12, split=drawn(length=12)),
        r"Drawn draws another order now than Drawn has drawn when the epoch began \(11 samples then, 12 now\)",
    ),
    "removed": (Data(split=drawn()), Data(), "sampler is Drawn in the checkpoint, None now"),
    "batches of other sizes": (
        Data(split=lambda: {"batch_sampler": [[0, 1], [2, 3], [4, 5, 6]]}),
        Data(split=lambda: {"batch_sampler": [[0, 1], [2], [3, 4, 5, 6]]}),
        "list draws another order now than list",
    ),
    "counted from another end": (
        Data(split=lambda: {"batch_size": 2, "sampler": [0, -1, 2, -3]}),
        Data(12, split=lambda: {"batch_size": 2, "sampler": [0, -1, 2, -3]}),
        "list draws another order now than list",
    ),
    "other batches": (Data(split=buckets(3)), Data(split=buckets(4)), "BucketBatchSampler draws another order"),
    "batches in place of indices": (Data(split=drawn()), Data(split=buckets(3)), "sampler is Drawn"),
    "batches removed": (
        Data(split=buckets(3)),
        Data(),
        "batch_sampler is BucketBatchSampler in the checkpoint, None now",
    ),
    "batches added": (
        Data(),
        Data(split=buckets(3)),
        "batch_sampler is None in the checkpoint, BucketBatchSampler now",
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_order_that_cannot_be_made_again_is_an_error_until_it_is_put_back(name: str, tmp_path: Path) -> None:
    before, after, text = IMPOSSIBLE[name]
    ends = list(itertools.accumulate(map(len, before.epochs(2))))
    for path, num_seen in before.checkpoints(tmp_path, max_epochs=1):
        if num_seen in ends:
            assert after.fit(resume=path, max_epochs=2).pairs == after.epochs(2)[1]
            continue
        with pytest.raises(ValueError, match=f"the train split: {text}") as caught:
            after.fit(resume=path, max_epochs=2)
        assert (
            "Train to its end with the sampler and the data of then, and change them after it; or start a new run"
            in str(caught.value)
        )
        assert before.fit(resume=path, max_epochs=2).pairs == before.fit(max_epochs=2).pairs[num_seen:]


def loader_of(length: int) -> DataLoader[Any]:
    return DataLoader(Noisy(length), 2)


KINDS: dict[str, Callable[[int], Any]] = {
    "a Split": lambda length: Split(Noisy(length), batch_size=2),
    "a DataLoader": loader_of,
    "a Split of an IterableDataset": lambda length: Split(Numbers(length), batch_size=2),
    "a list": lambda length: [*loader_of(length)],
}


class Numbers(Stream):
    def __iter__(self) -> Iterator[Any]:
        return ((i, 0.5) for i in super().__iter__())


def fit_kind(kind: str, root: Path, **options: Any) -> list[int]:
    model = Reading()
    quiet(root=root, sanity_batches=0, **options).fit(model, DataModule(KINDS[kind](11)))
    return [index for index, _ in model.pairs]


@pytest.mark.parametrize("steps_per_epoch", [None, 4])
@pytest.mark.parametrize(("before", "after"), [*itertools.permutations(KINDS, 2)])
def test_a_split_of_another_kind_waits_for_the_end_of_the_epoch_where_positions_would_differ(
    before: str, after: str, steps_per_epoch: int | None, tmp_path: Path
) -> None:
    options = {"steps_per_epoch": steps_per_epoch}
    for step in (1, 4, 6):  # Four steps are an epoch here, but no pass.
        root = tmp_path / str(step)
        seen = fit_kind(before, root, max_steps=step, **options)
        is_inside = step < 6 or steps_per_epoch is not None or "Iterable" in before  # Which is not known to have ended.
        if "a Split" in (before, after) and is_inside:
            text = f"the train split was {before} when the epoch began, and is {after} now"
            with pytest.raises(ValueError, match=text):
                fit_kind(after, root, max_steps=9, **options)
            after_all = before
        else:
            after_all = after
        assert seen + fit_kind(after_all, root, max_steps=9, **options) == [*range(11), *range(6)]


# What is said.


def said(before: Data, after: Data, root: Path, step: int, **options: Any) -> list[str]:
    """The lines about the train split, of a resume after some steps."""
    before.fit(root, max_steps=step, **options)
    after.fit(root, max_steps=100, max_epochs=9, **options)
    lines = (root / "reading/train.log").read_text().splitlines()
    return [line.partition(" INFO ")[2] for line in lines if " the train split: " in line]


TEXTS: list[tuple[Data, Data, str]] = [
    (
        Data(1000, split=lambda: {"batch_size": 250, "shuffle": True}),
        Data(1200, split=lambda: {"batch_size": 250, "shuffle": True}),
        "the train split: 1,000 samples when epoch 2 began, 1,200 now; the epoch is finished with what it began with, "
        "and the change counts from epoch 3 on",
    ),
    (
        Data(8, split=lambda: {"batch_size": 2}),
        Data(5, split=lambda: {"batch_size": 2, "shuffle": True}, options={"seed": 3}),
        "the train split: 8 samples when epoch 2 began, 5 now; seed 0 then, 3 now; in the order of the dataset then, "
        "shuffled now; the epoch is finished with what it began with, but 3 samples of its rest are gone and left out, "
        "and the change counts from epoch 3 on",
    ),
    (
        Data(8, split=lambda: {"batch_size": 2}),
        Data(7, split=lambda: {"batch_size": 2}, options={"overfit_batches": 2}),
        "the train split: 8 samples when epoch 2 began, 7 now; 8 samples an epoch then, 4 now; the epoch is finished "
        "with what it began with, but 1 sample of its rest is gone and left out, and the change counts from epoch 3 on",
    ),
    (
        Data(8, split=lambda: {"batch_size": 2}),
        Data(1, split=lambda: {"batch_size": 2}),
        "the train split: 8 samples when epoch 2 began, 1 now; the epoch is finished with what it began with, but 6 "
        "samples of its rest are gone and left out, and the change counts from epoch 3 on",
    ),
    (
        Data(8, split=lambda: {"batch_size": 2}),
        Data(8, split=lambda: {"batch_size": 2, "sampler": Reversed(8)}),
        "the train split: in the order of the dataset when epoch 2 began, Reversed now; the epoch is finished with "
        "what it began with, and the change counts from epoch 3 on",
    ),
    (
        Data(8, split=lambda: {"batch_size": 2}, options={"limit_train_batches": 3}),
        Data(8, split=lambda: {"batch_size": 2, "sampler": Drawn(9)}, options={"limit_train_batches": 2}),
        "the train split: in the order of the dataset when epoch 2 began, Drawn now; the epoch is finished with what "
        "it began with, and the change counts from epoch 3 on",
    ),
    (
        Data(8, split=lambda: {"batch_size": 2}, options={"limit_train_batches": 0.5}),
        Data(16, split=lambda: {"batch_size": 2}, options={"limit_train_batches": 0.5}),
        "the train split: 8 samples when epoch 3 began, 16 now; 4 samples an epoch then, 8 now; the epoch is finished "
        "with what it began with, and the change counts from epoch 4 on",
    ),
    (
        Data(8, split=lambda: {"batch_size": 2}, options={"limit_train_batches": 3}),
        Data(8, split=lambda: {"batch_size": 2}, options={"limit_train_batches": 0.5}),
        "the train split: 6 samples an epoch when epoch 2 began, 4 now; the epoch is finished with what it began with, "
        "and the change counts from epoch 3 on",
    ),
]


@pytest.mark.parametrize(("before", "after", "text"), TEXTS)
def test_a_resume_says_once_what_differs(before: Data, after: Data, text: str, tmp_path: Path) -> None:
    assert said(before, after, tmp_path, 5) == [text]
    assert said(before, before, tmp_path / "same", 5) == []


def test_nothing_is_said_where_an_epoch_begins(tmp_path: Path) -> None:
    assert said(Data(8), Data(11), tmp_path, 4) == []


def test_of_passes_the_pass_is_named(tmp_path: Path) -> None:
    (text,) = said(Data(8), Data(11), tmp_path, 5, steps_per_epoch=1)
    assert text == (
        "the train split: 8 samples when pass 2 began, 11 now; the pass is finished with what it began with, and the "
        "change counts from pass 3 on"
    )


# Where else the length or the epochs may come from.


def test_a_hook_that_grows_the_dataset_grows_it_at_a_resume_too(tmp_path: Path) -> None:
    class Growing(Reading):
        def on_training_epoch_start(self, current_epoch: int) -> None:
            dataset.length = 2 * current_epoch

    def seen(root: Path, **options: Any) -> Seen:
        model = Growing()
        dataset.length = 2  # The program makes it anew.
        quiet(root=root, max_epochs=4, **options).fit(model, DataModule(Split(dataset, batch_size=2, shuffle=True)))
        return model.pairs

    dataset = Noisy(2)
    whole = seen(tmp_path / "whole")
    assert len(whole) == 2 + 4 + 6 + 8
    for step in range(1, 10):
        root = tmp_path / str(step)
        assert seen(root, max_steps=step) + seen(root) == whole
        assert "the train split: " not in (root / "reading/train.log").read_text()


def test_a_split_that_a_hook_makes_anew_in_every_epoch_is_no_other_one_within_an_epoch(tmp_path: Path) -> None:
    class Replacing(Reading):
        def on_training_epoch_start(self, current_epoch: int) -> None:
            self.datamodule.train = Split(Noisy(length), batch_size=2, shuffle=True)

    def seen(**options: Any) -> Seen:
        model = Replacing()
        quiet(max_epochs=2, **options).fit(model, DataModule(Split(Noisy(length), batch_size=2, shuffle=True)))
        return model.pairs

    length = 8
    whole = seen()
    first = seen(root=tmp_path, max_steps=2)
    length = 11
    assert first + seen(root=tmp_path) == whole[:8] + seen()[11:]


class Assigning(Reading):
    """Assigns options of its splits in the second step, and at the start of later epochs, as a resumed one must."""

    def assign(self) -> None:
        train, valid = self.datamodule.train, self.datamodule.valid
        train.batch_size, train.shuffle, valid.batch_size, valid.dataset = 3, True, 3, Noisy(4)

    def on_training_epoch_start(self, current_epoch: int) -> None:
        if current_epoch > 1:
            self.assign()

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        if state.step == 2:
            self.assign()

    def valid_step(self, batch: Any, step: int) -> None:
        self.validated.append(batch[0].tolist())


def test_options_assigned_to_a_split_count_from_the_next_epoch_and_evaluation_on_also_after_a_cut(
    tmp_path: Path,
) -> None:
    def fit(root: Path | None = None, **options: Any) -> Assigning:
        model, data = Assigning(), DataModule(Split(Noisy(11), 2), Split(Noisy(6), 3))
        quiet(root=root, log_every_steps=1, sanity_batches=0, **{"max_epochs": 3, **options}).fit(model, data)
        return model

    whole = fit()
    shuffled = Data(split=lambda: {"batch_size": 3, "shuffle": True}).epochs(3)
    assert whole.pairs == [*Data(split=lambda: {"batch_size": 2}).epochs(1)[0], *shuffled[1], *shuffled[2]]
    assert whole.validated == [[0, 1, 2], [3]] * 3
    for step in (1, 3, 6, 7):
        assert fit(tmp_path / str(step), max_steps=step).pairs + fit(tmp_path / str(step)).pairs == whole.pairs


def test_epochs_of_steps_that_are_not_wanted_any_more_end_first(tmp_path: Path) -> None:
    """Passes of six steps in epochs of four; then epochs that are passes again."""
    whole = Data().epochs(8)
    flat = [*itertools.chain.from_iterable(whole)]
    for step in range(1, 14):
        root = tmp_path / str(step)
        seen = Data().fit(root, max_steps=step, steps_per_epoch=4).pairs
        epochs = -(-step // 4)  # Those that have begun.
        model = Data().fit(root, max_epochs=epochs + 2)
        rest = len(model.pairs) - 22
        assert seen + model.pairs[:rest] == flat[: len(seen) + rest]
        assert model.pairs[rest:] == [*whole[epochs], *whole[epochs + 1]]
        assert model.ends == ([0] if step % 4 == 0 else [0, rest]) + [rest + 11, rest + 22]
        if step % 4 == 0:
            text = f"from epoch {epochs + 1} on an epoch is a pass over the train split, and what is left of pass"
            assert text in (root / "reading/train.log").read_text()


def rest_of(loader: Any, **position: int) -> list[Any]:
    return [batch[0][0].tolist() for batch in loader.epoch(2, **position).batches]


def test_tensors_in_memory_are_left_out_too() -> None:
    first, second = (
        make_loader(Split(TensorDataset(torch.arange(length)), batch_size=2, shuffle=True), "train", 0)
        for length in (9, 6)
    )
    order = [index for batch in rest_of(first) for index in batch]
    untouched = rest_of(second, samples=4, batches=2)
    second.load_state_dict(first.state_dict())
    rest = [index for batch in rest_of(second, samples=4, batches=2) for index in batch]
    assert rest == [index for index in order[4:] if index < 6]
    assert rest_of(second, samples=4, batches=2) == untouched  # A state is used once.


def test_a_position_without_what_the_epoch_began_with_is_one_in_the_epoch_of_now() -> None:
    """A checkpoint of an earlier version, and a split that a hook has put in place within a pass."""
    split = Split(TensorDataset(torch.arange(9)), batch_size=2)
    loader = make_loader(split, "train", 0)
    loader.load_state_dict({})
    assert rest_of(loader, samples=4, batches=2) == [[4, 5], [6, 7], [8]]


def test_another_sampler_that_draws_the_same_order_is_as_good() -> None:
    first, second = (
        make_loader(Split(Noisy(4), batch_size=1, sampler=sampler), "train", 0)
        for sampler in ([3, 1, 0, 2], numpy.array([3, 1, 0, 2]))
    )
    whole = rest_of(first)
    second.load_state_dict(first.state_dict())
    assert rest_of(second, samples=1, batches=1) == whole[1:]


def test_an_order_that_is_not_of_integers_is_compared_by_the_class_of_its_sampler_only() -> None:
    class Letters(Dataset):
        def __len__(self) -> int:
            return length

        def __getitem__(self, letter: str) -> int:
            return {"a": 1, "b": 2, "c": 3}[letter]

    length = 3

    def make(sampler: Any) -> Any:
        return make_loader(Split(Letters(), batch_size=1, sampler=sampler, seed_samples=False), "train", 0)

    first, second, third = make(["c", "a", "b"]), make(["c", "b", "a"]), make(("c", "a", "b"))
    assert [batch[0].tolist() for batch in first.epoch(0).batches] == [[3], [1], [2]]
    state = first.state_dict()
    length = 2  # Nothing says which letters are gone.
    for loader in (second, third):
        loader.load_state_dict(state)
    assert [batch[0].tolist() for batch in second.epoch(0, samples=1, batches=1).batches] == [[2], [1]]
    with pytest.raises(ValueError, match="tuple draws another order now than list"):
        third.epoch(0, samples=1, batches=1)


# Several processes.

ORDERS: dict[str, Callable[[], dict[str, Any]]] = {
    "shuffled": lambda: {"batch_size": 2, "shuffle": True},
    "drawn": drawn(),
    "batches": batches_of(1, 2, 3, 1, 4),
}


def of_all_ranks(length: int, kind: str, size: int, state: Any = None, **position: int) -> tuple[list[Any], Any]:
    """What each rank reads in an epoch, batch by batch, and its state, which is the same on all ranks."""
    read, states = [], []
    for rank in range(size):
        split = Split(Noisy(length), **ORDERS[kind]())
        loader = make_loader(split, "train", 0, World(rank=rank, size=size))
        loader.load_state_dict({} if state is None else state)
        batches = list(loader.epoch(1, **position).batches)
        read.append([([*zip(*(part.tolist() for part in batch[0]), strict=True)], batch[2]) for batch in batches])
        states.append(loader.state_dict())
    assert all(each == states[0] for each in states)
    return read, states[0]


@pytest.mark.parametrize("sizes", [(1, 2), (2, 1), (2, 3)])
@pytest.mark.parametrize("after", [17, 11, 7])
@pytest.mark.parametrize("kind", ORDERS)
def test_another_number_of_ranks_finishes_the_epoch_as_it_began(kind: str, after: int, sizes: Any) -> None:
    """At the end fewer samples than ranks may be left over, as ever."""
    whole, _ = of_all_ranks(11, kind, 1)
    order = [pair for batch, _ in whole[0] for pair in batch]
    read, state = of_all_ranks(11, kind, sizes[0])
    position = 0
    for number, batches in enumerate(zip(*read, strict=True)):
        rest, _ = of_all_ranks(after, kind, sizes[1], state, samples=position, batches=number)
        found = [pair for step in zip(*rest, strict=True) for batch, _ in step for pair in batch]
        expected = [pair for pair in order[position:] if pair[0] < after] if position > 0 else found
        assert len(expected) - len(found) < sizes[1]
        assert sorted(found) == sorted(expected[: len(found)])
        position += batches[0][1]
    assert number >= 1


@scenario(ranks=2)
def rest_by_two(root: Path, world: World) -> list[Any]:
    """Two processes go on where one was, with other data; then they leave the epoch unfinished themselves."""
    options = {"root": root / "elastic", "max_epochs": 2}
    models = [Data(14).fit(max_steps=3, **options), Data(14).fit(**options)]
    other = Data(9).fit(root=root / "two", max_steps=2)
    return world.gather([model.pairs for model in (*models, other)])


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("scenarios")
    Data(11).fit(root / "elastic", max_steps=2)
    return Results(__name__, root)


def test_processes_that_share_the_rest_of_an_epoch_read_what_it_began_with(result: Results) -> None:
    with deadline(120):
        (cut, rest, left), (other_cut, other_rest, other_left) = result(rest_by_two, ranks=2)
    old, new = Data(11).epochs(2)[0], Data(14).epochs(2)[1]
    assert sorted(cut + other_cut) == sorted(old[4:8])
    assert sorted(rest + other_rest) == sorted([*old[8:], *new])
    log = (result.root / "elastic/reading/train.log").read_text()
    assert log.count("the train split: 11 samples when epoch 1 began, 14 now") == 2  # Once a resume.
    whole = Data(9).epochs(2)
    assert sorted(left + other_left) == sorted(whole[0][:8])
    model = Data(6).fit(result.root / "two", max_epochs=1)
    assert model.pairs == [pair for pair in whole[0][8:] if pair[0] < 6]
