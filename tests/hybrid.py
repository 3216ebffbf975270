"""Trainings of helpers/sharded.py with strategy="hsdp", to be run by torchrun on two machines or on two agents of one.

torchrun --nnodes 2 --nproc-per-node 2 --rdzv-endpoint localhost:29400 tests/hybrid.py ROOT CHECKPOINT
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from helpers.compare import weights
from helpers.sharded import Deep, fit

STEPS: dict[str, Any] = {"max_epochs": None, "max_steps": 8, "valid_every_steps": 4}


def trained(root: Path | None, **options: Any) -> dict[str, Any]:
    """What a training leaves, from rank 0: its weights, its metrics, and how a weight lies on the mesh."""
    model = Deep()
    metrics = fit(model, 22, batch_size=2, strategy="hsdp", root=root, **{**STEPS, **options})
    weight = model.net.last.weight
    mesh = weight.device_mesh
    return {
        "weights": weights(model),
        "loss": metrics["valid/loss"],
        "mesh": (mesh.mesh.tolist(), [str(placement) for placement in weight.placements]),
        "is_main": model.global_rank == 0,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("checkpoint", type=Path, help="of one process after four steps")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    first = trained(arguments.root / "own", max_steps=4)
    found = [first, trained(arguments.root / "own"), trained(None, resume=arguments.checkpoint)]
    found.append(trained(None, accumulation_steps=2))
    if first["is_main"]:
        torch.save(found, arguments.root / "found.pt")
