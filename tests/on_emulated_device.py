"""What the trainer does on an accelerator, by the emulated one: places, copies and waits.

    EMULATED=1 python -m pytest tests/on_emulated_device.py

`test_emulated_device.py` runs it in a process of its own, with tests of other files.
"""

import copy
import os
import pickle
import runpy
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers.compare import same, weights
from helpers.emulated import emulate, recorded
from helpers.models import Indices, Tiny, data, quiet
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import Subset, TensorDataset, default_collate

from helios_lite import DataModule, Model, Split, Trainer
from helios_lite.callbacks import EMA, ActivationStatistics, DeviceMemory
from helios_lite.checkpoints import sharded
from helios_lite.checkpoints.sharded_content import ShardedTensors
from helios_lite.loading.loaders import make_loader
from helios_lite.metrics.accumulator import MetricAccumulator
from helios_lite.metrics.digests import Digests
from helios_lite.processes import devices
from helios_lite.processes.world import World

if "EMULATED" not in os.environ:
    pytest.skip("needs a process of its own, with EMULATED=1", allow_module_level=True)
DEVICE = emulate()
MODULE = torch.get_device_module(DEVICE)
EXAMPLES = Path(__file__).parents[1] / "examples"
X, Y = torch.linspace(-1, 1, 960).reshape(240, 4), torch.arange(240) % 3
OPTIMIZERS = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "SGD")
READING = ("Adafactor", "ASGD", "Rprop")  # They read their states in each step, as PyTorch has made them.


class Steps(Model):
    """Notes what has made the host wait between the beginnings of steps."""

    def __init__(self, *, weight: Any = None, items: bool = False, names: tuple[str, ...] = ("AdamW",)) -> None:
        super().__init__("steps")
        self.weight, self.items, self.names = weight, items, names
        self.waits: list[Any] = []
        self.begun: dict[int, int] = {}  # How many waits there were when a step began.

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)))
        self.others = [self.parallelize(nn.Linear(4, 3)) for _ in self.names[1:]]
        nets = [self.net, *self.others]
        self.optimizers = [
            getattr(torch.optim, name)(net.parameters(), lr=1e-3) for name, net in zip(self.names, nets, strict=True)
        ]
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizers[0], 100)

    def train_step(self, batch: Any, state: Any) -> None:
        self.begun.setdefault(state.step + 1, len(self.waits))
        x, y = batch if isinstance(batch, list) else (batch.x, batch.y)
        for i, (net, optimizer) in enumerate(zip([self.net, *self.others], self.optimizers, strict=True)):
            with self.autocast():
                loss = F.cross_entropy(net(x).float(), y)
            weight = None if self.weight is None else self.weight(y)
            self.backward(loss, weight)
            self.optimizer_step(optimizer, self.scheduler if i == 0 else None)
        self.log("loss", loss, count=weight)
        self.log("largest", loss, reduce=("max", "std"))
        if self.items:
            self._loss_items["extra"] = loss

    def valid_step(self, batch: Any, step: int) -> None:
        x, y = batch
        self.log("accuracy", (self.net(x).argmax(1) == y).float().mean())

    def predict_step(self, batch: Any, step: int) -> Any:
        return self.net(batch[0]).argmax(1)


