"""The examples that write and draw, run as a user runs them, with small networks and few steps."""

import json
import math
import re
import signal
import struct
import time
import zlib
from pathlib import Path

import pytest
from helpers import scripts
from helpers.processes import kill_group
from helpers.rows import read_rows

from helios_lite.tools.command import main

EXAMPLES = Path(__file__).parent.parent / "examples"
CHAR_LM = "char_lm.py --width 32 --layers 1 --context 32 --files 10 --length 50"
GAN = "gan.py --width 16 --picture-every 2"


def run(folder, line):
    """Run an example in a folder, with the arguments that the line has after its name."""
    example, *arguments = line.split()
    return scripts.run(EXAMPLES / example, *arguments, cwd=folder)


def rows(folder, metric):
    """Return the values of a metric in the order logged."""
    return [row[metric] for row in read_rows(folder) if metric in row]


def written(output):
    """Return the text that the language model wrote: what comes after the last line of the report."""
    return output.partition("last checkpoint: ")[2].partition("\n")[2]


def gray_levels(path):
    """Return width, height and the bytes of a picture, read by the rules of the format."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, position = {}, 8
    while position < len(content):
        (length,) = struct.unpack(">I", content[position : position + 4])
        kind, body = content[position + 4 : position + 8], content[position + 8 : position + 8 + length]
        assert struct.unpack(">I", content[position + 8 + length : position + 12 + length]) == (
            zlib.crc32(kind + body),
        )
        chunks[kind] = body
        position += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, color, *_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, color) == (8, 0)
    lines = zlib.decompress(chunks[b"IDAT"])
    assert len(lines) == height * (width + 1)
    return width, height, lines


@pytest.fixture(scope="module")
def char_lm(tmp_path_factory):
    """Return the folder in which the example has run, and what it wrote."""
    folder = tmp_path_factory.mktemp("char_lm")
    return folder, run(folder, f"{CHAR_LM} --precision fp32 --steps 100 --batch-size 8")


@pytest.fixture(scope="module")
def gan(tmp_path_factory):
    """Return the folder in which the example has run, and what it wrote."""
    folder = tmp_path_factory.mktemp("gan")
    return folder, run(folder, f"{GAN} --epochs 5")


@pytest.mark.parametrize(
    ("example", "title"),
    [("char_lm.py", "Write Python"), ("gan.py", "Draw handwritten digits")],
    ids=["char_lm", "gan"],
)
def test_an_example_explains_its_options(tmp_path, example, title):
    shown = run(tmp_path, f"{example} --help").stdout
    assert title in shown
    assert "--devices" in shown
    assert list(tmp_path.iterdir()) == []


def test_char_lm_learns_and_writes_text(char_lm):
    folder, first = char_lm
    bits = rows(folder / "runs/char_lm", "valid/bits_per_character")
    assert len(bits) == 4
    assert bits[-1] < bits[0] < math.log2(97)  # What guessing among all characters costs.
    assert bits[-1] < 5.5
    text = written(first.stdout)
    assert text.startswith("    def ")
    assert len(text) >= len("    def ") + 50 + len("\n")  # An indent is one of the characters.


def test_char_lm_run_again_says_that_it_had_finished_and_writes_the_same(char_lm):
    folder, first = char_lm
    second = run(folder, f"{CHAR_LM} --precision fp32 --steps 100 --batch-size 8")
    assert "runs/char_lm had finished at step 100 (max_steps=100): nothing to train" in second.stderr
    assert written(second.stdout) == written(first.stdout)


def test_char_lm_sharded_over_two_processes_learns_what_one_does(char_lm, tmp_path):
    folder, _ = char_lm
    sharded = run(tmp_path, f"{CHAR_LM} --precision fp32 --steps 100 --batch-size 4 --devices 2 --strategy fsdp")
    one, two = (rows(root / "runs/char_lm", "valid/loss") for root in (folder, tmp_path))
    assert two == pytest.approx(one, rel=1e-4)
    assert len(written(sharded.stdout)) >= len("    def ") + 50 + len("\n")


def test_char_lm_sharded_and_killed_goes_on_with_one_process_and_becomes_one_file(tmp_path, monkeypatch, capsys):
    """As docs/distributed.md describes it."""
    arguments = f"{CHAR_LM} --precision fp32 --steps 200".split()[1:]
    command = [EXAMPLES / "char_lm.py", *arguments, "--batch-size", 4, "--devices", 2, "--strategy", "fsdp"]
    first = tmp_path / "runs/char_lm/checkpoints/char_lm_epoch_0_iter_50"
    with (tmp_path / "output").open("w") as output:
        training = scripts.start(*command, cwd=tmp_path, stdout=output, stderr=output, start_new_session=True)
    while training.poll() is None and not first.exists():
        time.sleep(0.02)
    kill_group(training.pid)
    assert training.wait() == -signal.SIGKILL, (tmp_path / "output").read_text()

    goes_on = run(tmp_path, f"char_lm.py {' '.join(arguments)} --batch-size 8")
    said = re.search(
        r"continuing runs/char_lm at step \d+ of 200, with 1 process in place of 2 \((\S+)\)", goes_on.stderr
    )
    left = tmp_path / "runs/char_lm/checkpoints" / said[1]
    assert left.is_dir()
    assert "char_lm_epoch_0_iter_200.pth" in goes_on.stdout
    main(["consolidate", str(left), str(tmp_path / "char_lm.pth")])
    assert capsys.readouterr().out == f"{tmp_path / 'char_lm.pth'}\n"

    monkeypatch.syspath_prepend(EXAMPLES)
    from char_lm import CharLM

    models = [CharLM.load_from_checkpoint(path) for path in (left, tmp_path / "char_lm.pth")]
    of_folder, of_file = (model.generate("    def ", 50) for model in models)
    assert of_folder == of_file


def test_char_lm_trains_in_bf16_unless_told_otherwise(tmp_path):
    run(tmp_path, f"{CHAR_LM} --steps 2")
    assert json.loads((tmp_path / "runs/char_lm/config.json").read_text())["trainer"]["precision"] == "bf16"
    assert len(rows(tmp_path / "runs/char_lm", "valid/loss")) == 2


def test_gan_comes_closer_to_the_digits_and_leaves_pictures(gan):
    folder, first = gan
    distances = rows(folder / "runs/gan", "valid/distance")
    assert len(distances) == 5
    assert distances[-1] < 0.8 * distances[0]
    names = [f"epoch_{epoch:04}.png" for epoch in (0, 2, 4, 5)]
    assert sorted(path.name for path in (folder / "runs/gan/samples").iterdir()) == names
    last = folder / "runs/gan/samples/epoch_0005.png"
    assert first.stdout.splitlines()[-1] == f"what it draws: {last}"
    width, height, lines = gray_levels(folder / last)
    assert (width, height) == (10 * 10 * 6, 8 * 10 * 6)
    assert len(set(lines)) > 50  # Not one gray.


def test_gan_with_more_epochs_resumes_and_run_again_says_that_it_had_finished(gan):
    folder, _ = gan
    run(folder, f"{GAN} --epochs 6")
    assert len(rows(folder / "runs/gan", "valid/distance")) == 6
    again = run(folder, f"{GAN} --epochs 6")
    assert "runs/gan had finished at step " in again.stderr
    assert again.stdout.splitlines()[-1] == f"what it draws: {folder / 'runs/gan/samples/epoch_0006.png'}"


def test_gan_trains_in_two_processes(tmp_path):
    run(tmp_path, f"{GAN} --epochs 1 --devices 2")
    assert len(rows(tmp_path / "runs/gan", "valid/distance")) == 1
    assert (tmp_path / "runs/gan/samples/epoch_0001.png").is_file()
