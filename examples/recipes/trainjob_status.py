"""Post what a run is doing to Kubeflow's TrainJob: the percentage, the seconds left, the metrics.

    python examples/recipes/trainjob_status.py

In a TrainJob the variables are set. Elsewhere it posts to a server of its own, and prints what that got last.
docs/trainjob_status.md has more about it.
"""

import contextlib
import http.server
import json
import os
import ssl
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from helios_lite import DataModule, Model, Split, Trainer


def trainer_status(status):
    """Return what a TrainJob wants to know of a status.json; what is unknown is left out."""
    percentage = None if status["progress"] is None else int(100 * status["progress"])
    seconds = None if status["seconds_left"] is None else int(status["seconds_left"])
    metrics = {name: value for name, value in (status["metrics"] or {}).items() if value is not None}
    known = {
        "progressPercentage": percentage,
        "estimatedRemainingSeconds": seconds,
        "metrics": [{"name": name, "value": f"{value:.6g}"} for name, value in metrics.items()],
        "lastUpdatedTime": status["updated"],
    }
    return {"trainerStatus": {name: value for name, value in known.items() if value is not None}}


def send(payload):
    """Post a payload. The token is read each time, because it is replaced while the job runs."""
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get("KUBEFLOW_TRAINER_SERVER_TOKEN"):
        headers["Authorization"] = f"Bearer {Path(token).read_text().strip()}"
    url, certificate = os.environ["KUBEFLOW_TRAINER_SERVER_URL"], os.environ.get("KUBEFLOW_TRAINER_SERVER_CA_CERT")
    context = ssl.create_default_context(cafile=certificate) if url.startswith("https:") else None
    request = urllib.request.Request(url, json.dumps(payload).encode(), headers, method="POST")
    urllib.request.urlopen(request, timeout=10, context=context).close()


class StatusPoster:
    """Context in which a thread posts the status of a run whenever it has changed, at most every so many seconds."""

    def __init__(self, run_folder, seconds=5.0):
        self.path, self.seconds = Path(run_folder) / "status.json", seconds
        self.seen, self.done = self.read(), threading.Event()  # Of an earlier start, if there is one.
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.done.set()
        self.thread.join()

    def read(self):
        return json.loads(self.path.read_bytes()) if self.path.exists() else None

    def watch(self):
        last = -self.seconds
        while True:
            ends = self.done.is_set()
            with contextlib.suppress(Exception):  # Whatever fails here is no failure of the run.
                status = self.read()
                if status not in (None, self.seen):
                    time.sleep(max(0.0, last + self.seconds - time.monotonic()))
                    last = time.monotonic()
                    send(trainer_status(status))
                    self.seen = status
            if ends:
                return
            self.done.wait(self.seconds)


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


class Server(http.server.BaseHTTPRequestHandler):
    """Keeps what was posted last."""

    def do_POST(self):
        self.server.last = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.token = self.headers["Authorization"]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        pass


def train():
    x = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    data = DataModule(train=Split(TensorDataset(x), batch_size=4))
    trainer = Trainer(max_epochs=2, progress=False, log_level="quiet", print_banner=False)
    with StatusPoster("runs/sum"):
        trainer.fit(Sum("sum"), data)


if "KUBEFLOW_TRAINER_SERVER_URL" in os.environ:
    train()
else:
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server, tempfile.NamedTemporaryFile("w") as token:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        token.write("a token")
        token.flush()
        os.environ["KUBEFLOW_TRAINER_SERVER_URL"] = f"http://127.0.0.1:{server.server_port}"
        os.environ["KUBEFLOW_TRAINER_SERVER_TOKEN"] = token.name
        train()
        got = server.last["trainerStatus"]
        losses = [metric for metric in got["metrics"] if metric["name"] == "train/loss"]
        print(server.token, got["progressPercentage"], got["estimatedRemainingSeconds"], losses)
        server.shutdown()
        del os.environ["KUBEFLOW_TRAINER_SERVER_URL"], os.environ["KUBEFLOW_TRAINER_SERVER_TOKEN"]
