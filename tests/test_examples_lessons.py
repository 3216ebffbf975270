"""The examples that teach one thing each, run as a user runs them but with little to do."""

import importlib.util
import math
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from helpers import scripts
from helpers.compare import same, weights
from helpers.models import quiet
from helpers.rows import read_rows

from helios_lite import DataModule, Split

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, folder, *arguments):
    return scripts.run(EXAMPLES / name, *arguments, cwd=folder, env={"COLUMNS": "80"}).stdout


def load(name):
    """Return an example as a module, without running it."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(EXAMPLES)  # As for a script there: an example imports what the examples share.
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tlm():
    return load("tlm")


@pytest.fixture(scope="module")
def finetune():
    return load("finetune")


@pytest.fixture(scope="module")
def translated(tmp_path_factory):
    """Return the folder in which the language model has been trained, and what it wrote."""
    folder = tmp_path_factory.mktemp("tlm")
    return folder, run("tlm.py", folder, "--epochs", "3", "--sentences", "1000", "--root", "out")


def test_numbers_have_the_names_that_both_languages_give_them(tlm):
    names = {n: ("".join(tlm.german(n)), " ".join(tlm.english(n))) for n in range(10_000)}
    assert names[0] == ("null", "zero")
    assert names[1] == ("eins", "one")
    assert names[17] == ("siebzehn", "seventeen")
    assert names[60] == ("sechzig", "sixty")
    assert names[101] == ("einhunderteins", "one hundred one")
    assert names[321] == ("dreihunderteinundzwanzig", "three hundred twenty one")
    assert names[1000] == ("eintausend", "one thousand")
    assert names[9812] == ("neuntausendachthundertzwölf", "nine thousand eight hundred twelve")
    assert len({german for german, _ in names.values()}) == len({english for _, english in names.values()}) == 10_000


def test_tlm_guesses_better_with_the_source_sentence(translated):
    _, output = translated
    found = re.findall(r"^  (with the English sentence|without) +(\S+) +(\S+)%", output, re.MULTILINE)
    (_, perplexity, accuracy), (_, perplexity_without, accuracy_without) = found
    assert float(perplexity) < 0.8 * float(perplexity_without)
    assert float(accuracy) > 5 + float(accuracy_without)
    assert all(len(line) <= 80 for line in output.splitlines() if "checkpoint:" not in line)


def test_the_perplexity_of_tlm_is_exactly_that_of_the_mean_loss_of_all_words(translated):
    folder, _ = translated
    for name in ("tlm-with-source", "tlm-without-source"):
        rows = read_rows(folder / "out" / name)
        validations = [row for row in rows if "valid/loss" in row]
        assert len(validations) == 3
        for row in validations:
            assert row["valid/perplexity"] == math.exp(row["valid/loss"])


def test_tlm_resumes_with_the_same_masks_bit_for_bit(tmp_path, tlm):
    def train(folder, **limit):
        sentences = tlm.Sentences(list(range(21, 121)))
        data = DataModule(train=Split(sentences, batch_size=10, shuffle=True, collate_fn=tlm.pad))
        model = tlm.TranslationLanguageModel(True, size=16, layers=1)
        quiet(root=tmp_path / folder, accumulation_steps=2, **limit).fit(model, data)
        return weights(model)

    whole = train("whole", max_epochs=2)
    for steps in (3, 7):
        train("parts", max_steps=steps)
    assert same(train("parts", max_epochs=2), whole)


def test_finetune_compares_three_ways_to_learn_from_few_examples(tmp_path):
    arguments = ("--epochs", "2", "--few-epochs", "8", "--draws", "1", "--shots", "10")
    output = run("finetune.py", tmp_path, *arguments, "--root", "out")
    found = re.findall(r"^  (from scratch|body of .*?)  +(\S+) +(\S+)% ± ", output, re.MULTILINE)
    assert [name for name, _, _ in found] == [
        "from scratch",
        "body of 0 to 4, trained further",
        "body of 0 to 4, frozen",
    ]
    trained = [int(number.replace(",", "")) for _, number, _ in found]
    assert trained[0] == trained[1] > 10 * trained[2]
    assert all(float(accuracy) > 50 for _, _, accuracy in found)  # What guessing gives: 20.
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["digits-0-to-4"]


def test_a_frozen_body_stays_as_it_is_in_the_checkpoint_bit_for_bit(tmp_path, finetune):
    first = finetune.FiveDigits("first")
    data = finetune.few_examples(5, seed=0)
    path = quiet(root=tmp_path, max_epochs=1).fit(first, data).last_checkpoint
    for frozen in (True, False):
        second = finetune.FiveDigits("second", frozen=frozen)
        quiet(seed=1, max_epochs=1, init_from=path, init_parts=["body"]).fit(second, data)
        pairs = zip(second.body.state_dict().values(), first.body.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) is frozen


def test_sweep_sorts_its_runs_and_tests_the_best(tmp_path):
    output = run("sweep.py", tmp_path, "--rates", "1e-5", "1e-2", "--widths", "8", "--epochs", "1")
    rows = re.findall(r"^ +(\S+) +8 +\S+ +\S+ +(0\.\d+) +\S+", output, re.MULTILINE)
    assert [rate for rate, _ in rows] == ["0.01", "1e-05"]
    assert float(rows[0][1]) > max(0.5, float(rows[1][1]))
    rate, accuracy = re.fullmatch(r"best: rate (\S+), width 8; test accuracy (\S+)", output.splitlines()[-1]).groups()
    assert rate == "0.01"
    assert float(accuracy) > 0.5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tlm.py", "finetune.py", "sweep.py"])
def test_an_example_explains_its_options(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    shown = capsys.readouterr().out
    assert f"python examples/{name}" in shown
    assert "--root" in shown
    assert "--seed" in shown
    assert re.search(r"seed of all random numbers.*\(default: 0\)", shown, re.DOTALL)


@pytest.mark.parametrize(("gpus", "accelerator"), [(0, "cpu"), (1, "cpu"), (2, "auto"), (8, "auto")])
def test_the_command_line_calls_main_with_its_options(monkeypatch, gpus, accelerator):
    def main(rate: float = 0.1, sizes: tuple[int, ...] = (1, 2), folder: str | None = None, **options) -> None:
        """Do nothing.

        Args:
            rate: a float
            sizes: several ints
            folder: a str
        """
        called.append({"rate": rate, "sizes": sizes, "folder": folder, **options})

    called = []
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: gpus)
    monkeypatch.setattr(sys, "argv", ["example.py", "--sizes", "3", "4", "--folder", "a", "--devices", "2"])
    load("command_line").run(main)
    common = {"root": "runs", "seed": 0, "devices": 2, "accelerator": accelerator}
    assert called == [{"rate": 0.1, "sizes": [3, 4], "folder": "a", **common}]