class Own:
    """A batch with a method `to`, which does not wait if it is told so."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def to(self, device: torch.device, non_blocking: bool = False) -> "Own":
        return Own(*(each.to(device, non_blocking=non_blocking) for each in (self.x, self.y)))


def to_own(samples: list[Any]) -> Own:
    return Own(*map(torch.stack, zip(*samples, strict=True)))


def splits(**options: Any) -> DataModule:
    train, valid = TensorDataset(X, Y), TensorDataset(X[:40], Y[:40])
    return DataModule(Split(train, batch_size=4, shuffle=True, **options), Split(valid, batch_size=10))


def waits_of(model: Steps, datamodule: DataModule | None = None, **options: Any) -> list[Any]:
    """Train with rows at steps 6 and 12, and return what made the host wait from the start of step 7 to that of 12."""
    options = {"max_steps": 12, "log_every_steps": 6, "sanity_batches": 0, "valid_every_epochs": None, **options}
    with recorded() as model.waits:
        quiet(**options).fit(model, datamodule or DataModule(train=splits().train))
    assert len(model.waits) > 0  # The rows are read.
    return model.waits[model.begun.get(7, 0) : model.begun.get(12, 0)]


CASES: dict[str, tuple[Callable[[], Steps], dict[str, Any]]] = {
    "fp32": (Steps, {}),
    "bf16": (Steps, {"precision": "bf16"}),
    "clipped": (Steps, {"clip_norm": 0.1, "check_finite": False}),
    "norms": (Steps, {"log_grad_norm": "per-parameter", "log_param_norm": True}),
    "accumulated": (Steps, {"accumulation_steps": 2}),
    "weights as tensors": (lambda: Steps(weight=lambda y: (y >= 0).sum()), {"accumulation_steps": 2, "clip_norm": 1.0}),
    "weights as numbers": (lambda: Steps(weight=lambda y: 3.0), {"accumulation_steps": 2}),
    "averaged": (Steps, {"callbacks": [EMA(0.9)]}),
    "measured": (Steps, {"callbacks": [ActivationStatistics(["net.0"]), DeviceMemory()]}),
    "losses of a table": (lambda: Steps(items=True), {}),
    "own batches": (Steps, {"datamodule": DataModule(Split(TensorDataset(X, Y), batch_size=4, collate_fn=to_own))}),
}


@pytest.mark.parametrize("name", CASES)
def test_nothing_waits_for_the_device_between_rows(name: str) -> None:
    make, options = CASES[name]
    assert waits_of(make(), **options) == []


def test_fp16_waits_once_for_each_step_of_an_optimizer() -> None:
    waits = waits_of(Steps(names=("AdamW", "SGD")), precision="fp16")
    assert len(waits) == 2 * 5
    assert {(what, where.partition(":")[0]) for what, where in waits} == {("local_scalar_dense", "precision.py")}


def test_nothing_waits_after_a_resume_with_any_optimizer_of_pytorch(tmp_path: Path) -> None:
    def resumed(names: tuple[str, ...]) -> list[Any]:
        options = {"root": tmp_path / names[0], "callbacks": [EMA(0.9)]}
        return [waits_of(Steps(names=names), max_steps=steps, **options) for steps in (6, 12)][1]

    assert resumed(OPTIMIZERS) == []
    assert len(resumed(READING)) == len(waits_of(Steps(names=READING)))


def test_a_save_waits_once_and_files_hold_tensors_of_the_cpu(tmp_path: Path) -> None:
    for is_async in (True, False):
        model = Steps()
        options = {"root": tmp_path / str(is_async), "async_save": is_async, "callbacks": [EMA()]}
        assert waits_of(model, **options) == []
        assert [what for what, where in model.waits if "snapshot.py" in where] == ["synchronize"]
        (path,) = (tmp_path / str(is_async)).rglob("*_iter_12.pth")
        content = torch.load(path, weights_only=True)  # Each tensor to the device that the file names.
        tensors = [*content["model"]["net"].values(), *content["model"]["optimizers.0"]["state"][0].values()]
        assert {tensor.device.type for tensor in tensors} == {"cpu"}
        assert same(content["model"]["net"], {name: each.cpu() for name, each in weights(model)["net"].items()})


def test_the_thread_that_writes_shards_uses_no_device(tmp_path: Path) -> None:
    """It would be the first one, also on the ranks that have another."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        tensor = distribute_tensor(torch.arange(6.0), init_device_mesh("cpu", (1,)), [Shard(0)])
        writer, written = sharded.ShardWriter(World()), []
        with recorded() as waits:
            writer.write(
                ShardedTensors({"a": tensor}, {"a": "a"}), tmp_path / "shards", written.append, background=True
            )
            writer.join()
    finally:
        sharded._own_group.cache_clear()
        dist.destroy_process_group()
    assert waits == []
    assert [places["a"]["shape"] for places in written] == [(6,)]


def test_an_evaluation_waits_for_its_result_alone_and_moves_no_state_of_an_optimizer(tmp_path: Path) -> None:
    model, trainer = Steps(), quiet(max_steps=5, root=tmp_path)
    path = trainer.fit(model, splits()).last_checkpoint
    network = sum(each.nbytes for each in model.net.state_dict().values())
    with recorded() as waits:
        trainer.validate(model, splits(), checkpoint="last")
    assert [where for _, where in waits if "_run_batches" in where or "valid_step" in where] == []
    before = MODULE.memory_allocated()
    loaded = Steps.load_from_checkpoint(path, device=DEVICE)
    assert MODULE.memory_allocated() - before < 2 * network  # AdamW has twice as much.
    assert same(weights(loaded)["net"], weights(model)["net"])
    predicted = [*trainer.predict(model, DataModule(predict=splits().valid))]
    assert {each.device.type for item in predicted for each in item} == {"cpu"}


