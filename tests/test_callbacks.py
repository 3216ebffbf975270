"""Callbacks that come with the package, each against the same thing by hand, resumed in the middle."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import same, weights
from helpers.models import HOOKS, Indices, Scripted, Tiny, data, quiet, scripted
from helpers.rows import read_rows
from torch import nn
from torch.utils.data import DataLoader

from helios_lite import Callback, DataModule, Model, Split, Trainer
from helios_lite.callbacks import EMA, ActivationStatistics, DeviceMemory, Profile


class Noting(Tiny):
    """Notes the weights after every step, and those it is evaluated with."""

    def __init__(self) -> None:
        super().__init__()
        self.trained: list[Any] = []
        self.evaluated: list[Any] = []

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        super().on_training_batch_end(state, should_log)
        if state.step > (self.trained[-1][0] if self.trained else 0):
            self.trained.append((state.step, weights(self)["net"]))

    def valid_step(self, batch: Any, step: int) -> None:
        super().valid_step(batch, step)
        self.evaluated.append(weights(self)["net"])


def average(trained: list[Any], decay: float) -> list[dict[str, torch.Tensor]]:
    """The average after each of some steps; PyTorch's begins with a copy of the weights after the first."""
    averages = [trained[0]]
    for new in trained[1:]:
        averages.append({name: averages[-1][name] * decay + new[name] * (1 - decay) for name in new})
    return averages


OPTIONS: dict[str, Any] = {"max_epochs": 4, "accumulation_steps": 2, "sanity_batches": 0}


def test_validations_and_tests_use_the_average_and_training_does_not_notice(tmp_path: Path) -> None:
    model, ema = Noting(), EMA(decay=0.5)
    trainer = quiet(root=tmp_path, callbacks=[ema], valid_every_epochs=1, **OPTIONS)
    result = trainer.fit(model, data(valid=4))
    plain = Noting()
    quiet(**OPTIONS).fit(plain, data(valid=4))
    assert [step for step, _ in model.trained] == list(range(1, 9))
    assert same(model.trained, plain.trained)
    expected = average([net for _, net in plain.trained], 0.5)
    for epoch, found in enumerate(model.evaluated):
        for name, value in found.items():
            torch.testing.assert_close(value, expected[2 * epoch + 1][name])
    assert same(weights(model)["net"], plain.trained[-1][1])

    tested = Noting()
    metrics = quiet(root=tmp_path, callbacks=[EMA(decay=0.5)], max_epochs=4).test(tested, data(valid=4), "last")
    assert same(tested.evaluated[0], model.evaluated[-1])
    assert metrics["test/loss"] == pytest.approx(result.metrics["valid/loss"])
    again = Noting()  # And in the process that has trained, without any checkpoint.
    run = quiet(callbacks=[ema], **OPTIONS)
    run.fit(again, data(valid=4))
    run.test(again, data(valid=4), checkpoint=None)
    assert same(again.evaluated[-1], model.evaluated[-1])


def test_an_average_resumes_with_the_same_bits(tmp_path: Path) -> None:
    ends = []
    for name, stops in (("whole", (8,)), ("parts", (1, 3, 8))):
        for steps in stops:
            ema = EMA(decay=0.9)
            quiet(root=tmp_path / name, callbacks=[ema], **{**OPTIONS, "max_epochs": None, "max_steps": steps}).fit(
                Tiny(), data()
            )
        ends.append(ema.state_dict())
    assert same(ends[0], ends[1])


@pytest.mark.parametrize("async_save", [False, True])
def test_the_best_checkpoint_gives_the_average_that_was_validated(tmp_path: Path, async_save: bool) -> None:
    model = Noting()
    options: dict[str, Any] = {"root": tmp_path, "monitor": "valid/loss", "mode": "max", **OPTIONS}
    result = quiet(callbacks=[EMA(decay=0.5)], async_save=async_save, **options).fit(model, data(valid=4))
    assert result.state.best_step == 2 < result.state.step
    validated, trained = model.evaluated[0], model.trained[1][1]
    assert not same(validated, trained)
    for path, expected in ((result.best_checkpoint, validated), (result.last_checkpoint, model.evaluated[-1])):
        assert same(weights(Noting.load_from_checkpoint(path))["net"], expected)
    assert same(torch.load(result.best_checkpoint, weights_only=True)["model"]["net"], trained)
    for callbacks in ([], [EMA(decay=0.5)]):
        tested = Noting()
        metrics = quiet(callbacks=callbacks, **options).test(tested, data(valid=4))
        assert same(tested.evaluated[0], validated)
        assert same(weights(tested)["net"], validated)
        assert metrics["test/loss"] == result.best_metrics["valid/loss"]


