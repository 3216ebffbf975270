"""The training of helpers/resumable.py as a program, to be stopped from outside.

    python tests/longrun.py ROOT --max-epochs 3 --num-workers 2

It prints a line for every step, so that whoever watches can choose the moment.
"""

import argparse
from pathlib import Path

import torch
from helpers.optimizers import OPTIMIZERS
from helpers.resumable import Rich, data, trainer

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--max-epochs", type=int, default=3)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--save-every-steps", type=int, default=1)
    parser.add_argument("--ballast", type=int, default=0)
    parser.add_argument("--pace", type=float, default=0.0)
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp", help="fsdp: with two processes")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="AdamW", help="of the first network")
    arguments = parser.parse_args()
    arguments.root.mkdir(exist_ok=True)
    torch.utils.data._utils.worker.MP_STATUS_CHECK_INTERVAL = (
        1000.0  # How often PyTorch looks whether the parent lives.
    )
    torch.set_num_threads(1)
    sharded = arguments.strategy == "fsdp"
    options = {"max_epochs": arguments.max_epochs, "save_every_steps": arguments.save_every_steps}
    if sharded:
        options |= {"strategy": "fsdp", "devices": 2, "accelerator": "cpu"}
    model = Rich(arguments.root / "indices", arguments.ballast, arguments.pace, sharded, arguments.optimizer)
    trainer(arguments.root, talk=True, **options).fit(model, data(arguments.num_workers))
    print("finished", flush=True)
