"""Libraries that a contributor need not install, with small data; `.ci/ecosystem` installs them and runs this."""

import functools
import itertools
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
import functools, json, os, signal, threading, time
from pathlib import Path
import ray, ray.train, torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch import nn
from helios_lite import Callback, DataModule, Model, Split
from helpers.models import Indices, Tiny, data, quiet

HERE, OPTIONS = Path(os.environ["HERE"]), {"accelerator": "cpu"}
WORKERS = {"env_vars": {name: os.environ[name] for name in ("PYTHONPATH", "HERE")}}

def Trainer(**options):
    torch.set_num_threads(1)
    return quiet(**options | OPTIONS)
"""

KILLED = """
class Reported(ray.train.UserCallback):
    def after_report(self, run_context, metrics, checkpoint):
        with open(HERE / "reported.jsonl", "a") as file:
            file.write(json.dumps(metrics) + "\\n")

class Sum(Tiny):
    def on_training_batch_end(self, state, should_log=False):
        if state.step == 4 and self.global_rank == 1 and (HERE / "flag").exists():
            (HERE / "flag").unlink()
            os.kill(os.getpid(), signal.SIGKILL)

def make_data():
    return data(train=16)

if __name__ == "__main__":
    Trainer(root=HERE / "whole", max_epochs=3, save_every_steps=2, devices=2).fit(Sum("sum"), make_data())
    (HERE / "flag").touch()
    ray.init("local", num_cpus=2, include_dashboard=False, runtime_env=WORKERS)
    RunConfig = functools.partial(RunConfig, callbacks=[Reported()])
"""

ELASTIC = """
OPTIONS |= {"max_epochs": 10**6, "save_every_steps": None, "save_every_epochs": None, "log_every_steps": 1}
OPTIONS |= {"keep_last": -1}
STEPS = 20  # Of the last worker.

def saved(root):
    return sorted(int(path.stem.split("_iter_")[1]) for path in (root / "sum/checkpoints").glob("*.pth"))

def notes(root):
    return (root / "notes").read_text().splitlines() if (root / "notes").exists() else []

class Sum(Model):
    def setup(self, fast_init=False):
        self.net = self.parallelize(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)

    def train_step(self, batch, state):
        index, x = batch
        root = self.run_folder.parent
        if root.name == "shared":
            self.wait(state.step, root)
        samples = sorted(i for part in self.gather(index.tolist()) for i in part)
        if self.global_rank == 0:
            with open(root / "notes", "a") as file:
                file.write(json.dumps([self.world_size, state.step + 1, samples]) + "\\n")
        self.backward((self.net(x) - 1).square().mean())
        self.optimizer_step(self.optimizer)

    def wait(self, step, root):
        # One worker saves and waits for another; they wait for the save that they ask for, and then for their end.
        if self.world_size == 1 and step == 2:
            self.request_save()
        while len(saved(root)) == self.world_size and step > 2:
            time.sleep(0.05)
        if self.world_size == 2:
            time.sleep(0.1)
        elif len(saved(root)) > 1 and step == saved(root)[1] + STEPS:
            self.request_stop()

def make_data():
    return DataModule(train=Split(Indices(44), global_batch_size=8, shuffle=True))

def until(condition):
    while not condition():
        time.sleep(0.05)

def a_node_comes_and_goes(cluster, root):
    try:
        until(lambda: saved(root))
        node = cluster.add_node(num_cpus=1)
        until(lambda: any(line.startswith("[2,") for line in notes(root)))
        client, deadline = ray._raylet.GcsClient(address=cluster.address), int(1000 * time.time()) + 60_000
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        is_accepted, why_not = client.drain_node(node.node_id, reason, "it is the test", deadline)
        assert is_accepted, why_not
        until(lambda: len(saved(root)) > 1)
        cluster.remove_node(node)
    except BaseException:
        traceback.print_exc()
        os._exit(1)

