"""Libraries that a contributor need not install, with small data; `.ci/ecosystem` installs them and runs this."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import same, timeless
from helpers.models import Tiny, data, quiet
from helpers.pages import blocks
from helpers.rows import read_rows

from helios_lite import DataModule, FitResult, Split

pytestmark = [pytest.mark.ecosystem, pytest.mark.filterwarnings("default")]  # Of others.

DOCS = Path(__file__).parents[1] / "docs"

RAY = """
import json, os, signal, sys
from pathlib import Path
import ray.train, torch
from helios_lite import Callback
from helpers.models import Tiny, data, quiet

class ReportToRay(Callback):
    def on_validation_metrics(self, metrics):
        ray.train.report(metrics)

class Killed(Callback):
    def on_training_batch_end(self, state, should_log=False):
        flag = Path(os.environ["KILL"])
        if state.step == 4 and self.model.global_rank == 1 and flag.exists():
            flag.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

class Reported(ray.train.UserCallback):
    def after_report(self, run_context, metrics, checkpoint):
        with open(os.environ["KILL"] + ".jsonl", "a") as file:
            file.write(json.dumps(metrics) + "\\n")

def train(config, *more, **options):
    options |= {"root": config["root"], "max_epochs": 3, "save_every_steps": 1, "accelerator": "cpu"}
    quiet(callbacks=[Killed(), *more], **options).fit(Tiny(), data(train=16))

def train_in_ray(config):
    torch.set_num_threads(1)
    train(config, ReportToRay())

if __name__ == "__main__":
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    here = Path.cwd()
    torch.set_num_threads(1)
    os.environ["KILL"] = str(here / "flag")
    train({"root": str(here / "whole")}, devices=2)
    (here / "flag").touch()
    environment = {name: os.environ[name] for name in ("PYTHONPATH", "KILL")}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": environment})
    failures = FailureConfig(max_failures=2)
    TorchTrainer(
        train_in_ray,
        train_loop_config={"root": str(here / "killed")},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=str(here / "ray"), failure_config=failures, callbacks=[Reported()]),
    ).fit()
