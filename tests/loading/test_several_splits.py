"""Several train splits, whose batches come together: which samples a step has, over resumes and several ranks too."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import same, weights
from helpers.models import Indices, Stream, Tiny, quiet
from helpers.processes import deadline  # noqa: F401
from torch.utils.data import DataLoader

from helios_lite import DataModule, Split, TrainingState
from helios_lite.loading.train_data import TrainData
from helios_lite.nested import count_samples
from helios_lite.options import Options
from helios_lite.processes.world import World
from helios_lite.samplers import BucketBatchSampler


class Noisy(Indices):
    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        return index, super().__getitem__(index)[1] + torch.rand(3)


class Joined(Tiny):
    """Notes the batches that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[dict[str, Any]] = []

    def train_step(self, batch: Any, state: Any) -> None:
        self.batches.append(batch)
        super().train_step([torch.cat(parts) for parts in zip(*batch.values(), strict=True)], state)


def split(length: int, **options: Any) -> Split:
    return Split(Noisy(length), **{"batch_size": 2, "shuffle": True, **options})


class Positioned:
    """Four batches, with a state."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[Any]:
        batches = list(DataLoader(Indices(7), 2, generator=torch.Generator()))
        while self.position < len(batches):
            self.position += 1
            yield batches[self.position - 1]
        self.position = 0

    def __len__(self) -> int:
        return 4

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


SITUATIONS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "longer": (lambda: split(7), {"accumulation_steps": 2}),
    "shorter": (lambda: split(3), {"epoch_split": "a"}),
    "steps": (lambda: split(3), {"steps_per_epoch": 4}),
    "limited": (lambda: split(7), {"limit_train_batches": 2}),
    "overfit": (lambda: split(2), {"overfit_batches": 2}),
    "bucketed": (
        lambda: Split(Noisy(7), batch_sampler=BucketBatchSampler([1, 2, 3, 4, 5, 6, 7], batch_size=2)),
        {},
    ),
    "loader": (lambda: DataLoader(Noisy(7), 2, shuffle=True), {}),
    "positioned": (Positioned, {}),
    "workers": (lambda: split(7, num_workers=2), {}),
}


def fit(b: Any, epoch_split: str | None = None, **options: Any) -> Joined:
    model = Joined()
    data = DataModule({"a": split(5), "b": b}, epoch_split=epoch_split)
    quiet(**{"max_epochs": 3, **options}).fit(model, data)
    return model


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_run_that_is_cut_after_any_step_ends_like_one_that_was_not(name: str, tmp_path: Path) -> None:
    make, options = SITUATIONS[name]
    options = {"max_epochs": 2, **options}
    whole = fit(make(), root=tmp_path, save_every_steps=1, keep_last=-1, async_save=False, **options)
    paths = {int(path.stem.split("_")[-1]): path for path in tmp_path.glob("tiny/checkpoints/*.pth")}
    steps, per_step = max(paths), options.get("accumulation_steps", 1)
    assert len(paths) == steps
    assert name != "overfit" or same(whole.batches[0], whole.batches[1])
    for cut in [2] if name == "workers" else range(1, steps):
        rest = fit(make(), resume=paths[cut], **options)
        assert len(rest.batches) >= len(whole.batches) - per_step * cut
        assert same(rest.batches, whole.batches[-len(rest.batches) :])
        assert same(weights(rest), weights(whole)), cut


def indices(model: Joined, name: str) -> list[int]:
    return [index for batch in model.batches for index in batch[name][0].tolist()]


def test_the_shortest_split_or_the_named_one_ends_the_epoch_and_the_others_go_on_and_begin_again() -> None:
    for length, named, batches, b_passes in ((7, None, 9, 2.25), (3, "a", 9, 4.5), (3, None, 6, 3), (7, "b", 12, 3)):
        model, data = Joined(), DataModule({"a": split(5), "b": split(length)}, epoch_split=named)
        result = quiet(max_epochs=3, seed=7).fit(model, data)
        assert (len(model.batches), result.state.step, result.state.epoch) == (batches, batches, 3)
        assert [*model.batches[0]] == ["a", "b"]
        for name, passes in (("a", batches / 3), ("b", b_passes)):
            order = [index for i in range(5) for index in data.train[name].order(7, i, name)]
            found = indices(model, name)
            assert found == order[: len(found)]
            assert passes * len(data.train[name].dataset) - len(found) < 2
        assert result.state.epoch_samples == 0


def test_another_split_may_end_the_epochs_that_follow(tmp_path: Path) -> None:
    class Naming(Joined):
        def on_training_epoch_start(self, current_epoch: int) -> None:
            self.datamodule.epoch_split = "a" if current_epoch < 3 else "b"

    def fit(**options: Any) -> Naming:
        model = Naming()
        quiet(max_epochs=4, **options).fit(model, DataModule({"a": split(5), "b": split(7)}))
        return model

    whole = fit(root=tmp_path, save_every_steps=1, keep_last=-1, async_save=False)
    assert len(whole.batches) == 3 + 3 + 4 + 4
    passes = [split(5).order(0, i, "a") for i in range(5)]
    assert indices(whole, "a") == [index for order in passes for index in order][: len(indices(whole, "a"))]
    ends = [split(7).order(0, i, "b") for i in (0, 1, 2, 3)]  # A pass of "b" begins with the epoch that it ends.
    assert indices(whole, "b") == [*ends[0], *ends[1][:4], *ends[2], *ends[3]]
    for path in tmp_path.glob("tiny/checkpoints/*.pth"):
        rest = fit(resume=path)
        assert same(rest.batches, whole.batches[len(whole.batches) - len(rest.batches) :])


def test_splits_of_the_same_data_have_other_orders_and_random_numbers() -> None:
    model = Joined()
    data = DataModule({"a": split(6), "b": split(6)})
    quiet(max_epochs=1, seed=3).fit(model, data)
    assert indices(model, "a") != indices(model, "b")
    (index, x), (other, y) = model.batches[0].values()
    for name, i, value in (("a", int(index[0]), x[0]), ("b", int(other[0]), y[0])):
        torch.manual_seed(data.train[name].sample_seed(3, 0, i, name))
        assert torch.equal(data.train[name].dataset[i][1], value)


# Several ranks: what each of them reads, and what one reads in the place of others.


def make_ranks(size: int, make: Callable[[], DataModule], **options: Any) -> list[TrainData]:
    options = {"max_steps": 99, **options}
    return [TrainData(make(), Options(**options), World(rank=i, size=size), count_samples) for i in range(size)]


def read(ranks: list[TrainData], state: TrainingState, number: int) -> list[dict[str, list[int]]]:
    """Read so many batches on all ranks, over the ends of epochs, and return the indices that all have read."""
    found: list[dict[str, list[int]]] = []
    while len(found) < number:
        for together in zip(*(rank.rest_of_epoch(state) for rank in ranks), strict=True):
            found.append({name: [int(i) for b in together for i in b[0][name][0]] for name in together[0][0]})
            assert sum(batch[1] for batch in together) == together[0][2]
            assert sum(batch[3] for batch in together) == pytest.approx(len(ranks))
            state.epoch_batch, state.epoch_samples = state.epoch_batch + 1, state.epoch_samples + together[0][2]
            if len(found) == number and not together[0][5]:
                return found
        state.epoch, state.epoch_batch, state.epoch_samples = state.epoch + 1, 0, 0
    return found


@pytest.mark.parametrize("options", [{}, {"steps_per_epoch": 3}])
def test_the_number_of_ranks_may_change_anywhere(options: dict[str, Any]) -> None:
    def make() -> DataModule:
        return DataModule(
            {"a": split(20, batch_size=None, global_batch_size=4), "b": split(26, batch_size=None, global_batch_size=4)}
        )

    whole = read(make_ranks(1, make, **options), TrainingState(), 17)
    for cut in range(1, 16):
        state, found, by_rank = TrainingState(), [], []
        for size, number in ((2, cut), (1, 1), (2, 16 - cut)):
            ranks = make_ranks(size, make, **options)
            for rank in ranks:
                if by_rank:
                    rank.load_ranks(by_rank, World(rank=0, size=size))
                rank.loader()
            found += read(ranks, state, number)
            by_rank = [rank.state_dict() for rank in ranks]
            for rank in ranks:
                rank.close()
        for name in ("a", "b"):
            assert [sorted(batch[name]) for batch in found] == [sorted(batch[name]) for batch in whole]


def test_a_split_that_fails_to_load_is_read_again_after_a_resume(tmp_path: Path) -> None:
    class Failing(Noisy):
        fails = True

        def __getitem__(self, index: int) -> Any:
            if self.fails and index == 3:
                raise OSError("a bad disk")
            return super().__getitem__(index)

    whole = fit(split(7, shuffle=False), max_epochs=2)
    broken, model = Split(Failing(7), batch_size=2), Joined()
    data = DataModule({"b": split(7, shuffle=False), "c": broken, "a": split(5)})
    expected = Joined()
    quiet(max_epochs=2).fit(expected, DataModule({**data.train, "c": split(7, shuffle=False)}))
    with pytest.raises(OSError, match="a bad disk"):
        quiet(max_epochs=2, root=tmp_path).fit(model, data)
    Failing.fails = False
    rest = Joined()
    quiet(max_epochs=2, root=tmp_path).fit(rest, data)
    assert same([*model.batches, *rest.batches], expected.batches)
    assert same(weights(rest), weights(expected))
    assert len(whole.batches) == len(expected.batches)


class Changing(Joined):
    """Puts another split in place of "b" when the second epoch begins."""

    def on_training_epoch_start(self, current_epoch: int) -> None:
        if current_epoch == 2:
            self.datamodule.train["b"] = split(13, batch_size=1)


@pytest.mark.parametrize("options", [{}, {"steps_per_epoch": 4}])
def test_a_hook_may_replace_a_split_which_is_read_from_the_position_of_the_other(
    options: dict[str, Any], tmp_path: Path
) -> None:
    def fit(**more: Any) -> Changing:
        model = Changing()
        quiet(max_epochs=3, **options, **more).fit(model, DataModule({"a": split(5), "b": split(11)}))
        return model

    whole = fit(root=tmp_path, save_every_steps=1, keep_last=-1, async_save=False)
    num = options.get("steps_per_epoch", 3)
    assert [len(batch["b"][0]) for batch in whole.batches] == [2] * num + [1] * (len(whole.batches) - num)
    assert indices(whole, "b")[2 * num :][:2] == split(13).order(0, 0, "b")[2 * num :][:2]
    for path in tmp_path.glob("tiny/checkpoints/*.pth"):
        if int(path.stem.split("_")[-1]) in (num - 1, num):  # Later starts have the split of then from the beginning.
            rest = fit(resume=path)
            assert same(rest.batches, whole.batches[-len(rest.batches) :])
            assert same(weights(rest), weights(whole))


def test_changed_data_of_a_begun_pass_count_from_its_next_one_on_and_a_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(split(7), root=tmp_path, max_steps=2)
    rest = fit(split(9), root=tmp_path, max_steps=9)
    expected = [*split(7).order(0, 0, "b")[4:], *split(9).order(0, 1, "b")]
    assert indices(rest, "b") == expected[: 2 * len(rest.batches) - 1]
    text = "the train/b split: 7 samples when pass 1 began, 9 now; the pass is finished with what it began with"
    assert [record.message for record in caplog.records if text in record.message]


def test_an_epoch_that_has_begun_ends_with_the_split_with_which_it_began(tmp_path: Path) -> None:
    fit(split(7), root=tmp_path, max_steps=1)
    rest = fit(split(3), root=tmp_path, max_steps=5)  # The shortest from the second epoch on.
    assert indices(rest, "a") == [*split(5).order(0, 0, "a")[2:], *split(5).order(0, 1, "a")[:4]]
    assert indices(rest, "b")[-3:] == split(3).order(0, 1, "b")


@pytest.mark.parametrize(
    ("before", "now", "step", "match"),
    [
        ({"a": 5, "b": 7}, 5, 2, r"the train split was a dict of a, b when the epoch began, and is a Split now"),
        (9, {"a": 5, "b": 7}, 2, r"the train split was a Split when the epoch began, and is a dict of a, b now"),
        ({"a": 5, "b": 7}, [], 2, r"the train split was a dict of a, b when the epoch began, and is a list now"),
        ({"a": 5, "b": 7}, {"a": 5, "c": 7}, 2, r"was a dict of a, b when the epoch began, and is a dict of a, c now"),
        ({"a": 5, "b": 7}, {"a": 5, "b": []}, 3, r"the train/b split was a Split when the epoch began, and is a list"),
        ({"a": 5, "b": 7}, {"a": 5, "c": 7}, 3, ""),
    ],
)
def test_what_cannot_go_on_inside_of_an_epoch_or_a_pass_is_an_error(
    before: Any, now: Any, step: int, match: str, tmp_path: Path
) -> None:
    def source(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: source(part) for name, part in value.items()}
        return split(value) if isinstance(value, int) else list(DataLoader(Indices(7), 2))

    class Either(Joined):
        def train_step(self, batch: Any, state: Any) -> None:
            super().train_step(batch if isinstance(batch, dict) else {"a": batch}, state)

    quiet(root=tmp_path, max_steps=step).fit(Either(), DataModule(source(before)))
    trainer = quiet(root=tmp_path, max_steps=step + 3)
    if match:
        with pytest.raises(ValueError, match=match):
            trainer.fit(Either(), DataModule(source(now)))
    else:
        model = Either()
        trainer.fit(model, DataModule(source(now)))
        assert indices(model, "c") == split(7).order(0, 0, "c")[: len(indices(model, "c"))]


def test_several_splits_that_do_not_say_when_an_epoch_ends_are_an_error() -> None:
    stream = Split(Stream(9), batch_size=2)
    for data, error, match in (
        (DataModule({"a": split(5), "b": stream}), ValueError, "^epoch_split: name the .* because 'b' has no length"),
        (DataModule({"a": split(5)}, epoch_split="b"), ValueError, "^epoch_split='b': must be a name in `train`: a$"),
        (DataModule({}), ValueError, "^the train split is an empty dict"),
        (DataModule({1: split(5)}), TypeError, "^the name of a train split=1: must be a str"),
    ):
        with pytest.raises(error, match=match):
            quiet(max_epochs=1).fit(Joined(), data)


def test_a_replayed_step_has_the_samples_of_every_split(tmp_path: Path) -> None:
    data = DataModule({"a": split(5), "b": split(7)})
    model = Joined()
    trainer = quiet(max_epochs=2, root=tmp_path)
    trainer.fit(model, data)
    replay = trainer.replay(Joined(), data, 5)
    (batch,) = replay.batches
    assert same(batch.batch, model.batches[4])
    assert isinstance(batch.indices, dict)
    assert {name: found.tolist() for name, found in batch.indices.items()} == {
        name: part[0].tolist() for name, part in model.batches[4].items()
    }
    assert f"samples b: {', '.join(map(str, batch.indices['b'].tolist()))}" in str(replay).replace(" b ", " b: ")


def test_the_plan_of_several_splits_counts_the_one_that_ends_an_epoch(tmp_path: Path) -> None:
    data = DataModule({"a": split(5), "b": split(7)}, epoch_split="b")
    plan = quiet(max_epochs=3, root=tmp_path).plan(Joined(), data)
    assert (plan.steps, plan.steps_per_epoch, plan.samples_per_step) == (12, 4, 2)
