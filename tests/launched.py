"""The training of helpers/troubled.py as a program, to be run by torchrun or to be stopped.

python tests/launched.py ROOT --devices 2
torchrun --nproc-per-node 2 tests/launched.py ROOT --test
"""

import argparse
import json
from pathlib import Path

import torch
from helpers import troubled
from helpers.troubled import Troubled, data, trainer

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--pace", type=float, default=0.0)
    parser.add_argument("--asleep", action="store_true", help="all ranks, in the third step")
    parser.add_argument("--trouble", help="a function of helpers/troubled.py for rank 1, in the third step")
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--resume", default="auto")
    parser.add_argument("--test", action="store_true", help="afterwards, and leave the metrics in ROOT/test.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trouble = "sleep" if arguments.asleep else arguments.trouble
    model = Troubled(
        arguments.root, trouble=trouble and getattr(troubled, trouble), asleep=arguments.asleep, pace=arguments.pace
    )
    datamodule = data(num_workers=arguments.num_workers)
    run = trainer(arguments.root, devices=arguments.devices, resume=arguments.resume)
    run.fit(model, datamodule)
    if arguments.test:
        metrics = run.test(model, datamodule, checkpoint="last")
        if model.global_rank == 0:
            (arguments.root / "test.json").write_text(json.dumps(metrics))