def test_before_the_first_step_the_weights_are_validated(tmp_path: Path) -> None:
    """Such as those of a checkpoint that has no average; the average itself begins with a copy of what `setup` made."""
    result = quiet(root=tmp_path, max_epochs=1).fit(Tiny(), data())
    model = Noting()
    metrics = quiet(root=tmp_path, max_epochs=1, callbacks=[EMA()]).validate(model, data(), "last")
    assert metrics["valid/loss"] == result.metrics["valid/loss"]
    assert same(model.evaluated[0], torch.load(result.last_checkpoint, weights_only=True)["model"]["net"])


@pytest.mark.parametrize("decay", [-0.1, 1, 2])
def test_a_wrong_decay_is_an_error(decay: float) -> None:
    with pytest.raises(ValueError, match=f"^decay={decay}"):
        EMA(decay=decay)


class Halves(Tiny):
    """Its activations are known: 0 and 2 in turn."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.probe = nn.ReLU()
        self.is_measured: list[bool] = []

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        self.is_measured.append(len(self.probe._forward_hooks) > 0)
        self.probe(torch.tensor([-1.0, 2.0, 2.0, -1.0]))


def test_activations_are_measured_at_log_points_only(tmp_path: Path) -> None:
    model = Halves()
    quiet(max_steps=6, root=tmp_path, log_every_steps=3, callbacks=[ActivationStatistics(["probe", "net.0"])]).fit(
        model, data(train=40)
    )
    rows = read_rows(tmp_path / "tiny")
    found = {row["step"]: row for row in rows if "train/loss" in row}
    assert set(found) == {3, 6}
    for row in found.values():
        assert row["train/activation/probe/mean"] == 1.0
        assert row["train/activation/probe/std"] == pytest.approx((4 / 3) ** 0.5)
        assert row["train/activation/probe/zeros"] == 0.5
        assert row["train/activation/net.0/std"] > 0
    assert model.is_measured == [False, False, True] * 2


class Nested(Tiny):
    """Has modules with several outputs, and one that is called twice; the loss is the number of the step."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.lstm, self.twice, self.made = nn.LSTM(3, 4), nn.Identity(), Made()

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        self.lstm(batch[1][:, None])
        self.made(batch[1])
        self.twice(torch.full((2,), 2.0 * state.batch))
        self.twice(torch.full((2,), 4.0 * state.batch))


class Made(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return {"ids": torch.arange(3), "none": None, "empty": x[:0], "pair": [x.bfloat16(), x > 0]}


@pytest.mark.parametrize("is_sized", [True, False])
def test_every_row_has_the_activations_of_the_batch_before_it(tmp_path: Path, is_sized: bool) -> None:
    model, paths = Nested(), ["lstm", "twice", "made"]
    callbacks = [ActivationStatistics(paths), DeviceMemory()]
    train = Split(Indices(10), 2) if is_sized else Batches()
    run = quiet(root=tmp_path, log_every_steps=2, max_epochs=2, accumulation_steps=2, callbacks=callbacks)
    run.fit(model, DataModule(train=train))
    rows = [row for row in read_rows(tmp_path / "tiny") if "train/loss" in row]
    assert [row["step"] for row in rows] == [2, 3, 4, 6]
    for row, batch in zip(rows, (3, 4, 6, 9), strict=True):
        assert row["train/activation/twice/mean"] == 3.0 * batch
        assert row["train/memory_mib"] > 0
        names = {name.removeprefix("train/activation/").rsplit("/", 1)[0] for name in row if "activation" in name}
        assert names == {"lstm/0", "lstm/1.0", "lstm/1.1", "twice", "made/pair.0"}


class Batches:
    """Five batches of two samples, without a length."""

    def __iter__(self) -> Any:
        return iter(DataLoader(Indices(10), 2))


def test_activations_of_a_module_that_is_not_there_are_an_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="7"):
        quiet(max_epochs=1, callbacks=[ActivationStatistics(["net.7"])]).fit(Tiny(), data())


