"""Signals, kills and full disks: real ones. Nothing that was saved is lost, and the run goes on to the same end."""

import functools
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import resumable, scripts
from helpers.compare import same
from helpers.models import Tiny, data, quiet
from helpers.processes import DEADLINE, TESTS, end, finish, killed_and_finished, start, wait_for_step
from torch.utils.data import Dataset

from helios_lite import Callback, DataModule, Split, __version__
from helios_lite.checkpoints import files, naming
from helios_lite.checkpoints.files import CheckpointError
from helios_lite.checkpoints.folder import CheckpointFolder


class Signal(Callback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, number: int, step: int = 2) -> None:
        self.number, self.step = number, step
        self.handlers: list[Any] = []

    def on_training_batch_start(self, state: Any) -> None:
        self.handlers.append(signal.getsignal(self.number))
        if state.step + 1 == self.step:
            os.kill(os.getpid(), self.number)


class TornDown(Exception):
    pass


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_finishes_the_step_saves_tears_down_and_ends(
    tmp_path: Path, number: int, error: type[BaseException], capfd: pytest.CaptureFixture[str]
) -> None:
    torn: list[int] = []

    class Ended(Tiny):
        def on_training_end(self) -> None:
            raise AssertionError("the training has not ended: it was interrupted")

    model, datamodule = Ended(), data()
    datamodule.teardown = lambda: torn.append(1)  # type: ignore[method-assign]
    before = signal.getsignal(number)
    callback = Signal(number)
    with pytest.raises(error) as caught:
        quiet(max_epochs=3, root=tmp_path, callbacks=[callback]).fit(model, datamodule)
    if error is SystemExit:
        assert caught.value.code == 143
    assert torn == [1]
    assert len(model.seen) == 8
    assert [path.name for path in (tmp_path / "tiny/checkpoints").glob("*.pth")] == ["tiny_epoch_0_iter_2.pth"]
    assert signal.getsignal(number) is before
    assert before not in callback.handlers


@pytest.mark.parametrize("step", [1, 3, 6, 9])
def test_an_interrupted_run_ends_like_one_that_was_not(tmp_path: Path, step: int) -> None:
    outcomes = []
    for name, callbacks in (("whole", []), ("cut", [Signal(signal.SIGTERM, step)])):
        model = Tiny()
        try:
            quiet(max_epochs=3, root=tmp_path / name, callbacks=callbacks).fit(model, data())
        except SystemExit:
            model = Tiny()
            quiet(max_epochs=3, root=tmp_path / name).fit(model, data())
        outcomes.append(model.state_dict())
    assert same(*outcomes)


def test_an_exception_wins_over_a_signal(tmp_path: Path) -> None:
    class Failing(Signal):
        def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
            raise TornDown

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TornDown):
        quiet(max_epochs=1, callbacks=[Failing(signal.SIGTERM, 1)]).fit(Tiny(), data())
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_sigterm_after_ctrl_c_changes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt, match=r"^stopped at step 2; nothing is saved \(root=None\)$") as caught:
        quiet(max_epochs=3, callbacks=[Signal(signal.SIGINT), Signal(signal.SIGTERM)]).fit(Tiny(), data())
    assert capfd.readouterr().err.count("finishing the step") == 1
    assert {entry.name for entry in caught.traceback} == {"test_a_sigterm_after_ctrl_c_changes_nothing"}


