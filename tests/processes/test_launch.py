"""Launching several real processes: what comes back, whatever happens to one of them; and nobody stays behind."""

import functools
import json
import multiprocessing
import os
import pickle
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import scripts, troubled
from helpers.compare import same, weights
from helpers.models import Plain, Scripted, Tiny, quiet
from helpers.processes import DEADLINE, SLOWNESS, alive, deadline, launched, wait_for
from helpers.rows import read_status
from helpers.tracebacks import MOST, PACKAGE, functions
from helpers.troubled import Early, Troubled, data, outcome, trainer
from torch import nn
from torch._dynamo.utils import counters

from helios_lite import DataModule, FitResult, Model
from helios_lite.calls.launching import Call, take_final_weights
from helios_lite.checkpoints.files import FORMAT_VERSION
from helios_lite.processes.signals import GracefulShutdown, exit_status

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No process that the test starts may be left after it."""
    with deadline(120):
        yield
        limit = time.monotonic() + 10 * SLOWNESS
        while alive() and time.monotonic() < limit:
            time.sleep(0.1)
        left = alive()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert left == {}


def require_success(*processes: subprocess.Popen[str]) -> None:
    errors = [process.communicate(timeout=DEADLINE)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), errors


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def whole(root: Path) -> tuple[Model, FitResult]:
    """A run of two processes that nothing happened to."""
    model = Troubled(root)
    return model, trainer(root, devices=2).fit(model, data())


# What comes back.


def test_the_result_and_the_final_weights_come_back(root: Path, whole: tuple[Model, FitResult]) -> None:
    model, result = whole
    assert isinstance(result, FitResult)
    assert result.state.step == troubled.STEPS
    assert result.stop_reason == "max_steps"
    assert result.last_checkpoint is not None
    assert set(result.metrics) >= {"train/loss", "valid/loss"}
    content = torch.load(result.last_checkpoint, weights_only=True)
    assert same(weights(model)["net"], content["model"]["net"])
    assert not model.is_distributed


def test_a_test_follows_a_fit_and_is_that_of_one_process(root: Path, whole: tuple[Model, FitResult]) -> None:
    model, _ = whole
    several = trainer(root, devices=2).test(model, data(), checkpoint="last")
    one = trainer(root).test(Troubled(root), data(), checkpoint="last")
    assert list(several) == list(one) == ["test/loss"]
    assert several["test/loss"] == pytest.approx(one["test/loss"], rel=1e-6)


def test_every_process_trains_its_own_copy_of_a_network_that_was_there_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any folder; tensors sent by torch.multiprocessing would be shared, and be trained twice.

    What an earlier training has left on a device, here one that the processes do not have, comes to the CPU.
    """
    found = []
    elsewhere = (0, lambda storage: "elsewhere" if storage.nbytes() == 28 else None, lambda storage, where: None)
    monkeypatch.setattr(torch.serialization, "_package_registry", [elsewhere, *torch.serialization._package_registry])
    for devices in (1, 2):
        model = Early()
        model.kept = torch.ones(7)
        trainer(None, max_steps=5, devices=devices).fit(model, data(batch_size=4 // devices))
        assert model.net is model.early
        found.append(weights(model)["net"])
    for one, two in zip(found[0].values(), found[1].values(), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


class WithData(Plain):
    """Its `setup` uses the trainer and what the datamodule has assigned in `setup`."""

    def __init__(self, datamodule: "Noting") -> None:
        super().__init__()
        self.noting = datamodule

    def setup(self, fast_init: bool = False) -> None:
        self.hparams["width"] = self.noting.width + self.trainer.seed
        self.net = self.parallelize(nn.Sequential(nn.Linear(3, self.hparams["width"]), nn.Dropout(0.0)))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.scheduler = None

    def on_training_end(self) -> None:
        self.hparams["steps"] = self.trainer.max_steps
        self.hparams["file of the map"] = str(getattr(self.noting.map, "filename", None))


class Noting(DataModule):
    """Assigns a random number in `setup`, and remembers what it was called for; has a memory map."""

    def __init__(self, map: np.memmap | None = None) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.map = map

    def setup(self) -> None:
        self.calls.append("setup")
        self.width = int(torch.randint(1, 10**6, ())) % 50 + 1
        splits = data()
        self.train, self.valid, self.test = splits.train, splits.valid, splits.test

    def teardown(self) -> None:
        self.calls.append("teardown")


def test_a_caller_reads_from_the_model_what_it_could_read_after_one_process(tmp_path: Path) -> None:
    found = []
    np.save(tmp_path / "map.npy", np.arange(5))
    for devices in (1, 2):
        datamodule = Noting(np.load(tmp_path / "map.npy", mmap_mode="r"))
        model = WithData(datamodule)
        run = trainer(tmp_path / str(devices), devices=devices, max_steps=3, seed=7, log_every_steps=1)
        result = run.fit(model, datamodule)
        assert model.metrics == result.metrics
        assert model.net.training
        metrics, hparams = list(model.metrics), dict(model.hparams)
        tested = run.test(model, datamodule)
        assert model.metrics == tested
        assert not model.net.training
        with pytest.raises(RuntimeError, match="no Trainer is running this model"):
            _ = model.trainer
        found.append((metrics, hparams, datamodule.width, datamodule.calls, list(model.metrics)))
    assert found[0] == found[1]
    assert found[0][3] == ["setup", "teardown"] * 2
    assert found[0][1]["file of the map"] == str(tmp_path / "map.npy")


CALLBACK_OF_THE_PROGRAM = """
import json, pathlib
import torch
from torch import nn
from torch.utils.data import TensorDataset
from helios_lite import Callback, DataModule, Model, Split, Trainer

class Small(Model):
    def setup(self, fast_init=False):
        self.net = self.parallelize(nn.Linear(1, 1))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

    def train_step(self, batch, state):
        self.backward(self.net(batch[0]).mean())
        self.optimizer_step(self.optimizer)

class Own(Callback):
    def __init__(self, size):
        self.size = size

if __name__ == "__main__":
    data = DataModule(train=Split(TensorDataset(torch.ones(4, 1)), batch_size=2))
    trainer = Trainer(max_epochs=1, devices=2, callbacks=[Own(3)], progress=False, print_banner=False)
    trainer.fit(Small("small"), data)
    config = json.loads(pathlib.Path("runs/small/config.json").read_text())["trainer"]
    assert config == trainer.config(), config["callbacks"]
    assert Trainer.from_config(config).callbacks[0].size == 3
"""


def test_the_config_of_a_run_names_a_class_of_the_program_as_one_process_does(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(CALLBACK_OF_THE_PROGRAM)
    scripts.run("program.py", cwd=tmp_path)


def test_taking_over_what_other_processes_have_trained_uses_no_random_numbers_of_the_caller(tmp_path: Path) -> None:
    datamodule = Noting()
    model, run = WithData(datamodule), trainer(None, max_steps=1)
    run.fit(model, datamodule)
    torch.save({"format": FORMAT_VERSION, "model": model.state_dict(), "metrics": {}}, tmp_path / "final")
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    take_final_weights(Call("fit", run, model, datamodule, 2, tmp_path, GracefulShutdown()), tmp_path / "final")
    assert torch.equal(torch.rand(2), expected)
    assert datamodule.calls == ["setup", "teardown"] * 2


class OnlyInParallel(Tiny):
    def setup(self, fast_init: bool = False) -> None:
        if not self.is_distributed:
            raise ValueError("only in parallel")
        super().setup(fast_init)


def test_a_result_is_not_lost_if_the_model_cannot_be_set_up_in_the_calling_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = OnlyInParallel()
    result = trainer(tmp_path, devices=2, max_steps=3, log_every_steps=1).fit(model, data())
    assert result.state.step == 3
    assert model.metrics == result.metrics
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "(ValueError: only in parallel)" in record.message
    assert "OnlyInParallel.load_from_checkpoint" in record.message
    assert record.exc_info is not None
    assert result.last_checkpoint is not None
    assert len(torch.load(result.last_checkpoint, weights_only=True)["model"]["net"]) == 4


# What one rank does.


@pytest.mark.parametrize(
    ("trouble", "place", "asleep", "kind", "message"),
    [
        (troubled.fail, "train_step", True, ValueError, "enough of this"),
        (troubled.fail, "valid_step", True, ValueError, "enough of this"),
        (troubled.fail, "setup", False, ValueError, "enough of this"),
        (troubled.fail_beside_a_thread, "train_step", True, ValueError, "enough of this"),
        (troubled.fail_oddly, "train_step", False, RuntimeError, "Odd: enough of this"),
        (troubled.leave, "train_step", True, SystemExit, "0"),
        (troubled.die, "train_step", False, RuntimeError, "rank 1 was killed by SIGKILL (exit status -9)"),
        (troubled.die_slowly, "train_step", False, RuntimeError, "rank 1 was killed by SIGKILL (exit status -9)"),
        (troubled.vanish, "train_step", False, RuntimeError, "rank 1 ended without an exception (exit status 3)"),
        (
            troubled.vanish_as_if_done,
            "train_step",
            True,
            RuntimeError,
            "rank 1 ended without an exception (exit status 0)",
        ),
    ],
)
def test_the_trouble_of_one_rank_ends_all_within_ten_seconds_and_reaches_the_caller(
    tmp_path: Path, trouble: Callable[[], None], place: str, asleep: bool, kind: type[BaseException], message: str
) -> None:
    model = Troubled(tmp_path, trouble, place, asleep)
    with pytest.raises(kind, match=f"^{re.escape(message)}") as caught:
        trainer(tmp_path, devices=2).fit(model, data(num_workers=int(asleep)))
    assert time.time() - (tmp_path / "trouble").stat().st_mtime < 10 * SLOWNESS
    assert caught.type is kind
    require_status(tmp_path, "failed", f"{kind.__name__}: {caught.value}", exit_status(caught.value))
    if kind is not RuntimeError or message.startswith("Odd"):
        text = str(caught.value.__cause__)
        assert "in the process of rank 1:" in text
        assert f", in {trouble.__name__}\n" in text
        assert functions(caught.value) == ["fit", "launch"]
        assert text.count(f'  File "{PACKAGE}') <= MOST


def test_a_killed_rank_starts_all_again_and_the_end_is_the_same(
    tmp_path: Path, root: Path, whole: tuple[Model, FitResult]
) -> None:
    model = Troubled(tmp_path, troubled.die_once)
    result = trainer(tmp_path, devices=2, max_restarts=1).fit(model, data())
    assert (tmp_path / "trouble").exists()
    assert result.state.step == troubled.STEPS
    require_status(tmp_path, "finished", "max_steps", 0)
    assert same(outcome(tmp_path), outcome(root))
    assert same(weights(model), weights(whole[0]))


def test_the_death_of_the_fork_server_changes_nothing(
    tmp_path: Path, root: Path, whole: tuple[Model, FitResult]
) -> None:
    require_success(launched(tmp_path, "--devices", 2, "--trouble", "kill_server"))
    assert (tmp_path / "trouble").exists()
    assert same(outcome(tmp_path), outcome(root))


def require_status(folder: Path, state: str, reason: str, exit_status: int) -> None:
    """The file status.json says how the run has ended, and why."""
    status = read_status(folder / "tiny")
    assert (status["state"], status["reason"], status["exit_status"]) == (state, reason, exit_status)


# What cannot be sent.


def test_what_cannot_be_sent_is_named_before_anything_is_started(tmp_path: Path) -> None:
    def refused(model: Model, datamodule: Any) -> str:
        with pytest.raises(TypeError, match=r"sent to another process .*: make it in setup, which") as caught:
            trainer(tmp_path, devices=2).fit(model, datamodule)
        assert multiprocessing.active_children() == []
        return str(caught.value).split(" cannot")[0]

    model, datamodule = Troubled(tmp_path), data()
    datamodule.prepare_data = (tmp_path / "prepared").touch  # type: ignore[method-assign]
    model.activation = lambda x: x  # type: ignore[attr-defined]
    assert refused(model, datamodule) == "model.activation"
    model.activation = [1, {"inner": (2, lambda x: x)}]  # type: ignore[attr-defined]
    assert refused(model, datamodule) == "model.activation[1]['inner'][1]"
    model.activation = Plain()  # type: ignore[attr-defined]
    model.activation.owner = model  # type: ignore[attr-defined]
    model.activation.lock = threading.Lock()  # type: ignore[attr-defined]
    assert refused(model, datamodule) == "model.activation.lock"
    datamodule.train.collate_fn = lambda samples: samples  # type: ignore[union-attr]
    assert refused(Troubled(tmp_path), datamodule) == "datamodule.train.collate_fn"
    assert list(tmp_path.iterdir()) == []


# Signals.


def require_saved(folder: Path) -> None:
    """The newest checkpoint holds the last batch that any rank has trained."""
    for rank in (0, 1):
        batches = (folder / f"batches-{rank}").read_text().splitlines()
        assert outcome(folder)["state"]["batch"] == len(batches) < troubled.STEPS


def require_one_line_each(errors: str) -> None:
    """One process says that the run is about to stop, and one that it has stopped because of Ctrl-C."""
    assert errors.count("finishing the step and saving; press Ctrl-C again to end at once\n") == 1, errors
    assert re.findall(
        r"(\w+): stopped at step \d+, saved .*; to go on from there, run the program again\n", errors
    ) == ["KeyboardInterrupt"], errors
    assert "/helios_lite/" not in errors


def require_continues(folder: Path, root: Path) -> None:
    """Going on leads to the same end."""
    trainer(folder, devices=2).fit(Troubled(folder), data())
    assert same(outcome(folder), outcome(root))
    for rank in (0, 1):
        assert (folder / f"batches-{rank}").read_text() == (root / f"batches-{rank}").read_text()


@pytest.mark.parametrize("trouble", [troubled.terminate_parent, troubled.terminate])
def test_a_sigterm_to_the_parent_or_to_one_rank_saves_and_ends_all(
    tmp_path: Path, root: Path, whole: tuple[Model, FitResult], trouble: Callable[[], None]
) -> None:
    own = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    own.start()  # A child of the caller's that is none of our business.
    with pytest.raises(SystemExit) as caught:
        trainer(tmp_path, devices=2).fit(Troubled(tmp_path, trouble, pace=0.05), data())
    assert caught.value.code == 143
    assert own.is_alive()
    own.kill()
    own.join()
    require_status(tmp_path, "failed", "SIGTERM", 143)
    require_saved(tmp_path)
    if trouble is troubled.terminate:
        require_continues(tmp_path, root)


def test_a_sigterm_to_the_parent_saves_and_ends_all_though_the_fork_server_is_dead(tmp_path: Path) -> None:
    trouble = ("--trouble", "kill_server_and_terminate_parent")
    process = launched(tmp_path, "--devices", 2, "--pace", 0.05, *trouble)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 143, errors
    require_saved(tmp_path)


class Arriving:
    """Ends the run when a rank reads it, which has not begun then."""

    def __getstate__(self) -> bool:
        return True

    def __setstate__(self, state: bool) -> None:
        if os.environ["RANK"] == "0":
            troubled.terminate_parent()
        troubled.sleep()


def test_a_sigterm_while_processes_are_starting_ends_them_without_a_restart(tmp_path: Path) -> None:
    model = Troubled(tmp_path)
    model.arriving = Arriving()  # type: ignore[attr-defined]
    with pytest.raises(SystemExit) as caught:
        trainer(tmp_path, devices=2, max_restarts=3).fit(model, data())
    assert caught.value.code == 143
    require_status(tmp_path, "failed", "SIGTERM", 143)
    assert not (tmp_path / "batches-0").exists()


def test_ctrl_c_saves_and_ends_all(tmp_path: Path, root: Path, whole: tuple[Model, FitResult]) -> None:
    process = launched(tmp_path, "--devices", 2, "--pace", 0.05)
    wait_for(tmp_path / "batches-1", process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == -signal.SIGINT
    assert errors.splitlines()[-1].startswith("KeyboardInterrupt: stopped at step ")
    require_one_line_each(errors)
    require_saved(tmp_path)
    require_continues(tmp_path, root)


def test_ctrl_c_under_torchrun_saves_and_prints_its_lines_once(tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = launched(tmp_path, "--pace", 0.05, by=torchrun)
    wait_for(tmp_path / "batches-1", process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=DEADLINE)
    require_one_line_each(errors)
    require_status(tmp_path, "failed", "SIGINT", 130)
    require_saved(tmp_path)


def test_a_sigterm_to_all_processes_saves_and_ends_all_though_the_fork_server_dies(tmp_path: Path) -> None:
    """As a scheduler or a container sends it."""
    process = launched(tmp_path, "--devices", 2, "--pace", 0.05)
    wait_for(tmp_path / "batches-1", process)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 143, errors
    assert "Traceback" not in errors
    require_saved(tmp_path)


def test_a_second_ctrl_c_ends_all_at_once(tmp_path: Path) -> None:
    process = launched(tmp_path, "--devices", 2, "--asleep")
    wait_for(tmp_path / "trouble", process)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(1.0)
    assert process.poll() is None  # It finishes its step.
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=10 * SLOWNESS)
    assert process.returncode == -signal.SIGINT, errors


def test_processes_whose_parent_was_killed_end_by_themselves(tmp_path: Path) -> None:
    process = launched(tmp_path, "--devices", 2, "--asleep", "--num-workers", 1)
    wait_for(tmp_path / "trouble", process)
    assert len(alive()) == 5  # The fork server of the program, two ranks and their loading processes.
    process.kill()
    process.communicate(timeout=10 * SLOWNESS)


# Several at once, and torchrun.


def test_launches_at_the_same_time_do_not_meet(tmp_path: Path, root: Path, whole: tuple[Model, FitResult]) -> None:
    folders = [tmp_path / str(number) for number in range(2)]
    for folder in folders:
        folder.mkdir()
    process = launched(folders[0], "--devices", 2, "--pace", 0.05)
    wait_for(folders[0] / "batches-1", process)
    trainer(folders[1], devices=2).fit(Troubled(folders[1]), data())
    require_success(process)
    assert all(same(outcome(folder), outcome(root)) for folder in folders)


def test_torchrun_on_one_machine_with_a_restart_and_on_two_does_the_same(
    tmp_path: Path, root: Path, whole: tuple[Model, FitResult]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    torchrun = ("-m", "torch.distributed.run")
    c10d = ("--rdzv-backend", "c10d", "--rdzv-id", "x", "--rdzv-endpoint", endpoint, "--local-addr", "127.0.0.1")
    node = (*torchrun, "--nnodes", "2", "--nproc-per-node", "1", *c10d)
    nodes = [launched(two, "--test", by=node) for _ in range(2)]
    again = (*torchrun, "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    require_success(launched(one, "--test", "--trouble", "die_once", by=again), *nodes)
    assert (one / "trouble").exists()
    for folder in (one, two):
        assert same(outcome(folder), outcome(root)), folder
        require_status(folder, "finished", "max_steps", 0)
    metrics = trainer(root).test(Troubled(root), data(), checkpoint="last")
    assert json.loads((one / "test.json").read_text()) == pytest.approx(metrics, rel=1e-6)
    assert (one / "test.json").read_text() == (two / "test.json").read_text()


# Beside it.


# PyTorch 2.14 warns of its own code.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_network_compiled_by_blocks_learns_the_same_and_its_checkpoint_needs_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All but the generation of code, which takes seconds. The blocks are of a class of PyTorch's own.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch.compiler.reset()
    found = []
    for compiled in (False, True):
        model = Plain()
        counters.clear()
        result = trainer(tmp_path / str(compiled), max_steps=11, log_every_steps=1, compile=compiled).fit(model, data())
        assert [module._compiled_call_impl is not None for module in model.net] == [compiled, False, compiled]
        assert model.net._compiled_call_impl is None
        assert (counters["frames"]["ok"] > 0) == (counters["stats"]["unique_graphs"] > 0) == compiled
        rows = (tmp_path / str(compiled) / "plain/metrics.jsonl").read_text().splitlines()
        found.append([json.loads(row)["train/loss"] for row in rows[:-1]])  # The last is of the final validation.
        assert result.last_checkpoint is not None
        content = torch.load(result.last_checkpoint, weights_only=True)
        assert list(content["model"]["net"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert len(found[0]) == 11
    assert found[0] == found[1]
    loaded = Plain.load_from_checkpoint(result.last_checkpoint)
    assert same(loaded.net.state_dict(), model.net.state_dict())
    x = torch.rand(2, 3)
    assert same(pickle.loads(pickle.dumps(model.net))(x), loaded.net(x))


def test_a_scripted_network_is_not_compiled_once_more() -> None:
    models = Scripted(), Scripted()
    for model, compiled in zip(models, (False, True), strict=True):
        quiet(max_epochs=2, compile=compiled).fit(model, data())
    assert same(*map(weights, models))


def test_the_example_takes_a_number_of_devices(tmp_path: Path) -> None:
    done = scripts.run(EXAMPLES / "digits.py", "--devices", 2, "--epochs", 1, cwd=tmp_path)
    assert re.search(r"^test accuracy 0\.\d+ with ", done.stdout, re.MULTILINE)