def test_activations_of_a_module_that_takes_no_hooks_are_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="net is a scripted module, or a part of one, and takes no hooks"):
        quiet(max_epochs=1, callbacks=[ActivationStatistics(["net"])]).fit(Scripted(), data())


class Single(Tiny):
    """Has modules with one output, and fails in its second step."""

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Sequential(nn.Linear(3, 1)))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

    def train_step(self, batch: Any, state: Any) -> None:
        loss = self.net(batch[1]).mean()
        if state.step == 1:
            raise KeyError("step")
        self.backward(loss)
        self.optimizer_step(self.optimizer)


def test_a_single_activation_has_no_deviation_and_an_exception_removes_the_hooks(tmp_path: Path) -> None:
    model = Single()
    options: dict[str, Any] = {"callbacks": [ActivationStatistics(["net.0"])], "log_every_steps": 1, "max_epochs": 1}
    with pytest.raises(KeyError, match="step"):
        quiet(root=tmp_path, **options).fit(model, data(train=2, batch_size=1))
    (row,) = [json.loads(line) for line in (tmp_path / "tiny/metrics.jsonl").read_text().splitlines()]
    assert row["train/activation/net.0/std"] == 0.0
    assert len(model.net[0]._forward_hooks) == 0


def test_memory_is_that_of_the_process() -> None:
    result = quiet(max_epochs=1, accelerator="cpu", callbacks=[DeviceMemory()]).fit(Tiny(), data())
    assert 50 < result.metrics["train/memory_mib"] < 100_000


@pytest.mark.filterwarnings("ignore")
def test_a_profile_has_the_steps_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for last in (2, 4):
        monkeypatch.chdir(tmp_path)
        profile = Profile(str(last), first=2, last=last)
        monkeypatch.chdir(tmp_path.parent)
        quiet(max_steps=6, callbacks=[profile]).fit(Tiny(), data())
        events = json.loads((tmp_path / str(last) / "trace_0.json").read_text())["traceEvents"]
        counts.append(sum(event.get("name", "").startswith("Optimizer.step#Adam") for event in events))
    assert counts == [1, 3]


def steps_in(trace: Path) -> int:
    events = json.loads(trace.read_text())["traceEvents"]
    return sum(event.get("name", "").startswith("Optimizer.step#") for event in events)


@pytest.mark.filterwarnings("ignore")
def test_a_profile_ends_with_the_training_and_each_part_of_a_cut_one_has_its_file(tmp_path: Path) -> None:
    options: dict[str, Any] = {"root": tmp_path, "callbacks": [Profile(tmp_path / "traces", first=2, last=5)]}
    cut = quiet(max_steps=3, **options)
    cut.fit(Tiny(), data())
    cut.fit(Tiny(), data())
    quiet(fast_dev_run=True, callbacks=[Profile(tmp_path / "traces", first=1, last=1)]).fit(Tiny(), data())
    run = quiet(max_steps=8, **options)
    run.fit(Tiny(), data())
    files = sorted((tmp_path / "traces").iterdir())
    assert {path.name: steps_in(path) for path in files} == {"trace_0.json": 2, "trace_0_from_4.json": 2}
    written = [path.read_bytes() for path in files]
    run.replay(Tiny(), data(), step=7)
    run.test(Tiny(), data(), "last")
    assert [path.read_bytes() for path in sorted((tmp_path / "traces").iterdir())] == written
    for where in ("train_step", "valid_step"):
        folder = tmp_path / where
        profile = Profile(folder, first=2, last=50)
        with pytest.raises(KeyError):
            quiet(callbacks=[profile], max_epochs=2, sanity_batches=0).fit(Sharing(fails_in=where), data())
        assert not torch._C._autograd._profiler_enabled()
        assert steps_in(folder / "trace_0.json") == {"train_step": 1, "valid_step": 2}[where]


