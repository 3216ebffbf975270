"""The run folder of a training with `resume="new"`: the next free name, one for each, kept over restarts."""

import contextlib
import json
import logging
import os
import re
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers import scripts
from helpers.compare import same
from helpers.models import Tiny, data, quiet
from helpers.processes import TESTS, launched
from helpers.scenarios import Results, scenario
from helpers.scripts import DEADLINE
from helpers.troubled import Troubled, die_once
from helpers.troubled import data as troubled_data
from helpers.troubled import trainer as troubled_trainer

from helios_lite.checkpoints import run_folders
from helios_lite.processes.world import World

ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}


def fit_new(root: Path, model: Tiny | None = None, **options: Any) -> Any:
    options = {"root": root, "max_steps": 2, "resume": "new", **options}
    return quiet(**options).fit(model or Tiny(), data(train=40))


class Predicting(Tiny):
    def predict_step(self, batch: Any, step: int) -> Any:
        return self.net(batch[1])


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_each_training_has_a_folder_of_its_own_which_all_of_its_files_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    class Noting(Tiny):
        def on_training_start(self) -> None:
            seen.append(self.run_folder)

    caplog.set_level(logging.INFO)
    for number, name in enumerate(("tiny", "tiny-2", "tiny-3")):
        caplog.clear()
        result = fit_new(tmp_path, Noting(), print_banner=True)
        folder = tmp_path / name
        assert result.run_folder == seen[number] == folder
        assert result.state.step == 2
        assert result.last_checkpoint.parent == folder / "checkpoints"
        line = f'resume="new": this run is {folder}'
        assert caplog.text.count(line) == (folder / "train.log").read_text().count(line) == 1
        assert str(folder) in "".join(capsys.readouterr().out.split("\n"))
        config = json.loads((folder / "config.json").read_text())
        assert config["run_folder"] == str(folder)
        assert config["trainer"]["resume"] == "new"
    assert folders(tmp_path) == ["tiny", "tiny-2", "tiny-3"]


def test_later_calls_use_the_folder_of_the_model_and_with_another_model_the_newest(tmp_path: Path) -> None:
    trainer = quiet(root=tmp_path, max_steps=4, resume="new")
    models = {"tiny": Predicting(), "tiny-2": Predicting()}
    for steps, model in enumerate(models.values(), 2):
        fit_new(tmp_path, model, max_steps=steps)
    for model, name in [*zip(models.values(), models, strict=True), (Predicting(), "tiny-2")]:
        named = quiet(root=tmp_path, run_name=name)
        rows = {path: path.read_bytes() for path in tmp_path.glob("*/metrics.jsonl")}
        found = [trainer.validate(model, data()), trainer.test(model, data()), [*trainer.predict(model, data())]]
        assert [path.parent.name for path, content in rows.items() if path.read_bytes() != content] == [name]
        expected = [
            named.validate(Predicting(), data()),
            named.test(Predicting(), data()),
            [*named.predict(Predicting(), data())],
        ]
        assert same(found, expected)
        assert trainer.replay(model, data(train=40), 4).started_at == (2 if name == "tiny" else 3)
        assert trainer.replay(model, data(train=40), 1).started_at == 0
    assert folders(tmp_path) == ["tiny", "tiny-2"]
    other = Predicting()
    fit_new(tmp_path / "other", other)
    assert trainer.replay(other, data(train=40), 4).started_at == 3  # What it has claimed is under another root.


