"""One of two ranks that train on emulated devices: python tests/emulated_rank.py FOLDER

It prints what `test_emulated_device.py` expects, and ends in the error of ranks that have the same device.
"""

import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers.compare import same
from helpers.emulated import MODULE, emulate, recorded
from helpers.models import Tiny, data, quiet
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from helios_lite import DataModule, Model, Split
from helios_lite.networks.dtensors import full_tensor

X, Y = torch.linspace(-1, 1, 768).reshape(192, 4), torch.arange(192) % 4


class Tied(Model):
    """Two layers share their weight, which has an attribute. It notes what makes the host wait."""

    def __init__(self) -> None:
        super().__init__("tied")
        self.waits: list[Any] = []
        self.begun: dict[int, int] = {}  # How many waits there were when a step began.

    def setup(self, fast_init: bool = False) -> None:
        first, last = nn.Linear(4, 4), nn.Linear(4, 4)
        last.weight = first.weight
        first.weight.decays = False
        net = nn.Sequential(first, nn.ReLU(), nn.BatchNorm1d(4), last)
        self.net = self.parallelize(net, blocks=(nn.BatchNorm1d,))
        assert [vars(p).keys() - {"_is_param"} for p in self.net.parameters()] == [{"decays"}, *(set(),) * 4]
        decaying = [p for p in self.net.parameters() if getattr(p, "decays", True)]
        assert len(decaying) == len(list(self.net.parameters())) - 1 == 4
        groups = [{"params": decaying}, {"params": [self.net[0].weight], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)

    def train_step(self, batch: Any, state: Any) -> None:
        self.begun.setdefault(state.step + 1, len(self.waits))
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.backward(loss, len(y))
        self.optimizer_step(self.optimizer)
        self.log("loss", loss, count=len(y))

    def valid_step(self, batch: Any, step: int) -> None:
        x, y = batch
        self.log("accuracy", (self.net(x).argmax(1) == y).float().mean())


def trained(accelerator: str, strategy: str, root: Path | None = None, max_steps: int = 12, **options: Any) -> Tied:
    model = Tied()
    splits = (Split(TensorDataset(X, Y), batch_size=4, shuffle=shuffle) for shuffle in (True, False))
    with recorded() as model.waits:
        quiet(
            accelerator=accelerator,
            strategy=strategy,
            root=root,
            max_steps=max_steps,
            log_every_steps=6,
            sanity_batches=0,
            clip_norm=1.0,
            **options,
        ).fit(model, DataModule(*splits))
    return model


def whole(model: Tied) -> dict[str, Tensor]:
    return {name: full_tensor(value).cpu() for name, value in model.net.state_dict().items()}


def main(folder: Path) -> None:
    emulate()
    dist.Backend.register_backend("emuccl", dist.ProcessGroupGloo, devices=["emu"])
    rank = os.environ["RANK"]
    MODULE.get_device_properties = lambda device: types.SimpleNamespace(uuid=f"GPU-{rank}")
    for strategy in ("ddp", "fsdp"):
        model = trained("emu", strategy, accumulation_steps=2)
        trained("emu", strategy, folder / strategy, 5, accumulation_steps=2)
        resumed = trained("emu", strategy, folder / strategy, accumulation_steps=2)
        on_host = trained("cpu", strategy, accumulation_steps=2)
        found = {
            "devices": [p.device.type for p in model.net.parameters()] == ["emu"] * 5,
            "rows read": len(model.waits) > 0,
            "waits between rows": model.waits[model.begun[7] : model.begun[12]],
            "as on the CPU": same(whole(model), whole(on_host)),
            "as resumed": same(whole(model), whole(resumed)),
        }
        print(strategy, json.dumps(found), flush=True)
    print(dist.get_backend_config(), flush=True)
    MODULE.get_device_properties = lambda device: types.SimpleNamespace(uuid="GPU-1")
    quiet(max_steps=1, accelerator="emu").fit(Tiny(), data())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
