"""What is said when the memory of a device is used up."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import Tiny, data, quiet


class Large(Tiny):
    def __init__(self, fails_in: str) -> None:
        super().__init__()
        self.fails_in = fails_in

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        if self.fails_in == "train_step" and state.step == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def valid_step(self, batch: Any, step: int) -> None:
        if self.fails_in == "valid_step":
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("fails_in", "words"),
    [
        ("train_step", "in step 2, by 4 samples: 0 (4,), 1 (4, 3)."),
        ("valid_step", "in valid_step, by 4 samples: 0 (4,), 1 (4, 3)."),
    ],
)
def test_an_error_of_used_up_memory_says_which_batch_it_was_and_what_needs_less(
    fails_in: str, words: str, tmp_path: Path
) -> None:
    model = Large(fails_in)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        quiet(max_epochs=1, root=tmp_path).fit(model, data())
    (note,) = raised.value.__notes__
    assert words in note
    assert "batch_size" in note
    assert ("replay(model, datamodule, step=2)" in note) == (fails_in == "train_step")