def test_a_second_ctrl_c_is_immediate() -> None:
    class Twice(Tiny):
        def train_step(self, batch: Any, state: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            self.first = True
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            self.second = True

    model = Twice()
    with pytest.raises(KeyboardInterrupt):
        quiet(max_epochs=1).fit(model, data())
    assert model.first
    assert not hasattr(model, "second")


def test_outside_of_the_main_thread_no_handler_is_installed() -> None:
    callback = Signal(signal.SIGTERM, step=-1)
    thread = threading.Thread(
        target=lambda: quiet(max_epochs=1, callbacks=[callback]).fit(Tiny(), data()),
    )
    thread.start()
    thread.join(DEADLINE)
    assert callback.handlers == [signal.getsignal(signal.SIGTERM)] * 3


# From outside, on a training in a process of its own. All of them end like this one.


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("whole")
    finish(root)
    return resumable.outcome(root)


def test_ctrl_c_reaches_loading_processes_too_and_still_finishes_the_step(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    process = start(tmp_path, "--num-workers", "2", pace=0.3)
    wait_for_step(process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == -signal.SIGINT
    assert re.search(
        r"\nKeyboardInterrupt: stopped at step \d+, saved .*; to go on from there, run the program again\n$", errors
    )
    assert "/helios_lite/" not in errors
    assert "DataLoader worker" not in errors
    require_checkpoint_of_newest_step(tmp_path)
    finish(tmp_path, "--num-workers", "2")
    assert same(resumable.outcome(tmp_path), whole)


FAILING = """
import sys
sys.path.insert(0, {tests!r})
import torch.utils.data
from helpers.models import Tiny, data, quiet

class Failing(Tiny):
    def train_step(self, batch, state):
        raise ValueError("enough of this")

if __name__ == "__main__":
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 1000.0  # For so long PyTorch waits for one that stays.
    options = dict(num_workers=2, multiprocessing_context={context!r}, persistent_workers={persistent})
    quiet(max_epochs=1).fit(Failing(), data(**options))
"""


@pytest.mark.parametrize(("context", "persistent"), [("fork", False), ("fork", True), ("forkserver", False)])
def test_an_exception_ends_a_program_with_loading_processes_at_once(context: str, persistent: bool) -> None:
    """They are ended by SIGTERM, which they would survive if a step were being finished."""
    script = FAILING.format(tests=str(TESTS), context=context, persistent=persistent)
    done = scripts.run("-c", script, check=False, timeout=60 * scripts.SLOWNESS)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("ValueError: enough of this")


def test_loading_processes_of_a_killed_training_end_by_themselves(tmp_path: Path) -> None:
    process = start(tmp_path, "--num-workers", "2", pace=1.0, ballast=0)
    wait_for_step(process)
    process.kill()
    process.communicate(timeout=20 * scripts.SLOWNESS)  # They hold on to the pipes as long as they live.


class Interrupting(Dataset):
    """Loading processes that get a SIGINT before every sample, as by Ctrl-C, and tell their number."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        os.kill(os.getpid(), signal.SIGINT)
        return index, torch.ones(3)


def test_a_loading_process_ignores_ctrl_c() -> None:
    model = Tiny()
    split = Split(Interrupting(), batch_size=2, num_workers=1)
    quiet(max_epochs=1).fit(model, DataModule(split))
    assert model.seen == [0, 1, 2, 3, 4, 5]


def test_sigterm_to_the_whole_group_finishes_the_step_with_loading_processes(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    process = start(tmp_path, "--num-workers", "2", "--save-every-steps", "100", pace=0.3)
    wait_for_step(process)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 143, errors
    require_checkpoint_of_newest_step(tmp_path)
    finish(tmp_path)
    assert same(resumable.outcome(tmp_path), whole)


def test_sigterm_ends_with_status_143_after_saving(tmp_path: Path, whole: dict[str, Any]) -> None:
    process = start(tmp_path, "--save-every-steps", "100", pace=0.1, new_interpreter=True)  # One by Python itself.
    wait_for_step(process, 2)
    assert end(process, signal.SIGTERM)[0] == 143
    require_checkpoint_of_newest_step(tmp_path)
    finish(tmp_path, "--num-workers", "1")
    assert same(resumable.outcome(tmp_path), whole)


def require_checkpoint_of_newest_step(root: Path) -> None:
    """The newest file holds the last batch that was trained on."""
    content = files.read_file(naming.find(root / "rich/checkpoints", "rich")[0])
    assert content["state"]["batch"] == len((root / "indices").read_text().splitlines())


def test_a_kill_in_the_middle_of_a_save_loses_nothing(tmp_path: Path, whole: dict[str, Any]) -> None:
    folder = tmp_path / "rich/checkpoints"
    process = start(tmp_path, "--save-every-steps", "1", pace=0.2)
    wait_for_step(process, 2)
    deadline = time.monotonic() + DEADLINE
    while not (torn := [path for path in folder.glob(".*.pth.*.tmp") if path.stat().st_size > 1_000_000]):
        assert time.monotonic() < deadline
    end(process, signal.SIGKILL)
    assert torn[0].exists()
    assert naming.find(folder, "rich"), "an earlier checkpoint is there"
    finish(tmp_path)
    assert not torn[0].exists()
    assert same(resumable.outcome(tmp_path), whole)


def test_kills_at_random_moments_lose_nothing(tmp_path: Path, whole: dict[str, Any]) -> None:
    """A sample; `python tests/kill.py 50` does as many as you like."""
    outcome, kills = killed_and_finished(tmp_path / "killed", 12, "--num-workers", "2")
    assert same(outcome, whole)
    assert kills > 0


FULL_DISK = """
import resource, signal, sys
sys.path.insert(0, {tests!r})
from helpers.resumable import Rich, data, torch, trainer
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
torch.set_num_threads(1)
root = Path({root!r})
trainer(root, max_steps=2).fit(Rich(root / "indices"), data())
resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))
trainer(root, save_every_steps=1, async_save={background}).fit(Rich(root / "indices"), data())
"""


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_is_an_error_that_leaves_the_last_checkpoint_good(tmp_path: Path, background: bool) -> None:
    script = FULL_DISK.format(tests=str(TESTS), root=str(tmp_path), background=background)
    done = scripts.run("-c", script, check=False)
    assert done.returncode == 1
    assert "OSError: [Errno 27]" in done.stderr
    folder = tmp_path / "rich/checkpoints"
    good = [path for path in naming.find(folder, "rich") if files.read_file(path)["state"]["step"] == 2]
    assert len(good) == 1
    assert list(folder.glob(".*.tmp")) == []
    resumable.trainer(tmp_path).fit(resumable.Rich(tmp_path / "indices"), resumable.data())
    (tmp_path / "other").mkdir()
    resumable.trainer(tmp_path / "other").fit(resumable.Rich(tmp_path / "other/indices"), resumable.data())
    assert same(resumable.outcome(tmp_path), resumable.outcome(tmp_path / "other"))


# The folder.


def test_a_second_run_in_the_folder_is_refused_and_a_dead_ones_lock_is_not(tmp_path: Path) -> None:
    process = start(tmp_path, "--num-workers", "2", pace=1.0, ballast=0)
    try:
        wait_for_step(process)
        with pytest.raises(RuntimeError, match=f"process {process.pid} is running here"):
            resumable.trainer(tmp_path).fit(resumable.Rich(tmp_path / "indices"), resumable.data())
        model = resumable.Rich(tmp_path / "indices")
        assert resumable.trainer(tmp_path).validate(model, resumable.data())["valid/loss"] > 0  # Looking is allowed.
    finally:
        process.kill()
        process.wait(DEADLINE)
    # At once: its loading processes are still there, and hold on to what they inherited.
    resumable.trainer(tmp_path, max_steps=1).fit(resumable.Rich(tmp_path / "indices"), resumable.data())
    process.communicate(timeout=DEADLINE)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "malicious"])
def test_fit_and_test_pass_over_a_bad_file_with_a_warning_that_names_it(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    trained = quiet(max_steps=2, root=tmp_path, keep_last=-1, save_every_steps=1)
    trained.fit(Tiny(), data())
    folder = tmp_path / "tiny/checkpoints"
    newest, older = naming.find(folder, "tiny")
    content = newest.read_bytes()
    if damage == "truncated":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        place = content.index(files.read_file(newest)["model"]["net"]["0.weight"].numpy().tobytes())
        newest.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    elif damage == "foreign":
        torch.save({"weights": torch.zeros(3)}, newest)
    else:
        torch.save({"format": Malicious(str(tmp_path / "owned"))}, newest)
    for call in (lambda: trained.test(Tiny(), data()), lambda: quiet(max_steps=3, root=tmp_path).fit(Tiny(), data())):
        caplog.clear()
        call()
        warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len(warnings) == 1
        assert str(newest) in warnings[0]
    assert f"continuing {older.parent.parent} at step 1 of 3 ({older.name})" in caplog.text
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("call", ["auto", "never", "test best", "test last", "validate best"])
def test_a_checkpoint_of_a_newer_format_is_not_passed_over_or_replaced(tmp_path: Path, call: str) -> None:
    options: dict[str, Any] = {"root": tmp_path, "keep_last": -1, "monitor": "valid/loss", "valid_every_steps": 1}
    quiet(max_steps=2, save_every_steps=1, **options).fit(Tiny(), data())
    folder = tmp_path / "tiny/checkpoints"
    newest = naming.find(folder, "tiny")[0]
    read, written = files.FORMAT_VERSION, files.FORMAT_VERSION + 1
    torch.save({"format": written, "version": "9.8"}, newest)
    before = {path: path.read_bytes() for path in folder.glob("*.pth")}
    message = (
        rf"iter_2\.pth: a newer helios_lite \(9\.8\) wrote it in format {written}, .* reads format {read}; install"
    )
    task, _, choice = call.rpartition(" ")
    trainer = quiet(max_steps=3, resume="auto" if task else choice, **options)
    run: Any = functools.partial(getattr(trainer, task), checkpoint=choice) if task else trainer.fit
    with pytest.raises(files.OtherFormatError, match=message):
        run(Tiny(), data())
    assert {path: path.read_bytes() for path in folder.glob("*.pth")} == before


@pytest.mark.parametrize("call", ["auto", "never", "best", "path", "test", "validate", "replay", "init_from", "load"])
def test_a_run_folder_of_an_older_format_is_refused_in_one_line_and_stays_as_it_was(tmp_path: Path, call: str) -> None:
    options: dict[str, Any] = {"root": tmp_path, "keep_last": -1, "monitor": "valid/loss", "valid_every_steps": 1}
    options |= {"async_save": False, "save_every_steps": 1}
    quiet(max_steps=2, **options).fit(Tiny(), data())
    run = tmp_path / "tiny"
    newest, *others = naming.find(run / "checkpoints", "tiny")
    for path in (newest, *others):
        torch.save({**files.read_file(path), "format": 1, "version": "0.0.1"}, path)
    before = contents(run)
    calls: dict[str, Any] = {
        "path": lambda: quiet(max_steps=3, resume=newest).fit(Tiny(), data()),
        "test": lambda: quiet(max_steps=3, **options).test(Tiny(), data()),
        "validate": lambda: quiet(max_steps=3, **options).validate(Tiny(), data(), checkpoint="last"),
        "replay": lambda: quiet(max_steps=3, **options).replay(Tiny(), data(), step=3),
        "init_from": lambda: quiet(max_steps=3, init_from=run).fit(Tiny(), data()),
        "load": lambda: Tiny.load_from_checkpoint(newest),
    }
    fit = lambda: quiet(max_steps=3, resume=call, **options).fit(Tiny(), data())  # noqa: E731
    with pytest.raises(CheckpointError) as error:
        calls.get(call, fit)()
    assert str(error.value) == (
        f"{newest}: an older helios_lite (0.0.1) wrote it in format 1, and this one ({__version__}) reads format "
        f"{files.FORMAT_VERSION}; finish that run with the helios_lite that has begun it, or choose another file, or "
        "start anew under another run_name"
    )
    assert contents(run) == before


def contents(run: Path) -> dict[Path, bytes]:
    """What is in the files of a run, but for those that say how the last call has ended."""
    paths = (path for path in run.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in paths if path.name not in ("train.log", "status.json")}


class Malicious:
    """Unpickling it would make a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_a_bad_file_that_was_asked_for_by_path_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(files.CheckpointError, match=r"bad\.pth"):
        quiet(max_epochs=1, resume=path).fit(Tiny(), data())


# Saving in the background.


def test_the_file_is_the_moment_of_the_save_even_if_the_weights_change_at_once(tmp_path: Path) -> None:
    def saved(background: bool) -> dict[str, Any]:
        content: dict[str, Any] = {
            "format": files.FORMAT_VERSION,
            "w": torch.zeros(2_000_000),
            "n": [torch.ones(2)],
            "o": {"a": 1},
        }
        folder = CheckpointFolder(
            tmp_path / str(background), "m", mode="min", keep_last=1, keep_best=1, background=background
        )
        folder.folder.mkdir()
        path = folder.save(content, epoch=0, step=0, append_metadata=str, score=None, improved=False, protect=None)
        content["w"].fill_(7)
        content["n"][0].fill_(7)
        content["n"].append(1)
        content["o"]["a"] = 2
        folder.join()
        return files.read_file(path)

    assert same(saved(True), saved(False))


def test_an_error_in_the_background_surfaces_at_the_next_save_or_at_the_end(tmp_path: Path) -> None:
    class Vanishing(Callback):
        """Takes away the folder that the checkpoint after the first step is written into."""

        def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
            seen.append(state.step)
            if state.step == 1:
                folder.rename(tmp_path / "away")

    for max_steps in (1, 9):
        seen: list[int] = []
        folder = tmp_path / f"runs{max_steps}/tiny/checkpoints"
        with pytest.raises(FileNotFoundError):
            quiet(
                max_steps=max_steps, save_every_steps=1, root=tmp_path / f"runs{max_steps}", callbacks=[Vanishing()]
            ).fit(Tiny(), data())
        assert len(seen) <= 2
        (tmp_path / "away").rename(tmp_path / f"gone{max_steps}")
