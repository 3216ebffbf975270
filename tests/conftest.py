import os

import torch

# Networks this small only wait for their threads, here and in the programs that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
