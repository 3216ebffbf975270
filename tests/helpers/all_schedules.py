"""Every scheduler of PyTorch and of the package, of about a given length."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim import lr_scheduler as torch_schedules

from helios_lite import schedules


def sequence(optimizer: Optimizer, length: int) -> Any:
    parts = [
        torch_schedules.LinearLR(optimizer, total_iters=length // 3),
        torch_schedules.CosineAnnealingLR(optimizer, length),
    ]
    return torch_schedules.SequentialLR(optimizer, parts, [length // 3])


def chain(optimizer: Optimizer, length: int) -> Any:
    parts = [torch_schedules.StepLR(optimizer, length // 3), torch_schedules.ExponentialLR(optimizer, 0.9)]
    return torch_schedules.ChainedScheduler(parts)


def one_cycle(optimizer: Optimizer, length: int) -> Any:
    return torch_schedules.OneCycleLR(optimizer, optimizer.param_groups[0]["lr"] * 2, total_steps=length + 1)


def cyclic(optimizer: Optimizer, length: int) -> Any:
    lr = optimizer.param_groups[0]["lr"]
    return torch_schedules.CyclicLR(optimizer, lr / 10, lr, step_size_up=length // 4, mode="triangular2")


SCHEDULES: dict[str, Callable[[Any, int], Any]] = {
    "none": lambda optimizer, length: None,
    "constant": lambda optimizer, length: torch_schedules.ConstantLR(optimizer, total_iters=length // 3),
    "linear": lambda optimizer, length: torch_schedules.LinearLR(optimizer, total_iters=length),
    "exponential": lambda optimizer, length: torch_schedules.ExponentialLR(optimizer, 1 - 1 / length),
    "step": lambda optimizer, length: torch_schedules.StepLR(optimizer, length // 3),
    "multistep": lambda optimizer, length: torch_schedules.MultiStepLR(optimizer, [length // 3, length // 2]),
    "cosine": lambda optimizer, length: torch_schedules.CosineAnnealingLR(optimizer, length),
    "restarts": lambda optimizer, length: torch_schedules.CosineAnnealingWarmRestarts(optimizer, length // 3),
    "polynomial": lambda optimizer, length: torch_schedules.PolynomialLR(optimizer, length),
    "lambda": lambda optimizer, length: torch_schedules.LambdaLR(optimizer, lambda step: 1 / (step + 1)),
    "multiplicative": lambda optimizer, length: torch_schedules.MultiplicativeLR(optimizer, lambda step: 0.9),
    "one cycle": one_cycle,
    "cyclic": cyclic,
    "sequence": sequence,
    "chain": chain,
    "our cosine": lambda optimizer, length: schedules.cosine(optimizer, 2, length),
    "our linear": lambda optimizer, length: schedules.linear(optimizer, 2, length),
    "our inverse root": lambda optimizer, length: schedules.inverse_sqrt(optimizer, length // 4),
    "our constant": lambda optimizer, length: schedules.constant(optimizer, 2, length, length // 4),
}
