"""Copy checkpoints to another place while a run goes on, and go on from there on an empty disk.

    python examples/recipes/uploads.py

docs/uploads.md has more about it.
"""

import json
import logging
import shutil
import tempfile
import time
from pathlib import Path

import torch
from fsspec.core import url_to_fs
from torch import nn
from torch.utils.data import TensorDataset

from helios_lite import Callback, DataModule, Model, Split, Trainer


class Uploads(Callback):
    """Keeps a copy of a run folder, as it was at the last save, at an address such as "s3://bucket/sum"."""

    def __init__(self, run_folder, address, attempts=3, pause=1.0):
        self.folder, self.address = Path(run_folder).absolute(), address
        self.attempts, self.pause = attempts, pause  # The pause, in seconds, doubles after each attempt.
        self.fs, self.root = url_to_fs(address)
        self.unsent = set()  # Names of checkpoints that were written by this run and not copied yet.

    def on_checkpoint_saved(self, path, is_best):
        self.unsent.add(path.name)
        for attempt in range(self.attempts):
            try:
                self.send()
                return
            except Exception as error:  # Whatever fails here is no failure of the run.
                failure = error
            if attempt + 1 < self.attempts:
                time.sleep(self.pause * 2**attempt)
        logging.getLogger("helios_lite.uploads").warning(
            "%s was not copied to %s (%d attempts, %r); the next save tries again",
            path.name, self.address, self.attempts, failure,
        )  # fmt: skip

    def send(self):
        """Copy what is new, then the manifest, which so names whole checkpoints only; delete what it does not name."""
        local, target = self.folder / "checkpoints", f"{self.root}/checkpoints"
        manifest = (local / "manifest.json").read_bytes()
        self.fs.invalidate_cache()
        sizes = {name: info["size"] for name, info in self.fs.find(target, detail=True).items()}
        for name in names_in(manifest):
            for file in [path for path in (local / name, *(local / name).rglob("*")) if path.is_file()]:
                to = f"{target}/{file.relative_to(local).as_posix()}"
                if name in self.unsent or sizes.get(to) != file.stat().st_size:
                    self.put(file, to)
            self.unsent.discard(name)
        for file in (self.folder / "config.json", self.folder / "metrics.jsonl"):
            if file.exists():
                self.put(file.read_bytes(), f"{self.root}/{file.name}")  # At once: rows may be added meanwhile.
        self.put(manifest, f"{target}/manifest.json.new")
        self.fs.mv(f"{target}/manifest.json.new", f"{target}/manifest.json")
        kept = {*names_in(manifest), "manifest.json"}
        for name in {path.removeprefix(f"{target}/").split("/")[0] for path in sizes} - kept:
            self.fs.rm(f"{target}/{name}", recursive=True)

    def put(self, source, to):
        self.fs.makedirs(to.rpartition("/")[0], exist_ok=True)
        if isinstance(source, bytes):
            self.fs.pipe_file(to, source)
        else:
            self.fs.put_file(str(source), to)

    def fetch(self):
        """Fill the run folder if it has no checkpoint. Every failure is an error: the run would begin again."""
        local, source = self.folder / "checkpoints", f"{self.root}/checkpoints"
        if any(local.glob("*_iter_*")):
            return
        try:
            manifest = self.fs.cat_file(f"{source}/manifest.json")
        except FileNotFoundError:  # Nothing was saved yet.
            return
        local.mkdir(parents=True, exist_ok=True)
        names = ["config.json", "metrics.jsonl", "checkpoints/manifest.json"]
        names += [f"checkpoints/{name}" for name in names_in(manifest)]  # The newest comes last.
        with tempfile.TemporaryDirectory(dir=local.parent) as fetched:
            for name in names:
                for path in self.fs.find(f"{self.root}/{name}"):
                    to = Path(fetched, path.removeprefix(f"{self.root}/"))
                    to.parent.mkdir(parents=True, exist_ok=True)
                    self.fs.get_file(path, str(to))
            for name in names:
                if Path(fetched, name).exists():
                    Path(fetched, name).replace(self.folder / name)


def names_in(manifest):
    return [entry["file"] for entries in json.loads(manifest).values() for entry in entries]


class Data(DataModule):
    def __init__(self, uploads):
        x = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
        super().__init__(train=Split(TensorDataset(x), batch_size=4, shuffle=True))
        self.uploads = uploads

    def prepare_data(self):
        self.uploads.fetch()


class Sum(Model):
    def setup(self, fast_init=False):
        self.net = self.parallelize(nn.Linear(3, 1))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

    def train_step(self, batch, state):
        (x,) = batch
        loss = (self.net(x) - x.sum(1, keepdim=True)).square().mean()
        self.backward(loss)
        self.optimizer_step(self.optimizer)
        self.log("loss", loss)


if __name__ == "__main__":
    for name, starts in (("whole", [3]), ("lost", [2, 3])):
        for epochs in starts:
            shutil.rmtree(f"runs/{name}", ignore_errors=True)  # Each start finds an empty disk.
            uploads = Uploads(f"runs/{name}", f"memory://bucket/{name}")
            trainer = Trainer(run_name=name, max_epochs=epochs, callbacks=[uploads], progress=False, log_level="quiet")
            result = trainer.fit(Sum("sum"), Data(uploads))
            loss, rows = result.history[-1]["train/loss"], len(result.history)
            print(f"{name} up to epoch {epochs}: loss {loss:.6f}, {rows} rows")