def test_a_run_ends_with_the_bits_of_the_cpu_whole_or_cut(tmp_path: Path) -> None:
    """Its operations are those of the CPU, but for random numbers, which are those of the device."""

    class Net(Tiny):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.net[1].p = 0.0 if self.is_plain else 0.2

        is_plain = True

    ends = []
    for accelerator in ("cpu", "auto"):
        model = Net()
        result = quiet(max_epochs=3, accelerator=accelerator).fit(model, data(train=23))
        ends.append((weights(model)["net"], result.metrics["train/loss"], result.metrics["valid/loss"], model.seen))
    assert model.device == DEVICE
    assert same(*({name: each.cpu() for name, each in net.items()} for net, *_ in ends))
    assert ends[0][1:] == ends[1][1:]
    Net.is_plain, ends = False, []
    for name, stops in (("whole", (13,)), ("cut", (3, 8, 13))):
        for steps in stops:
            model = Net()
            quiet(max_steps=steps, root=tmp_path / name, callbacks=[EMA()]).fit(model, data(train=23))
        ends.append(weights(model))
    assert same(*ends)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_digest_is_that_of_the_cpu(dtype: torch.dtype) -> None:
    values = torch.randn(150_000, dtype=dtype)  # Whole blocks, and parts of two others.
    expected = sum(map(int, Digests().parts(values, 999))) % 2**64
    on_device = values.to(DEVICE)
    with recorded() as waits:
        parts = Digests().parts(on_device, 999)
    assert not waits
    assert sum(map(int, parts)) % 2**64 == expected


def test_splits_of_tensors_on_the_device_are_gathered_there() -> None:
    ends = []
    for x, y in ((X, Y), (X.to(DEVICE), Y.to(DEVICE))):
        for dataset in (TensorDataset(x, y), Subset(TensorDataset(x, y), range(-100, 0)), {"x": x, "y": y}):

            class Either(Steps):
                def train_step(self, batch: Any, state: Any) -> None:
                    super().train_step([*batch.values()] if isinstance(batch, dict) else batch, state)

            model = Either()
            assert waits_of(model, DataModule(Split(dataset, batch_size=4, shuffle=True))) == []
            ends.append(weights(model)["net"])
    assert all(same(ends[i], ends[i + 3]) for i in range(3))


def test_a_model_that_has_trained_can_be_copied_and_pickled() -> None:
    model = Steps()
    quiet(max_steps=3, precision="fp16").fit(model, splits())
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same(weights(copied)["net"], weights(model)["net"])
        quiet(max_steps=5, precision="fp16").fit(copied, splits())


class Weight(nn.Parameter):
    pass


class Tied(Tiny):
    def setup(self, fast_init: bool = False) -> None:
        net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
        weight = net[0].weight = net[2].weight = Weight(torch.ones(3, 3))
        weight.decays = False
        weight.grad = torch.ones(3, 3)
        self.net = self.parallelize(net)
        for module in (self.net[0], self.net[2]):
            assert module.weight is weight
        assert type(weight) is Weight
        assert not weight.decays
        assert {x.device.type for x in (*self.net.parameters(), self.net[1].running_mean, weight.grad)} == {"emu"}
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.97)


def test_parameters_remain_the_same_objects_when_a_network_is_moved() -> None:
    """PyTorch makes others for such a device, which would no longer be tied."""
    model = Tied("tied")
    quiet(max_steps=2).fit(model, data())
    assert model.net[0].weight is model.net[2].weight


class Hooked(Tiny):
    def setup(self, fast_init: bool = False) -> None:
        net = nn.Linear(3, 1)
        net.weight.register_hook(lambda gradient: gradient * 2)
        self.net = self.parallelize(net)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.97)


def test_a_hook_that_another_device_would_lose_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^parallelize: weight has a hook that would never be called"):
        quiet(max_steps=1).fit(Hooked("hooked"), data())
    quiet(max_steps=1, accelerator="cpu").fit(Hooked("hooked"), data())


def test_batches_of_any_kind_are_moved_without_waiting() -> None:
    sequences = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    dense, wide = torch.ones(2, 3, 4, 5), torch.ones(4, 6)
    batches = [dense, torch.ones(3, 1).expand(3, 5), wide[:, :3], wide.t(), dense.to(memory_format=torch.channels_last)]
    mover = devices.DeviceMover(DEVICE)
    with recorded() as waits:
        moved = mover([*batches, sequences, Own(dense, wide)])
    assert waits == []
    assert isinstance(moved[-2], PackedSequence)
    assert moved[-2].data.device == moved[-1].x.device == DEVICE
    assert all(torch.equal(a, b.cpu()) for a, b in zip(batches, moved, strict=False))
    assert moved[4].is_contiguous(memory_format=torch.channels_last)


