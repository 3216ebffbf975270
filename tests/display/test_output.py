"""Whatever stdout and stderr are, a run ends as it would otherwise; `python tests/outputs.py 1000` tries more."""

import io
import logging
import os
import sys
from pathlib import Path

import pytest
from helpers.compare import same
from helpers.models import Tiny, data, quiet
from helpers.outputs import Object, Trial, problem

from helios_lite.display import run_log
from helios_lite.processes.output import GuardedStream, guarded_output, write_stderr

TRIALS = [
    # `2>&1 | tee log` and Ctrl-C, which ends tee; then one of the usual objects, which fails.
    Trial("breaks", "breaks", True, False, False, False, False, 0, 1, "SIGINT", 3),
    Trial("failing object", "terminal breaks", False, True, True, True, False, 0, 1, "SIGTERM", 3),
    Trial("none", "taken", False, True, True, True, True, 0, 1, "SIGINT", 2),
    Trial("full", "full", False, True, True, True, False, 1, 1, "end", 2),
    Trial("object", "broken", False, False, True, True, False, 0, 1, "hang", 2),
    Trial("broken", "breaks", False, True, True, True, False, 0, 2, "SIGINT", 3),
]


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: f"{trial.stdout}, {trial.stderr}, {trial.ending}")
def test_a_run_ends_as_it_must_whatever_its_output_is(trial: Trial, tmp_path: Path) -> None:
    assert problem(trial, tmp_path) is None


def test_a_stream_that_fails_is_turned_off_until_the_end_of_the_call(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing = Object(fails=True)
    monkeypatch.setattr(sys, "stdout", failing)
    with guarded_output(), guarded_output():
        assert not sys.stdout.isatty()
        for text in "abcd":
            sys.stdout.write(text)
        assert failing.count == 2
    assert sys.stdout is failing
    assert caplog.messages == ["stdout cannot be written to (this object is full): nothing more is shown there"]
    with pytest.raises(RuntimeError, match="this object is full"):
        print("e")


def test_what_cannot_be_encoded_is_shown_with_escapes_and_what_comes_then_too() -> None:
    output = io.BytesIO()
    stream = GuardedStream("stdout", io.TextIOWrapper(output, encoding="ascii", write_through=True))
    for text in ("ä", "b"):
        stream.write(text)
    assert output.getvalue() == b"\\xe4b"
    stream.release()
    with pytest.raises(UnicodeEncodeError):
        stream.write("ä")


def test_a_handler_does_not_wait_for_a_reader_that_has_stopped() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    while True:
        try:
            os.write(writer, b"x" * 65536)
        except BlockingIOError:
            break
    os.set_blocking(writer, True)
    before = os.dup(2)
    try:
        os.dup2(writer, 2)
        write_stderr("this would wait for ever")
    finally:
        os.dup2(before, 2)
        for number in (before, reader, writer):
            os.close(number)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is full")
def test_a_train_log_that_cannot_be_written_to_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tiny").mkdir()
    whole, model = Tiny(), Tiny()
    quiet(max_epochs=1).fit(whole, data())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_log, "_opened", lambda path: open("/dev/full", "w"))  # noqa: SIM115
        quiet(max_epochs=1, root=tmp_path).fit(model, data())
    assert same(model.state_dict(), whole.state_dict())
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    text = f"{tmp_path}/tiny/train.log: cannot be written to ([Errno 28] No space left on device)"
    assert warnings == [f"{text}; the run goes on without it"]