def test_the_number_is_the_next_after_the_highest_and_other_runs_do_not_count(tmp_path: Path) -> None:
    for name in ("a", "a-2024", "a-2", "a-x", "b-7"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    claimed = [run_folders.claim(tmp_path / "runs" / name, "me").name for name in "aaabb"]
    assert claimed == ["a-3", "a-4", "a-5", "b", "b-2"]
    (tmp_path / "runs/a-4/.claim").unlink()
    (tmp_path / "runs/a-4").rmdir()
    assert run_folders.newest(tmp_path / "runs/a").name == "a-5"
    assert run_folders.claim(tmp_path / "runs/a", "me").name == "a-6"
    assert run_folders.newest(tmp_path / "runs/c").name == "c"
    assert run_folders.claim(tmp_path / "more/sweep/c", "me") == tmp_path / "more/sweep/c"


def test_a_training_that_fails_before_it_begins_gives_its_folder_back(tmp_path: Path) -> None:
    model = Failing()
    with pytest.raises(KeyError, match="setup"):
        fit_new(tmp_path, model)
    assert folders(tmp_path) == []
    result = fit_new(tmp_path)
    with pytest.raises(KeyError, match="setup"):
        fit_new(tmp_path, model)
    assert folders(tmp_path) == ["tiny"]
    trainer = quiet(root=tmp_path, resume="new")
    assert trainer.test(model, data()) == quiet(root=tmp_path).test(Tiny(), data())
    assert result.last_checkpoint.exists()


class Failing(Tiny):
    """Cannot be trained."""

    def setup(self, fast_init: bool = False) -> None:
        if not fast_init:
            raise KeyError("setup")
        super().setup(fast_init)


def test_a_folder_stays_in_which_a_training_has_begun_or_there_are_files_of_others(tmp_path: Path) -> None:
    class FailsLater(Tiny):
        def train_step(self, batch: Any, state: Any) -> None:
            raise KeyError("step")

    class Leaves(Failing):
        def setup(self, fast_init: bool = False) -> None:
            (self.run_folder / "notes").touch()
            super().setup(fast_init)

    for model in (FailsLater(), Leaves()):
        with pytest.raises(KeyError):
            fit_new(tmp_path, model)
    assert folders(tmp_path) == ["tiny", "tiny-2"]
    assert "KeyError: 'step'" in (tmp_path / "tiny/train.log").read_text()
    assert (tmp_path / "tiny-2/notes").exists()


def test_nothing_is_claimed_by_a_training_without_files_and_by_other_calls(tmp_path: Path) -> None:
    fit_new(None)  # type: ignore[arg-type]
    fit_new(tmp_path, fast_dev_run=True)
    trainer = quiet(root=tmp_path, resume="new", max_steps=1)
    with pytest.raises(FileNotFoundError, match="there is no run to replay"):
        trainer.replay(Tiny(), data(), 1)
    assert folders(tmp_path) == []


def test_of_many_that_ask_at_once_each_gets_a_folder(tmp_path: Path) -> None:
    found: list[Path] = []
    barrier = threading.Barrier(8)

    def claim() -> None:
        for _ in range(20):
            barrier.wait()
            found.append(run_folders.claim(tmp_path / "run", "me"))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({*found}) == len(found) == 160


PROGRAM = """
import os, sys, time
from pathlib import Path
from helpers.models import Tiny, data, quiet
from helios_lite import DataModule

class Away(DataModule):
    def prepare_data(self):
        os.chdir("/")

if __name__ == "__main__":
    root, devices = Path(sys.argv[1]), int(sys.argv[2])
    trainer, model = quiet(root=root, max_steps=3, resume="new", devices=devices, accelerator="cpu"), Tiny()
    (root.parent / f"ready-{sys.argv[3]}").touch()
    while len([*root.parent.glob("ready-*")]) < 2:
        time.sleep(0.001)
    folder = os.getcwd()
    result = trainer.fit(model, Away(data(train=40).train))
    os.chdir(folder)
    trainer.test(model, data())
    print(result.run_folder.name, result.last_checkpoint.parents[1].name)
"""


@pytest.mark.parametrize("devices", [1, 2])
def test_two_programs_that_start_at_the_same_moment_have_two_folders(devices: int, tmp_path: Path) -> None:
    program = tmp_path / "train.py"
    program.write_text(PROGRAM)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [
        scripts.start(program, "runs", devices, number, cwd=tmp_path, env=ENVIRONMENT, **pipes) for number in range(2)
    ]
    printed = []
    for process in started:
        output, errors = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0, errors
        printed.append(output.split())
    assert sorted(printed) == [["tiny", "tiny"], ["tiny-2", "tiny-2"]]
    for name in ("tiny", "tiny-2"):
        rows = [json.loads(line) for line in (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        assert [row["kind"] for row in rows if "kind" in row].count("test") == 1
    assert folders(tmp_path / "runs") == ["tiny", "tiny-2"]


def test_launched_processes_use_the_folder_and_go_on_there_when_they_are_started_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = tmp_path / "runs"
    model = Troubled(tmp_path, trouble=die_once)
    trainer = troubled_trainer(runs, devices=2, max_restarts=1, resume="new", max_steps=6, save_every_steps=1)
    for name in ("tiny", "tiny-2"):
        result = trainer.fit(model, troubled_data())
        assert result.run_folder == runs / name
        assert result.state.step == 6
        assert f"INFO continuing {runs / name} at step " in (runs / name / "train.log").read_text()
        trainer.test(model, troubled_data())
        assert '"kind": "test"' in (runs / name / "metrics.jsonl").read_text()
    assert folders(runs) == ["tiny", "tiny-2"]


def test_a_program_without_a_main_guard_claims_one_folder_only(tmp_path: Path) -> None:
    program = tmp_path / "train.py"
    program.write_text(PROGRAM.replace('if __name__ == "__main__":', "if True:"))
    (tmp_path / "ready-other").touch()
    ended = scripts.run(program, tmp_path / "runs", 2, 0, check=False, env=ENVIRONMENT)
    assert "__main__" in ended.stderr
    assert folders(tmp_path / "runs") == []  # Nothing has begun.


def test_under_torchrun_one_rank_claims_and_a_restart_goes_on_there(tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    for name in ("tiny", "tiny-2"):
        process = launched(tmp_path, "--test", "--trouble", "die_once", "--resume", "new", by=torchrun)
        _, errors = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0, errors
        log = (tmp_path / name / "train.log").read_text()
        assert log.count(f'resume="new": this run is {tmp_path / name}') == 2
        assert "INFO continuing " in log
        assert '"kind": "test"' in (tmp_path / name / "metrics.jsonl").read_text()
    assert [path.name for path in sorted(tmp_path.iterdir()) if path.is_dir()] == ["tiny", "tiny-2"]


def test_a_job_that_is_queued_again_goes_on_in_its_own_folders(tmp_path: Path) -> None:
    """Two jobs of the same program, each with two trainings: what is newest of one is not what another has claimed."""

    def start(job: str, restarts: int, steps: int) -> list[str]:
        program = f"""
from helpers.models import Tiny, data, quiet
for _ in range(2):
    result = quiet(root={str(tmp_path)!r}, max_steps={steps}, resume="new").fit(Tiny(), data(train=40))
    print(result.run_folder.name, result.state.step)
"""
        env = {**ENVIRONMENT, "SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": str(restarts)}
        return scripts.run("-c", program, env=env).stdout.splitlines()

    assert start("7", 0, 2) == ["tiny 2", "tiny-2 2"]
    assert start("8", 0, 2) == ["tiny-3 2", "tiny-4 2"]
    assert start("7", 1, 4) == ["tiny 4", "tiny-2 4"]
    assert start("8", 1, 3) == ["tiny-3 3", "tiny-4 3"]
    assert start("9", 1, 1) == ["tiny-5 1", "tiny-6 1"]  # Nothing is left of its first start.
    log = (tmp_path / "tiny-2/train.log").read_text()
    assert re.search(r"continuing .*tiny-2 at step 2 of .*iter_2", log)


@scenario(ranks=2)
def folders_of_ranks(root: Path, world: World) -> list[Any]:
    """The second rank looks a moment later, when another program has claimed a newer folder."""
    mine = root / f"seen-by-{world.rank}"
    for _ in range(2 + world.rank):
        run_folders.claim(mine / "runs/tiny", "me")
    with contextlib.chdir(mine):
        quiet(root="runs", resume="new").validate(Seeing(), data(), checkpoint=None)
        return world.gather(SEEN)


SEEN: list[Path | None] = []


class Seeing(Tiny):
    def on_validation_start(self, validation_cycle: int) -> None:
        SEEN.append(self.run_folder)


def test_all_ranks_have_the_folder_that_is_the_newest_for_rank_0(tmp_path: Path) -> None:
    number_2 = [[tmp_path / f"seen-by-{rank}/runs/tiny-2"] for rank in range(2)]
    assert Results(__name__, tmp_path)(folders_of_ranks, ranks=2) == number_2
