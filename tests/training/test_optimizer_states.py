"""What optimizers keep is the same after a resume, whatever its data type is, and fits weights of another data type."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import same, saved
from helpers.models import Indices, Tiny, quiet
from helpers.optimizers import Precise
from torch import nn

from helios_lite import DataModule, Split
from helios_lite.callbacks import EMA


class Typed(Tiny):
    """A linear layer of some data type with some optimizer."""

    def __init__(self, dtype: torch.dtype, optimizer: Any) -> None:
        super().__init__()
        self.dtype, self.make_optimizer = dtype, optimizer

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Linear(3, 2).to(self.dtype))
        if not fast_init:
            self.optimizer = self.make_optimizer(self.net.parameters())

    def train_step(self, batch: Any, state: Any) -> None:
        self.backward((self.net(batch[1].to(self.dtype)).float() - 1).square().mean())
        self.optimizer_step(self.optimizer)


def averaging(parameters: Any) -> torch.optim.Optimizer:
    """ASGD, whose rates are fp32 numbers also beside fp64 parameters."""
    return torch.optim.ASGD(parameters, lr=0.05, lambd=0.1, t0=1)


def train(root: Path, steps: int, dtype: torch.dtype, optimizer: Any) -> Any:
    """The checkpoint, and what the optimizer holds, after training to a step."""
    model = Typed(dtype, optimizer)
    result = quiet(root=root, max_steps=steps, callbacks=[EMA(0.9)]).fit(
        model, DataModule(Split(Indices(20), batch_size=2))
    )
    return saved(result.run_folder, "model", "callbacks"), [*model.optimizer.state.values()]


@pytest.mark.parametrize(
    ("dtype", "optimizer"),
    [(torch.bfloat16, Precise), (torch.float32, Precise), (torch.float64, averaging)],
    ids=["fp32 beside bf16", "fp64 beside fp32", "fp32 beside fp64"],
)
def test_states_keep_their_data_types_and_their_bits(dtype: torch.dtype, optimizer: Any, tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 6, dtype, optimizer)
    for step in (1, 3, 6):
        resumed = train(tmp_path / "cut", step, dtype, optimizer)
    assert same(resumed, whole)


def test_states_follow_weights_that_have_another_data_type_now(tmp_path: Path) -> None:
    train(tmp_path, 2, torch.float32, torch.optim.AdamW)
    _, states = train(tmp_path, 4, torch.bfloat16, torch.optim.AdamW)
    assert {state["exp_avg"].dtype for state in states} == {torch.bfloat16}
    assert {state["step"].item() for state in states} == {4.0}
