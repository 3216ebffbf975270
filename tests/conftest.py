"""Settings that all tests share."""

import torch

torch.set_num_threads(1)  # The models are tiny; threads would only wait for each other.