def test_a_profile_that_ends_before_it_begins_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="first=3, last=2"):
        Profile(tmp_path, first=3, last=2)


@pytest.mark.filterwarnings("ignore")
def test_two_profiles_of_the_same_steps_are_an_error_that_names_them(tmp_path: Path) -> None:
    several = [Profile(tmp_path / "a", first=1, last=2), Profile(tmp_path / "b", first=3, last=4)]
    quiet(max_steps=3, callbacks=several).fit(Tiny(), data())
    assert [steps_in(path) for path in sorted(tmp_path.glob("*/trace_0.json"))] == [2, 1]
    with pytest.raises(ValueError, match=r"^Profile\(folder=.*/a'\): another Profile has it"):
        quiet(max_steps=2, callbacks=[several[0], Profile(tmp_path / "a", 5, 6)]).fit(Tiny(), data())
    with pytest.raises(ValueError, match=r"^Profile\(first=2, last=3\): another Profile records steps 3 to 4"):
        quiet(max_steps=2, callbacks=[Profile(tmp_path, first=2, last=3), several[1]]).fit(Tiny(), data())
    with (
        torch.profiler.profile(),
        pytest.raises(RuntimeError, match=r"^Profile\(first=1, last=2\): another profiler is recording at step 1"),
    ):
        quiet(max_steps=2, callbacks=several).fit(Tiny(), data())


def test_a_callback_that_setup_of_the_model_adds_is_called() -> None:
    class Noted(Callback):
        steps = 0

        def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
            self.steps += 1

    class Adding(Tiny):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.trainer.callbacks.append(noted)

    noted = Noted()
    quiet(max_steps=3, callbacks=[]).fit(Adding(), data())
    assert noted.steps == 3


def test_a_callback_has_the_trainer_of_its_model_and_none_outside_of_a_run(tmp_path: Path) -> None:
    class Reading(Callback[Tiny]):
        def setup(self, fast_init: bool = False) -> None:
            seen.append((self.trainer, self.model, self.datamodule, self.run_folder))

    seen: list[Any] = []
    callback, model, datamodule = Reading(), Tiny(), data()
    for name in ("trainer", "model", "datamodule", "run_folder"):
        with pytest.raises(RuntimeError, match=rf"^Reading\.{name}: no Trainer is running this callback$"):
            getattr(callback, name)
    trainer = quiet(max_steps=1, callbacks=[callback], root=tmp_path)
    trainer.fit(model, datamodule)
    assert seen == [(trainer, model, datamodule, tmp_path / "tiny")]
    with pytest.raises(RuntimeError, match=r"^Reading\.trainer: no Trainer is running this callback$"):
        _ = callback.trainer
    assert callback.model is model
    assert callback.datamodule is datamodule


class Periodic(Callback):
    """Notes the calls of its hooks, each with the number of the step or the epoch."""

    def __init__(self, **periods: int) -> None:
        vars(self).update(periods)
        self.steps: list[tuple[str, int]] = []
        self.epochs: list[tuple[str, int]] = []
        self.epoch = 0

    def on_training_end(self) -> None:
        self.epochs_of_training = [*self.epochs]  # Without the validation of the final weights.

    def on_training_epoch_start(self, current_epoch: int) -> None:
        self.epoch = current_epoch

    def on_training_batch_start(self, state: Any) -> None:
        self.steps.append(("start", state.batch))

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        self.steps.append(("end", state.batch))

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self.epochs.append(("epoch end", current_epoch))

    def on_validation_start(self, validation_cycle: int) -> None:
        self.epochs.append(("valid", validation_cycle))

    def on_validation_batch_start(self, step: int) -> None:
        self.epochs.append(("valid batch", step))

    def on_validation_batch_end(self, step: int) -> None:
        self.epochs.append(("valid batch end", step))

    def on_validation_end(self, validation_cycle: int) -> None:
        self.epochs.append(("valid end", validation_cycle))


