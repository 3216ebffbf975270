"""What a log and a notebook show of the objects that a user holds: one line each, and small tables."""

from collections import namedtuple
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.models import Indices, Plain, Stream, Tiny, data, quiet
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from helios_lite import DataModule, FitResult, Model, Split, TrainingState
from helios_lite.calls.replay_result import Replay, ReplayedBatch

METRICS = {"train/loss": 0.123456789, "train/step_seconds": 0.5, "train/data_wait": 0.1, "valid/accuracy": 0.9}


def result(**options):
    state = TrainingState(epoch=3, step=120, best_step=80, best_score=0.97, seconds=12.34)
    fields = {"best_checkpoint": Path("best.pth"), "last_checkpoint": Path("a<b>&.pth"), "stop_reason": "patience"}
    fields |= {"metrics": METRICS, "best_metrics": {**METRICS, "valid/accuracy": 0.97}, "monitor": "valid/accuracy"}
    return FitResult(**{"state": state, "run_folder": Path("runs/digits"), **fields, **options})


def replay():
    batch = {"batch": None, "losses": (0.5, 0.25), "weight": 3.0, "sample_losses": torch.tensor([1.0, 2.0])}
    batch |= {"why_no_sample_losses": "", "not_finite": ()}
    batches = tuple(ReplayedBatch(rank=rank, indices=torch.tensor([7, 9]), **batch) for rank in (0, 1))
    return Replay(
        step=5,
        epoch=2,
        started_at=3,
        batches=batches,
        learning_rates={"optimizer": 0.01},
        gradient_norms={"net.<b>.weight": 3.0, "net.1.weight": 4.0},
        logged={},
        first_not_finite="net.1 & its output",
    )


def test_a_result_is_one_line_that_says_how_the_run_ended_and_which_validation_was_best():
    line = "FitResult(stopped by patience at step 120, best valid/accuracy=0.97 at step 80, in runs/digits)"
    assert repr(result()) == str(result()) == line
    assert "best a + b=0.97 at step 80" in repr(result(monitor=("a", "b")))
    assert repr(result(monitor=None)) == line.replace("valid/accuracy=0.97 ", "")  # have_metrics_improved decides.
    bare = FitResult(TrainingState(step=3), METRICS, {}, None, None, "max_steps")
    assert repr(bare) == "FitResult(stopped by max_steps at step 3)"


def test_the_result_of_a_training_knows_the_monitor(tmp_path):
    found = quiet(max_epochs=2, root=tmp_path, monitor="valid/loss").fit(Tiny(), data())
    assert f"best valid/loss={found.state.best_score:.6g} at step {found.state.best_step}, in {tmp_path}" in repr(found)


def test_a_model_is_one_line_whatever_state_it_is_in():
    assert repr(Tiny()) == "Tiny('tiny', no networks yet)"
    model = Tiny()
    quiet(max_steps=1).fit(model, data())
    assert repr(model) == "Tiny('tiny', 41 parameters, cpu)"
    model.net[0].to("meta")
    assert repr(model) == "Tiny('tiny', 41 parameters, cpu, meta)"
    model.other = nn.LazyLinear(3)
    assert repr(model) == "Tiny('tiny', parameters without a shape yet)"

    class Forgetful(Model):
        def __init__(self): ...

        def setup(self, fast_init=False): ...

    assert repr(Forgetful()) == "Forgetful(no networks yet)"


def unequal(samples):
    return samples


def test_a_split_is_one_line_with_what_differs_from_the_defaults():
    assert repr(Split(Indices(1437), batch_size=64)) == "Split(Indices of 1,437 samples, batch_size=64)"
    split = Split(Indices(8), batch_size=2, shuffle=True, seed_samples=False, num_workers=2, collate_fn=unequal)
    options = "batch_size=2, shuffle=True, num_workers=2, collate_fn=unequal, seed_samples=False"
    assert repr(split) == f"Split(Indices of 8 samples, {options})"
    assert repr(Split(Stream(5), batch_size=2)) == "Split(Stream, batch_size=2)"
    assert repr(Split({"x": torch.ones(4)}, batch_size=2)) == "Split(dict of 4 samples, batch_size=2)"
    split = Split(Indices(4), batch_size=2, sampler=np.arange(3))  # Which cannot be compared with None.
    assert repr(split) == "Split(Indices of 4 samples, batch_size=2, sampler=ndarray)"
    split = Split(Indices(4), batch_sampler=[[0, 1], [2, 3]])
    assert repr(split) == "Split(Indices of 4 samples, batch_sampler=list)"