if __name__ == "__main__":
    import atexit, traceback
    from ray.cluster_utils import Cluster
    from ray.core.generated import autoscaler_pb2
    ScalingConfig = functools.partial(ScalingConfig, elastic_resize_monitor_interval_s=1)
    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)  # A thread adds to it.
    atexit.register(lambda: (ray.shutdown(), cluster.shutdown()))  # It ends no node that this process is connected to.
    ray.init(address=cluster.address, runtime_env=WORKERS)
    threading.Thread(target=a_node_comes_and_goes, args=(cluster, HERE / "shared"), daemon=True).start()
"""

ALONE = """
    OPTIONS["max_steps"] = max(saved(HERE / "shared"))
    Trainer(root=HERE / "alone").fit(Sum("sum"), make_data())
"""


def run_in_ray(here: Path, before: str, num_workers: str = "2", after: str = "") -> None:
    """Run the program of docs/engines.md, with what it leaves to the reader before it."""
    callbacks, program = (code for code, _ in blocks((DOCS / "engines.md").read_text(), "py"))
    program = program.replace("/mnt/shared/runs", f"{here}/shared").replace("=2)", f"={num_workers})")
    (here / "program.py").write_text(
        RAY + before.replace("\nif __name__", f"\n{callbacks}\nif __name__") + program + after
    )
    paths = f"{Path(__file__).parent}:{Path(__file__).parents[1]}"
    of_ray = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5"}
    environment = {**os.environ, **of_ray, "PYTHONPATH": paths, "HERE": str(here), "HOME": str(here)}
    subprocess.run([sys.executable, "program.py"], cwd=here, env=environment, check=True, timeout=550)


def test_the_program_of_the_page_in_two_workers_of_ray_one_of_them_killed_ends_with_the_same_bits(
    tmp_path: Path,
) -> None:
    pytest.importorskip("ray.train")
    run_in_ray(tmp_path, KILLED)
    assert not (tmp_path / "flag").exists()
    whole, killed = newest(tmp_path / "whole"), newest(tmp_path / "shared")
    assert whole["state"]["step"] == 6
    for part in ("state", "model", "monitor", "metrics", "ranks"):
        assert same(timeless(whole[part]), timeless(killed[part])), part
    reported = [json.loads(line) for line in (tmp_path / "reported.jsonl").read_text().splitlines()]
    losses = [row["valid/loss"] for row in read_rows(tmp_path / "whole/sum") if "valid/loss" in row]
    found = {metrics["valid/loss"] for ranks in reported for metrics in ranks}
    assert {losses[-1]} <= found <= set(losses)  # What was reported right before the kill may not have arrived.
    assert {len(ranks) for ranks in reported} == {2}


def test_workers_of_ray_that_come_and_are_preempted_change_no_update_and_the_notice_is_a_save(tmp_path: Path) -> None:
    pytest.importorskip("ray.train")
    run_in_ray(tmp_path, ELASTIC, "(1, 2)", ALONE)
    starts = [  # Each a number of workers, and their steps.
        (workers, {step: samples for _, step, samples in lines})
        for workers, lines in itertools.groupby(notes(tmp_path / "shared"), key=lambda note: note[0])
    ]
    assert [workers for workers, _ in starts] == [1, 2, 1]
    _, asked, last = (number(path) for path in sorted((tmp_path / "shared/sum/checkpoints").glob("*.pth"), key=number))
    assert min(starts[2][1]) == asked + 1 < last
    assert {**starts[0][1], **starts[1][1], **starts[2][1]} == {
        step: samples for _, step, samples in notes(tmp_path / "alone")
    }
    found, expected = newest(tmp_path / "shared")["model"], newest(tmp_path / "alone")["model"]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def number(path: Path) -> int:
    return int(path.stem.split("_iter_")[1])


def newest(root: Path) -> dict[str, Any]:
    return torch.load(max((root / "sum/checkpoints").glob("*.pth"), key=number), weights_only=True)


def notes(root: Path) -> list[tuple[int, int, list[int]]]:
    """Return of each step the number of workers, the step and the samples."""
    return [tuple(json.loads(line)) for line in (root / "notes").read_text().splitlines()]


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