VALIDATED = [("valid batch", 0), ("valid batch end", 0), ("valid batch", 1), ("valid batch end", 1)]


def test_periods_limit_the_hooks_of_steps_and_epochs_with_the_same_calls_after_a_resume(tmp_path: Path) -> None:
    """An epoch has three batches and two steps, the second of one batch; steps 3, 6 and 9 are asked for."""
    found = []
    for name, stops in (("whole", (10,)), ("parts", (2, 3, 5, 7, 10))):
        steps, epochs, every = [], [], 0
        for max_steps in stops:
            limited, other = Periodic(every_n_steps=3, every_n_epochs=2), Periodic()
            options = {"max_steps": max_steps, "accumulation_steps": 2, "sanity_batches": 0}
            quiet(root=tmp_path / name, callbacks=[limited, other], **options).fit(Tiny(), data())
            steps += limited.steps
            epochs += limited.epochs_of_training
            every += len(other.steps)
        found.append((steps, epochs))
        assert every == 2 * 15
    assert found[0] == found[1]
    assert found[0][0] == [(when, batch + (when == "end")) for batch in (3, 4, 8, 12, 13) for when in ("start", "end")]
    assert found[0][1] == [
        call for epoch in (2, 4) for call in [("valid", epoch), *VALIDATED, ("valid end", epoch), ("epoch end", epoch)]
    ]


def test_a_period_does_not_concern_the_model_the_sanity_validation_and_evaluations_of_their_own() -> None:
    callback, model, datamodule = Periodic(every_n_epochs=9), Noting(), data()
    trainer = quiet(max_epochs=2, sanity_batches=9, callbacks=[callback])
    trainer.fit(model, datamodule)
    validation = [("valid", 0), *VALIDATED, ("valid end", 0)]
    assert callback.epochs == validation
    assert len(model.trained) == 6
    assert len(model.evaluated) == 3 * 2
    trainer.validate(model, datamodule, checkpoint=None)
    assert callback.epochs[len(validation) :] == [("valid", 1), *VALIDATED, ("valid end", 1)]


@pytest.mark.parametrize(
    ("periods", "error"),
    [
        ({"every_n_steps": 0}, ValueError),
        ({"every_n_epochs": -1}, ValueError),
        ({"every_n_epochs": 1.5}, TypeError),
        ({"every_n_steps": True}, TypeError),
    ],
)
def test_a_wrong_period_is_an_error_that_names_the_callback(periods: dict[str, Any], error: type[Exception]) -> None:
    ((name, value),) = periods.items()
    with pytest.raises(error, match=f"^Periodic.{name}={value}: must be"):
        quiet(max_epochs=1, callbacks=[Periodic(**periods)]).fit(Tiny(), data())


def test_a_callback_has_the_data_of_the_run_before_its_setup() -> None:
    class Counting(Callback):
        def setup(self, fast_init: bool = False) -> None:
            lengths.append((len(self.datamodule.train.dataset), self.model.save_name))

    class Late(DataModule):
        def setup(self) -> None:
            self.train = data(train=7).train

    lengths: list[tuple[int, str]] = []
    quiet(max_epochs=1, callbacks=[Counting()]).fit(Tiny(), Late())
    assert lengths == [(7, "tiny")]


# What is averaged, and when.