def test_a_datamodule_is_one_line_with_its_splits():
    assert repr(DataModule()) == "DataModule()"
    split, loader = Split(Indices(8), batch_size=2), DataLoader(TensorDataset(torch.ones(8)), batch_size=2)
    found = DataModule(train=split, valid={"clean": split, "noisy": loader}, test=iter("abc"))
    assert repr(found) == (
        f"DataModule(train={split!r}, valid={{'clean': {split!r}, 'noisy': DataLoader of 4 batches}}, "
        "test=str_ascii_iterator)"
    )

    class Downloaded(DataModule):
        valid = split

        @property
        def train(self):
            raise AssertionError("it has been read")

        def __init__(self): ...

    assert repr(Downloaded()) == f"Downloaded(train=property, valid={split!r})"


def test_a_replay_is_one_line_and_prints_a_table():
    found = replay()
    assert repr(found) == (
        "Replay(step 5 from step 3 on, loss 0.5, 0.25, 0.5, 0.25, first not finite: net.1 & its output)"
    )
    lines = [
        f"rank {rank}: loss 0.5, 0.25 (weight 3)\n  samples 7, 9\n  largest losses alone: samples 9 (2), 7 (1)"
        for rank in (0, 1)
    ]
    assert str(found).splitlines() == [
        "step 5 in epoch 2, replayed from step 3 on",
        *"\n".join(lines).splitlines(),
        "learning rate optimizer: 0.01",
        "gradient norm 5 (largest: net.1.weight 4, net.<b>.weight 3)",
        "first not finite: net.1 & its output",
    ]


Page = namedtuple("Page", "lines rows tags")


class Reader(HTMLParser):
    """Reads lines, the cells of rows, and every tag with its attributes. Each tag must be closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.lines, self.rows, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += text
        else:
            assert self.open[-1] == "div"
            self.lines.append(text)


def test_a_notebook_shows_the_result_as_a_small_table():
    page = Reader(result()._repr_html_())
    assert page.rows == [
        ["metric", "last", "best (step 80)"],
        ["train/loss", "0.123457", ""],
        ["valid/accuracy", "0.9", "0.97"],
    ]
    assert page.lines == [
        "stopped by patience: 3 epochs, 120 steps, 12.3 s",
        "best checkpoint: best.pth",
        "last checkpoint: a<b>&.pth",
    ]
    bare = Reader(FitResult(TrainingState(step=3), METRICS, {}, None, None, "max_steps")._repr_html_())
    assert bare.rows == [["metric", "last"], ["train/loss", "0.123457"], ["valid/accuracy", "0.9"]]
    assert bare.lines == ["stopped by max_steps: 0 epochs, 3 steps, 0.0 s"]
    means = {"train/loss": 0.1, "train/loss/epoch": 0.5}  # As in the table that a terminal shows.
    page = Reader(FitResult(TrainingState(), means, {}, None, None, "max_steps")._repr_html_())
    assert (page.rows[1:], page.lines[1:]) == ([["train/loss", "0.5"]], ["train/...: means over the last epoch"])


def test_a_notebook_shows_a_replay_as_a_small_table():
    page = Reader(replay()._repr_html_())
    assert page.lines == ["step 5 in epoch 2, replayed from step 3 on"]
    assert page.rows[:3] == [
        ["rank 0: loss", "0.5, 0.25 (weight 3)"],
        ["samples", "7, 9"],
        ["largest losses alone", "samples 9 (2), 7 (1)"],
    ]
    assert page.rows[-2:] == [
        ["gradient norm", "5 (largest: net.1.weight 4, net.<b>.weight 3)"],
        ["first not finite", "net.1 & its output"],
    ]


@pytest.mark.parametrize("shown", [result(), replay()], ids=["result", "replay"])
def test_what_a_notebook_shows_has_no_colors_and_loads_nothing(shown):
    tags = Reader(shown._repr_html_()).tags
    assert {tag for tag, _ in tags} <= {"div", "table", "thead", "tbody", "tr", "th", "td"}
    styles = {style for _, attributes in tags for style in attributes.values()}
    assert {name for _, attributes in tags for name in attributes} == {"style"}
    assert styles <= {"text-align: left", "text-align: right"}


def test_a_replay_and_a_result_of_real_runs_are_shown(tmp_path):
    trainer = quiet(max_steps=3, root=tmp_path, monitor="valid/loss")
    found = trainer.fit(Plain(), data())
    again = trainer.replay(Plain(), data(), 2)
    for each in (found, again):
        assert "\n" not in repr(each)
        assert len(repr(each)) < 200 + len(str(tmp_path))
        Reader(each._repr_html_())