"""


def test_a_program_in_two_workers_of_ray_of_which_one_is_killed_ends_with_the_same_bits(tmp_path: Path) -> None:
    pytest.importorskip("ray.train")
    (tmp_path / "program.py").write_text(RAY)
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}"}
    subprocess.run([sys.executable, "program.py"], cwd=tmp_path, env={**os.environ, **environment}, check=True)
    assert not (tmp_path / "flag").exists()
    whole, killed = (
        torch.load(max((tmp_path / name / "tiny/checkpoints").glob("*_iter_6.pth")), weights_only=True)
        for name in ("whole", "killed")
    )
    for part in ("state", "model", "monitor", "metrics", "ranks"):
        assert same(timeless(whole[part]), timeless(killed[part])), part
    reported = [json.loads(line) for line in (tmp_path / "flag.jsonl").read_text().splitlines()]
    losses = [row["valid/loss"] for row in read_rows(tmp_path / "whole/tiny") if "valid/loss" in row]
    found = {metrics["valid/loss"] for ranks in reported for metrics in ranks}
    assert {losses[-1]} <= found <= set(losses)  # What was reported right before the kill may not have arrived.
    assert {len(ranks) for ranks in reported} == {2}


def test_the_schedule_free_optimizer_and_metrics_of_torcheval_and_torchmetrics_go_on_with_the_same_bits(
    tmp_path: Path,
) -> None:
    schedulefree, torcheval = pytest.importorskip("schedulefree"), pytest.importorskip("torcheval.metrics")
    torchmetrics = pytest.importorskip("torchmetrics")

    class Averaged(Tiny):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.optimizer = schedulefree.AdamWScheduleFree(self.net.parameters(), lr=0.01)
            self.scheduler = None
            self.mean, self.error = torcheval.Mean(), torchmetrics.MeanSquaredError()

        def valid_step(self, batch: Any, step: int) -> None:
            super().valid_step(batch, step)
            output = self.net(batch[1])
            self.mean.update(output)
            self.error.update(output, torch.ones_like(output))
            self.log("mean", self.mean)
            self.log("error", self.error)

    whole, result = trained(Averaged, tmp_path / "whole", 8)
    trained(Averaged, tmp_path / "cut", 5)
    cut, resumed = trained(Averaged, tmp_path / "cut", 8)
    assert same(whole.state_dict(), cut.state_dict())
    values = {name: value for name, value in result.metrics.items() if name.startswith("valid/")}
    assert values.keys() == {"valid/loss", "valid/mean", "valid/error"}
    assert values["valid/error"] == pytest.approx(values["valid/loss"])
    assert values == {name: value for name, value in resumed.metrics.items() if name.startswith("valid/")}
    # What was validated is what is tested: the weights that the optimizer evaluates, and not those that it trains.
    tested = quiet(root=tmp_path / "whole").test(Averaged(), data(valid=5), checkpoint="last")
    assert tested["test/error"] == pytest.approx(values["valid/error"])


class Reads(Tiny):
    """Takes samples in the form of each library."""

    def train_step(self, batch: Any, state: Any) -> None:
        x, index = (batch["x"], batch["index"]) if isinstance(batch, dict) else batch
        super().train_step((index, x), state)


ROWS = {"index": list(range(12)), "x": [[i % 7 / 7, i % 3 / 7, 1 / 7] for i in range(12)]}


def test_datasets_of_hugging_face_indexed_or_streamed_go_on_with_the_same_bits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    indexed = datasets.Dataset.from_dict(ROWS).with_format("torch")
    require_same_when_cut(lambda: Split(indexed, batch_size=2, shuffle=True), tmp_path / "indexed")

    def streamed() -> Split:  # It has a state, and shuffles its shards by the epoch.
        return Split(indexed.to_iterable_dataset(num_shards=6).shuffle(seed=3, buffer_size=1), batch_size=2)

    require_same_when_cut(streamed, tmp_path / "streamed")


def test_shards_of_webdataset_come_in_the_order_of_the_epoch_and_go_on_with_the_same_bits(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    numpy = pytest.importorskip("numpy")
    paths = [str(tmp_path / f"{i}.tar") for i in range(4)]
    for i, path in enumerate(paths):
        with webdataset.TarWriter(path) as shard:
            for index in range(3 * i, 3 * i + 3):
                x = numpy.array(ROWS["x"][index], numpy.float32)
                shard.write({"__key__": f"{index}", "x.npy": x, "y.cls": index})
    program: dict[str, Any] = {}
    exec(next(code for code, _ in blocks((DOCS / "loaders.md").read_text(), "py") if "webdataset" in code), program)
    for num_workers in (0, 2):
        split = functools.partial(Split, program["Shards"](paths), batch_size=2, num_workers=num_workers)
        require_same_when_cut(split, tmp_path / f"{num_workers} workers")


def require_same_when_cut(make_split: Callable[[], Split], root: Path) -> None:
    """Require that a training is the same if it is stopped within its second epoch.

    Each epoch has all samples, in another order.
    """
    models, seen = [], []
    for name, limits in (("whole", [12]), ("cut", [8, 12])):
        samples: list[int] = []
        for steps in limits:
            model = Reads()
            quiet(root=root / name, max_steps=steps).fit(model, DataModule(train=make_split()))
            samples += model.seen
        models.append(model)
        seen.append(samples)
    assert seen[0] == seen[1]
    assert same(models[0].state_dict(), models[1].state_dict())
    first, second = seen[0][:12], seen[0][12:]
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def trained(kind: type[Tiny], root: Path, max_steps: int) -> tuple[Tiny, FitResult]:
    model = kind()
    return model, quiet(root=root, max_steps=max_steps).fit(model, data())