class Buffers(nn.Module):
    """A network with everything that a network can hold."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, dtype=dtype))
        self.register_buffer("ids", torch.arange(64))
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("mean", torch.zeros(2, dtype=torch.float64))

    def forward(self) -> torch.Tensor:
        return self.weight.float().sum()


class Counting(Model):
    """Adds 1 to the weight, the counter and the mean in every step."""

    def __init__(self, dtype: torch.dtype = torch.float32, name: str = "net") -> None:
        super().__init__("counting")
        self.dtype, self.name = dtype, name

    def setup(self, fast_init: bool = False) -> None:
        net = self.parallelize(Buffers(self.dtype))
        setattr(self, self.name, net)
        if not fast_init:
            self.optimizer = torch.optim.SGD(net.parameters(), lr=1.0)

    def train_step(self, batch: Any, state: Any) -> None:
        net = getattr(self, self.name)
        self.backward(-net())
        self.optimizer_step(self.optimizer)
        net.seen += 1
        net.mean += 1

    def valid_step(self, batch: Any, step: int) -> None:
        net = getattr(self, self.name)
        self.log("weight", net.weight[0])
        self.log("seen", net.seen)
        self.log("mean", net.mean[0])
        assert torch.equal(net.ids, torch.arange(64))


def test_an_average_has_the_mean_of_floating_point_values_and_a_copy_of_all_others(tmp_path: Path) -> None:
    model, ema = Counting(), EMA(decay=0.5)
    run = quiet(root=tmp_path, callbacks=[ema], max_steps=3, sanity_batches=0)
    result = run.fit(model, data(train=12))
    assert (result.metrics["valid/weight"], result.metrics["valid/mean"], result.metrics["valid/seen"]) == (
        2.25,
        2.25,
        3,
    )
    assert model.net.seen == 3
    loaded = Counting.load_from_checkpoint(result.last_checkpoint)
    assert torch.equal(loaded.net.ids, torch.arange(64))
    assert loaded.net.weight.tolist() == [2.25] * 4
    assert loaded.net.seen == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_average_of_small_floating_point_numbers_moves_and_resumes(dtype: torch.dtype, tmp_path: Path) -> None:
    """In bf16, 1 - 0.999 of the difference would be rounded away."""
    options: dict[str, Any] = {"sanity_batches": 0, "valid_every_epochs": 1, "log_every_steps": 1}
    expected, weight = 1.0, 1.0
    for weight in range(2, 41):
        expected += (weight - expected) * 0.001
    for cut in (None, 20):
        root = tmp_path / str(cut)
        for steps in filter(None, (cut, 40)):
            ema = EMA(decay=0.999)
            model = Counting(dtype)
            result = quiet(root=root, callbacks=[ema], max_steps=steps, **options).fit(model, data(train=160))
        assert ema.averaged.module.weight.dtype is torch.float32
        assert ema.averaged.module.weight[0].item() == pytest.approx(expected, rel=1e-6)
        assert model.net.weight.dtype is dtype
        assert model.net.weight[0].item() == 40.0
        assert result.metrics["valid/weight"] == torch.tensor(expected).to(dtype).item()


class Narrow(Tiny):
    """Four layers of the same shape in bf16."""

    is_scripted = False

    def network(self) -> nn.Module:
        net = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4))).to(torch.bfloat16)
        return scripted(net) if self.is_scripted else net

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step((batch[0], batch[1].bfloat16()), state)


def test_the_average_of_a_scripted_network_has_each_of_its_parameters() -> None:
    averages = []
    with torch.jit.optimized_execution(False):
        for is_scripted in (False, True):
            model, ema = Narrow(), EMA(decay=0.5)
            model.is_scripted = is_scripted
            quiet(max_epochs=1, callbacks=[ema], valid_every_epochs=None).fit(model, DataModule(data().train))
            averages.append({name: value.clone() for name, value in ema.averaged.module.state_dict().items()})
    assert same(*averages)
    assert all(value.dtype is torch.float32 for value in averages[1].values())


def test_a_network_that_is_not_there_is_an_error_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"Counting has no network 'net'.*EMA\(name='encoder'\): encoder"):
        quiet(max_steps=1, callbacks=[EMA()]).fit(Counting(name="encoder"), data())


class Failing(Noting):
    """Its validations fail, if `fails`."""

    fails = True

    def valid_step(self, batch: Any, step: int) -> None:
        super().valid_step(batch, step)
        if self.fails:
            raise KeyError("metric")


@pytest.mark.parametrize("call", ["fit", "validate"])
def test_an_exception_in_an_evaluation_leaves_the_weights_and_modes_of_the_training(call: str) -> None:
    model, ema = Failing(), EMA(decay=0.5)
    run = quiet(callbacks=[ema], max_epochs=1, sanity_batches=0)
    if call == "validate":
        model.fails = False
        run.fit(model, data())
        model.fails = True
    with pytest.raises(KeyError, match="metric"):
        getattr(run, call)(model, data(), *([None] if call == "validate" else []))
    assert same(weights(model)["net"], model.trained[-1][1])
    if call == "fit":
        assert model.net.training


def test_the_average_of_one_model_is_not_that_of_another(tmp_path: Path) -> None:
    trained = quiet(max_epochs=2, root=tmp_path / "without").fit(Noting(), data())
    run = quiet(callbacks=[EMA(decay=0.5)], max_epochs=1, sanity_batches=0, root=tmp_path)
    first, other = Noting(), Noting()
    run.fit(first, data())
    for model in (first, other):
        run.test(model, data(), checkpoint=trained.last_checkpoint)
        assert same(model.evaluated[-1], weights(model)["net"])
        assert same(model.evaluated[-1], torch.load(trained.last_checkpoint, weights_only=True)["model"]["net"])
    run.fit(first, data())
    run.test(other, data(), checkpoint=None)
    assert same(other.evaluated[-1], weights(other)["net"])


class TwoSided(torch.optim.SGD):
    """Evaluates half of the weights that it trains, as schedule-free optimizers evaluate others."""

    is_eval = False

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(factor)

    def eval(self) -> None:
        if not self.is_eval:
            self.scale(0.5)
        self.is_eval = True

    def train(self) -> None:
        if self.is_eval:
            self.scale(2)
        self.is_eval = False


class Part(nn.Linear):
    """Has a buffer that no checkpoint holds, and a way of its own to make its state."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("scale", torch.ones(1), persistent=False)

    def state_dict(self, *, keep_vars: bool = False, **options: Any) -> Any:
        assert not keep_vars
        return super().state_dict(**options)


