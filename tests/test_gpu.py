"""What only a CUDA device can show: copies beside the computation, no waiting between log points, fp16 there."""

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.compare import same, weights
from helpers.models import quiet
from torch import nn
from torch.utils.data import TensorDataset

from helios_lite import DataModule, Model, Split
from helios_lite.callbacks import EMA
from helios_lite.processes.devices import DeviceMover

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),  # That it does not see everything.
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # CUDA has threads when loading processes begin.
    pytest.mark.filterwarnings("ignore:TensorFloat32"),  # Of the compiler.
]

if torch.cuda.is_available():
    # PyTorch reads it once in a process, before its first product of matrices, and `deterministic=True` needs it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

DATA = torch.linspace(-1, 1, 3000).reshape(1000, 3)


def make() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 1))


class Regression(Model):
    def __init__(self) -> None:
        super().__init__("regression")

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(make())
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)

    def train_step(self, batch: Any, state: Any) -> None:
        (x,) = batch
        with self.autocast():
            loss = F.mse_loss(self.net(x).float(), x.sum(1, keepdim=True))
        self.backward(loss)
        self.optimizer_step(self.optimizer)
        self.log("loss", loss)
        self.log("largest", loss, count=x.new_ones(()), reduce=("max", "std"), bar=True)


class Unsynchronised(Regression):
    """Lets every synchronisation between two log points be an error, once everything has been allocated."""

    def on_training_batch_start(self, state: Any) -> None:
        super().on_training_batch_start(state)
        if state.step % 20 == 10:
            torch.cuda.set_sync_debug_mode("error")

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        super().on_training_batch_end(state, should_log)
        if state.step % 20 == 19:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_nothing_waits_for_the_device_between_log_points(num_workers: int, precision: str) -> None:
    split = Split(TensorDataset(DATA), batch_size=10, shuffle=True, num_workers=num_workers)
    try:
        result = quiet(
            max_epochs=2,
            accelerator="cuda",
            log_every_steps=20,
            clip_norm=1.0,
            accumulation_steps=1,
            precision=precision,
        ).fit(Unsynchronised(), DataModule(split))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.state.step == 200
    assert result.metrics["train/largest"] >= result.metrics["train/loss"] > 0


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", "RAdam", "RMSprop", "SGD"])
def test_nothing_waits_for_the_device_after_a_resume_and_with_an_average(optimizer: str, tmp_path: Path) -> None:
    class Resumed(Unsynchronised):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.optimizer = getattr(torch.optim, optimizer)(self.net.parameters(), lr=0.001)

        def on_training_batch_start(self, state: Any) -> None:
            if state.step >= 60:
                super().on_training_batch_start(state)

    split = Split(TensorDataset(DATA), batch_size=10, shuffle=True)
    options = {"accelerator": "cuda", "log_every_steps": 20, "root": tmp_path, "callbacks": [EMA(0.9)]}
    try:
        for max_steps in (60, 120):
            result = quiet(max_steps=max_steps, **options).fit(Resumed(), DataModule(split))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.state.step == 120


def test_a_split_of_tensors_on_the_device_trains_as_one_of_the_cpu() -> None:
    ends = []
    for tensor in (DATA, DATA.cuda()):
        model = Regression()
        split = Split(TensorDataset(tensor), batch_size=100, shuffle=True)
        quiet(max_epochs=2, accelerator="cuda").fit(model, DataModule(split))
        ends.append(weights(model)["net"])
    assert same(ends[0], ends[1])


def test_a_model_that_has_trained_on_the_device_can_be_copied_and_pickled() -> None:
    model = Regression()
    quiet(max_steps=3, accelerator="cuda").fit(model, DataModule(Split(TensorDataset(DATA), batch_size=100)))
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same(weights(copied)["net"], weights(model)["net"])


@pytest.mark.parametrize("async_save", [True, False])
def test_files_hold_tensors_of_the_cpu(async_save: bool, tmp_path: Path) -> None:
    model = Regression()
    split = Split(TensorDataset(DATA), batch_size=100)
    options = {"accelerator": "cuda", "root": tmp_path, "async_save": async_save}
    result = quiet(max_steps=3, **options).fit(model, DataModule(split))
    content = torch.load(result.last_checkpoint, weights_only=True)  # Each tensor to the device that the file names.
    kept = [*content["model"]["net"].values(), *content["model"]["optimizer"]["state"][0].values()]
    assert {tensor.device.type for tensor in kept} == {"cpu"}
    for name, value in weights(model)["net"].items():
        assert torch.equal(content["model"]["net"][name], value.cpu())


def test_a_batch_arrives_whole_while_the_device_is_busy() -> None:
    transfer = DeviceMover(torch.device("cuda", 0))
    busy = torch.randn(4000, 4000, device="cuda")
    for number in range(50):
        busy = (busy @ busy).tanh()  # A queue of work that the copies do not wait for.
        moved = transfer({"x": [torch.full((1000, 100), float(number))], "y": "text"})
        assert moved["y"] == "text"
        total = moved["x"][0].sum() * 1.0
        del moved  # Its memory may be reused now, but not before the sum was taken.
        transfer(torch.full((1000, 100), -1.0))
        assert total.item() == number * 100_000