class Counted(Indices):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": index, "x": torch.ones(2)}


def to_counter(samples: list[Any]) -> Any:
    return Counter(samples=len(samples)), {key: default_collate([each[key] for each in samples]) for key in samples[0]}


def test_batches_of_workers_are_pinned_and_keep_what_else_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """DataLoader alone would count the samples twice. This device has no pinned memory, so the tensors are copied."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    for seeds, collate in ((True, to_counter), (False, to_counter), (True, None)):
        pinned: list[Any] = []
        split = Split(Counted(4), 2, num_workers=1, collate_fn=collate, seed_samples=seeds)
        batches = [data for data, *_ in make_loader(split, "train", 0, pins=True).epoch(0).batches]
        assert len(pinned) == 4
        for number, batch in enumerate(batches):
            counter, tensors = batch if collate is not None else ({"samples": 2}, batch)
            assert counter == {"samples": 2}
            assert tensors["index"].tolist() == [2 * number, 2 * number + 1]


def test_types_of_devices_are_those_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.choose_accelerator("auto") == devices.choose_accelerator("emu") == "emu"
    for name in ("cuda", "xpu", "mps", "meta"):
        with pytest.raises(RuntimeError, match=f"^accelerator='{name}' is not available .* has: emu, cpu$"):
            quiet(max_steps=1, accelerator=name).fit(Tiny(), data())
    with pytest.raises(ValueError, match=r"^accelerator='npu': must be .* that PyTorch knows"):
        Trainer(max_steps=1, accelerator="npu")
    with pytest.raises(RuntimeError, match=r"^devices=2: this machine has 1 of type emu$"):
        quiet(max_steps=1, devices=2).fit(Tiny(), data())
    monkeypatch.setattr(MODULE, "device_count", lambda: 2)
    assert devices.choose_device("emu", "auto", World(1, 1, 4, 4)) == torch.device("emu", 1)
    with pytest.raises(RuntimeError, match=r"^LOCAL_RANK=2: this process sees 2 devices of type emu; start at most"):
        devices.choose_device("emu", "auto", World(2, 2, 4, 4))
    monkeypatch.setattr(MODULE, "device_count", lambda: 1)
    assert devices.choose_device("emu", "auto", World(2, 2, 4, 4)) == DEVICE  # It sees only its own.


def test_sums_are_float32_where_the_device_has_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "has_float64", False)
    devices.sum_dtype.cache_clear()
    try:
        result = quiet(max_epochs=1).fit(Steps(items=True), splits())
        metrics = MetricAccumulator(DEVICE)
        metrics.update("loss", torch.tensor(2.0, device=DEVICE), 1.0)
        assert metrics.compute().values == {"loss": 2.0}
    finally:
        devices.sum_dtype.cache_clear()
    assert result.metrics["train/extra"] > 0


def test_what_has_multiplied_matrices_before_cannot_be_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_too_late() -> None:
        if torch.are_deterministic_algorithms_enabled():
            raise RuntimeError("Deterministic behavior was enabled, but set CUBLAS_WORKSPACE_CONFIG=:4096:8 before")

    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    quiet(max_steps=1, deterministic=True).fit(Steps(), splits())
    monkeypatch.setattr(MODULE, "before_product", is_too_late)
    with pytest.raises(RuntimeError, match=r"^deterministic=True: .* start the program with CUBLAS_W"):
        quiet(max_steps=1, deterministic=True).fit(Steps(), splits())
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_a_slower_format_than_the_device_has_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(MODULE, "is_tf32_supported", lambda: True, raising=False)
    said = []
    for precision, chosen in (("fp32", "highest"), ("fp32", "high"), ("bf16", "highest")):
        torch.set_float32_matmul_precision(chosen)
        caplog.clear()
        with caplog.at_level("INFO", "helios_lite"):
            quiet(max_steps=1, precision=precision).fit(Steps(), splits())
        said.append(caplog.text.count("do not use TensorFloat32"))
    torch.set_float32_matmul_precision("highest")
    assert said == [1, 0, 0]


def test_what_the_device_still_has_to_do_is_no_time_of_a_validation() -> None:
    model = Steps()
    waits_of(model, splits(), valid_every_steps=5)
    assert next(where for what, where in model.waits if what == "synchronize").startswith("training_log.py")


def test_an_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    line = "gan.py --width 8 --epochs 1"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", line.split())
    monkeypatch.syspath_prepend(EXAMPLES)
    runpy.run_path(str(EXAMPLES / line.split()[0]), run_name="__main__")
    assert "emu:0 (emulated)" in capsys.readouterr().out