class Sharing(Noting):
    """Two networks and a part of both, which is a network too; fails where it is told to."""

    def __init__(self, order: str = "net other part", fails_in: str = "") -> None:
        super().__init__()
        self.order, self.fails_in = order.split(), fails_in

    def setup(self, fast_init: bool = False) -> None:
        part = Part(3, 8)
        made = {
            "part": part,
            "net": nn.Sequential(part, nn.Linear(8, 1)),
            "other": nn.Sequential(part, nn.Linear(8, 2)),
        }
        for name in self.order:
            setattr(self, name, self.parallelize(made[name]))
        parameters = {id(p): p for name in self.order for p in made[name].parameters()}
        self.optimizer = TwoSided(parameters.values(), lr=0.1)

    def fail(self, where: str) -> None:
        if where == self.fails_in:
            raise KeyError(where)

    def train_step(self, batch: Any, state: Any) -> None:
        loss = (self.net(batch[1]) - 1).square().mean() + (self.other(batch[1]) + 1).square().mean()
        if state.step == 2:
            self.fail("train_step")
        self.backward(loss)
        self.optimizer_step(self.optimizer)

    def valid_step(self, batch: Any, step: int) -> None:
        self.evaluated.append(weights(self))
        self.fail("valid_step")

    def test_step(self, batch: Any, step: int) -> None:
        self.evaluated.append(weights(self))
        self.fail("test_step")

    def predict_step(self, batch: Any, step: int) -> Any:
        self.fail("predict_step")

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        self.trained.append((state.step, weights(self)))


class Swapping(Callback):
    """Puts other weights in place of those of a network, in the way of a user."""

    def __init__(self, in_place: bool) -> None:
        self.in_place = in_place
        self.kept: list[torch.Tensor] = []

    def on_validation_start(self, validation_cycle: int) -> None:
        self.kept = [p.detach().clone() if self.in_place else p.data for p in self.model.net.parameters()]
        for p in self.model.net.parameters():
            if self.in_place:
                p.detach().zero_()
            else:
                p.data = torch.ones_like(p)

    def on_validation_end(self, validation_cycle: int) -> None:
        for p, value in zip(self.model.net.parameters(), self.kept, strict=len(self.kept) > 0):
            if self.in_place:
                p.detach().copy_(value)
            else:
                p.data = value
        self.kept = []

    def on_exception(self, error: BaseException) -> None:
        self.on_validation_end(0)