def test_gathered_tensors_are_whole_on_the_cpu() -> None:
    model = Regression()
    for number in range(20):
        value = torch.full((1000, 1000), float(number), device="cuda")
        value = value @ torch.eye(1000, device="cuda")  # Not finished when it is gathered.
        (gathered,) = model.gather({"x": [value]})
        assert gathered["x"][0].device.type == "cpu"
        assert torch.equal(gathered["x"][0], torch.full((1000, 1000), float(number)))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_weights_are_those_of_the_loop_by_hand(precision: str) -> None:
    model = Regression()
    split = Split(TensorDataset(DATA), batch_size=100)
    quiet(max_epochs=2, accelerator="cuda", precision=precision).fit(model, DataModule(split))
    net = make().cuda()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cuda", enabled=precision == "fp16")
    for x in DATA.cuda().split(100) * 2:
        with torch.autocast("cuda", torch.float16, enabled=precision == "fp16"):
            loss = F.mse_loss(net(x).float(), x.sum(1, keepdim=True))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    for a, b in zip(weights(model)["net"].values(), net.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_run_on_cuda_goes_on_with_the_same_bits(tmp_path: Any) -> None:
    ends = []
    for name, stops in (("whole", (30,)), ("parts", (7, 13, 30))):
        for steps in stops:
            model = Regression()
            split = Split(TensorDataset(DATA), batch_size=100, shuffle=True)
            options = {"accelerator": "cuda", "precision": "fp16", "deterministic": True, "root": tmp_path / name}
            quiet(max_steps=steps, **options).fit(model, DataModule(split))
        ends.append(weights(model))
    assert same(ends[0], ends[1])


def test_files_hold_the_weights_of_their_step_while_the_training_goes_on(tmp_path: Path) -> None:
    class Noted(Regression):
        def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
            super().on_training_batch_end(state, should_log)
            ends[state.step] = {name: value.cpu() for name, value in weights(self)["net"].items()}

    ends: dict[int, Any] = {}
    split = Split(TensorDataset(DATA), batch_size=100)
    options = {"accelerator": "cuda", "root": tmp_path, "save_every_steps": 1, "keep_last": -1}
    quiet(max_steps=8, **options).fit(Noted(), DataModule(split))
    for path in tmp_path.rglob("*_iter_*.pth"):
        content = torch.load(path, weights_only=True)
        assert same(content["model"]["net"], ends[content["state"]["step"]])
    assert len(ends) == 8


def test_predictions_are_those_of_the_network_and_on_the_cpu() -> None:
    model, trainer = Regression(), quiet(max_steps=3, accelerator="cuda")
    trainer.fit(model, DataModule(Split(TensorDataset(DATA), batch_size=100)))
    predicted = [*trainer.predict(model, DataModule(predict=Split(TensorDataset(DATA), batch_size=100)))]
    with torch.no_grad():
        expected = torch.cat([model.net(x.cuda()) for x in DATA.split(100)]).cpu()
    assert torch.equal(torch.cat([output for _, output in predicted]), expected)


class WithLoss(nn.Module):
    """A network that computes its loss itself, so that the loss is in the memory of a CUDA graph."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(self.net(x), x.sum(1, keepdim=True))


def test_cuda_graphs_of_a_compiled_network_go_on_after_rows_validations_and_saves(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    import torch._inductor.config as inductor

    class Compiled(Regression):
        def setup(self, fast_init: bool = False) -> None:
            self.net = self.parallelize(WithLoss())
            self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)

        def train_step(self, batch: Any, state: Any) -> None:
            loss = self.net(batch[0])
            self.backward(loss)
            self.optimizer_step(self.optimizer)
            self.log("loss", loss)

        def valid_step(self, batch: Any, step: int) -> None:
            self.log("loss", self.net(batch[0]))

    split = Split(TensorDataset(DATA), batch_size=100)
    options = {"valid_every_steps": 3, "save_every_steps": 3, "log_every_steps": 4, "root": tmp_path, "compile": True}
    with inductor.patch({"triton.cudagraphs": True}):
        result = quiet(max_steps=25, accelerator="cuda", **options).fit(Compiled(), DataModule(split, split))
    assert 0 < result.metrics["train/loss"] < 1


def test_rows_have_the_peak_memory_of_the_device() -> None:
    result = quiet(max_steps=4, log_every_steps=2).fit(
        Regression(), DataModule(train=Split(TensorDataset(DATA), batch_size=50))
    )
    expected = torch.cuda.max_memory_allocated() / 2**20
    assert 0 < result.metrics["train/memory_mib"] <= expected
