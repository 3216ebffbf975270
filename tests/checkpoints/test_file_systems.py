"""Errors of file systems name the file and the way out. A library that is preloaded lets calls of the system fail."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import scripts
from helpers.processes import TESTS

PROGRAM = """
import json, logging, os, pickle, shutil, sys, tempfile
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
from helpers.models import Tiny, data, quiet
from helios_lite import Callback
from helios_lite.processes import worker

class Then(Callback):
    def __init__(self, failing, step):
        self.failing, self.step = failing, step

    def on_training_batch_end(self, state, should_log=False):
        if state.step == self.step:
            os.environ["FAILING"] = self.failing

class Vanish(Callback):
    def on_training_batch_end(self, state, should_log=False):
        if state.step == 2:
            shutil.rmtree(root / "vanished")

def fail():
    file = root / "tmp/error"
    os.environ["HELIOS_LITE_ERROR_FILE"] = str(file)
    worker.keep_room(file)
    os.environ["FAILING"] = f"write 28 {{file}}"
    worker.leave_error(ValueError("enough of this"), "traceback" * 1000)
    assert worker.WorkerError(*pickle.loads(file.read_bytes())).traceback == "traceback" * 1000
    file.unlink()

def outcome(call):
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger().handlers[:] = [handler]
    try:
        call()
    except Exception as error:
        messages += [f"{{type(error).__name__}}: {{error}}", *getattr(error, "__notes__", [])]
    finally:
        os.environ.pop("FAILING", None)
    return messages

def fit(name, failing, step=None, **options):
    if step is None:
        os.environ["FAILING"] = failing
    callbacks = [] if step is None else [Then(failing, step)]
    options = {{"root": root / name, "max_steps": 4, "save_every_steps": 1, "callbacks": callbacks, **options}}
    return outcome(lambda: quiet(**options).fit(Tiny(), data()))

def predict(failing):
    os.environ["FAILING"] = failing
    trainer = quiet(max_steps=1, devices=2, accelerator="cpu")
    return outcome(lambda: list(trainer.predict(Tiny(), data())))

if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    tempfile.gettempdir()  # Python takes another one if this one is full already.
    found = {{
        "full disk": fit("full disk", "write 28 checkpoints/.tiny", 2, async_save=False),
        "full disk, in the background": fit("background", "write 28 checkpoints/.tiny", 2),
        "full disk under the rows": fit("rows", "write 28 metrics.jsonl", 2, log_every_steps=1),
        "full disk under the log": fit("log", "write 28 train.log", 2),
        "full disk at the start": fit("start", "write 28 start"),
        "read-only": fit("read-only", "mkdir 30 read-only"),
        "read-only folder": fit("closed", "open 30 .lock"),
        "no locks": fit("no locks", "lock 38 .lock"),
        "no append": fit("no append", "append 95 checkpoints"),
        "no replace": fit("no replace", "replace 95 checkpoints"),
        "vanished": fit("vanished", "", callbacks=[Vanish()], async_save=False),
        "full TMPDIR": predict(f"write 28 {{os.environ['TMPDIR']}}"),
        "an error of a full TMPDIR": outcome(fail),
    }}
    (root / "found.json").write_text(json.dumps(found))
"""


FULL = "OSError: [Errno 28] No space left on device: "
MAKE_ROOM = "the disk is full: make room, and run the program again, which goes on from the last checkpoint"
SET_ROOT = "set root to a folder that can be written to"
NOT_A_DISK = "set root to a folder on a file system that can do so, such as a local disk"
SET_TMPDIR = "the disk of the temporary folder is full: set TMPDIR to a folder with more space"
EXPECTED = {
    "full disk": [f"{FULL}'full disk/tiny/checkpoints/tiny_epoch_0_iter_2.pth'", MAKE_ROOM],
    "full disk, in the background": [f"{FULL}'background/tiny/checkpoints/tiny_epoch_0_iter_N.pth'", MAKE_ROOM],
    "full disk under the rows": [
        f"{FULL}'rows/tiny/metrics.jsonl'",
        "the disk is full, or your part of it: make room, and run the program again",
    ],
    "full disk under the log": [
        "log/tiny/train.log: cannot be written to ([Errno 28] No space left on device); the run goes on without it"
    ],
    "full disk at the start": [
        f"{FULL}'start/tiny/checkpoints/.lock'",
        "the disk is full, or your part of it: make room, and run the program again",
    ],
    "read-only": ["OSError: [Errno 30] Read-only file system: 'read-only/tiny/checkpoints'", SET_ROOT],
    "read-only folder": ["OSError: [Errno 30] Read-only file system: 'closed/tiny/checkpoints/.lock'", SET_ROOT],
    "no locks": [
        "no locks/tiny/checkpoints: this file system has no locks (Function not implemented): a second run that is "
        "started here at the same time would not be noticed, and both would write over each other's files"
    ],
    "no append": [
        "OSError: [Errno 95] no file can be appended to there (Operation not supported): 'no append/tiny/checkpoints'",
        NOT_A_DISK,
    ],
    "no replace": [
        "OSError: [Errno 95] no file can be replaced by renaming another there (Operation not supported): "
        "'no replace/tiny/checkpoints'",
        NOT_A_DISK,
    ],
    "vanished": [
        "FileNotFoundError: [Errno 2] No such file or directory: 'vanished/tiny/checkpoints/manifest.json'",
        "vanished/tiny/checkpoints is not there any more; the run had made it, or found it",
    ],
    "full TMPDIR": [f"{FULL}'tmp/helios_lite-X/task'", SET_TMPDIR],
    "an error of a full TMPDIR": [],
}


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc, for a library that lets calls fail")
def test_what_a_file_system_cannot_do_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.format(tests=str(TESTS)))
    library = tmp_path / "failing_calls.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, TESTS / "helpers/failing_calls.c", "-ldl"], check=True)
    (tmp_path / "tmp").mkdir()
    env = {"LD_PRELOAD": str(library), "TMPDIR": str(tmp_path / "tmp")}
    scripts.run(tmp_path / "program.py", tmp_path, env=env, new_interpreter=True)
    text = (tmp_path / "found.json").read_text().replace(f"{tmp_path}/", "")
    text = re.sub(r"(?<=background/tiny/checkpoints/tiny_epoch_0_iter_)\d", "N", text)
    found = json.loads(re.sub(r"(?<=helios_lite-)\w+", "X", text))
    assert found == EXPECTED
    assert list((tmp_path / "tmp").glob("helios_lite-*")) == []