class FailingIn(Callback):
    """Raises an error in one of its hooks."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.fail)

    def fail(self, *arguments: Any, **options: Any) -> Any:
        raise KeyError("callback")


def swapping_callbacks() -> list[Callback]:
    """Several of everything that puts weights in place of others, with all other callbacks between them."""
    averages = [EMA(0.5), EMA(0.9), EMA(0.9, name="other"), EMA(0.5, name="part")]
    return [
        Swapping(True),
        averages[0],
        Swapping(False),
        *averages[1:],
        ActivationStatistics(["net.1"]),
        DeviceMemory(),
    ]


def fit_test_and_predict(run: Trainer, model: Model) -> None:
    run.fit(model, data())
    run.test(model, data(), None)
    list(run.predict(model, data(), None))


MAY_FAIL = [hook for hook in HOOKS if hook not in ("setup", "on_checkpoint_saved", "on_exception")]
STEPS = ["train_step", "valid_step", "test_step", "predict_step"]


def test_whatever_fails_nothing_of_a_callback_stays_in_the_model() -> None:
    ways = [(step, None) for step in STEPS]
    ways += [(hook, place) for hook in MAY_FAIL for place in (0, len(swapping_callbacks()))]
    for where, place in ways:
        model, callbacks = Sharing(fails_in=where), swapping_callbacks()
        if place is not None:
            callbacks.insert(place, FailingIn(where))
        run = quiet(callbacks=callbacks, max_epochs=1, sanity_batches=0, log_every_steps=1)
        with pytest.raises(KeyError):
            fit_test_and_predict(run, model)
        assert not model.optimizer.is_eval or where.startswith(("test", "predict", "on_test", "on_predict")), where
        model.optimizer.train()
        assert same(weights(model), model.trained[-1][1] if model.trained else weights(model)), where
        assert not any(module._forward_hooks for module in model.net.modules()), where


def test_each_of_several_averages_is_what_it_is_alone_and_the_last_is_evaluated(tmp_path: Path) -> None:
    """Whatever the order of the networks in the model, and of the averages."""
    plain = Sharing()
    quiet(max_epochs=2, sanity_batches=0).fit(plain, data())
    both = {"net other part": ["net", "net-net", "net-part-other"], "part other net": ["other-net", "part-net"]}
    for order, cases in both.items():
        for case in cases:
            model, root, names = Sharing(order), tmp_path / case, case.split("-")
            averages = [EMA(0.5 + 0.1 * i, name) for i, name in enumerate(names)]
            result = quiet(root=root, callbacks=averages, max_epochs=2, sanity_batches=0).fit(model, data())
            assert same({name: weights(model)[name] for name in weights(plain)}, weights(plain))
            validated, last = model.evaluated[-1], averages[-1]
            assert same(validated[names[-1]], {**last.averaged.module.state_dict()})
            expected = average([net[names[-1]] for _, net in plain.trained], last.decay)[-1]
            for key, value in validated[names[-1]].items():
                torch.testing.assert_close(value, expected[key])
            for callbacks in ([], [EMA(0.5 + 0.1 * i, name) for i, name in enumerate(names)]):
                tested = Sharing(order)
                quiet(root=root, callbacks=callbacks, max_epochs=2).test(tested, data(), "last")
                assert same(tested.evaluated[-1], validated)
            assert same(weights(Sharing.load_from_checkpoint(result.last_checkpoint, order=order)), validated)


def test_an_average_of_another_network_in_a_checkpoint_is_an_error_that_names_both(tmp_path: Path) -> None:
    quiet(root=tmp_path, callbacks=[EMA(name="other"), EMA()], max_steps=1, sanity_batches=0).fit(Sharing(), data())
    with pytest.raises(ValueError, match=r"EMA\(name='net'\): the checkpoint has the average of 'other'"):
        quiet(root=tmp_path, callbacks=[EMA()], max_steps=2, sanity_batches=0).fit(Sharing(), data())
