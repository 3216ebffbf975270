"""What the compiler has made, kept in the run folder for the next start."""

import logging
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import Indices, Tiny, quiet
from torch import nn
from torch._dynamo.utils import counters

from helios_lite import DataModule, Split


class Product(nn.Module):
    """Needs the compiler, and no kernel that must be built."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1, bias=False)

    def forward(self, x: Any) -> Any:
        return self.linear(x)


class Compiled(Tiny):
    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.net = self.parallelize(Product())
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.scheduler = None


# PyTorch warns of its own code.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute:UserWarning")
def test_a_restart_takes_what_the_first_start_has_compiled_and_no_file_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(on: str, max_steps: int, user: str = "me") -> tuple[int, int]:
        """Train on a machine whose own cache is empty; return how much was compiled, and how much found."""
        torch.compiler.reset()
        counters.clear()
        caplog.clear()
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / on))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / user))
        data = DataModule(train=Split(Indices(12), batch_size=2))
        quiet(root=tmp_path, max_steps=max_steps, compile=True).fit(Compiled(), data)
        return counters["inductor"]["fxgraph_cache_miss"], counters["inductor"]["fxgraph_cache_hit"]

    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

    file = tmp_path / "tiny/compiled/cpu"
    not_used = (
        f"{file}: is not used (it is damaged, or not of this user, these versions and this device); "
        "networks are compiled again"
    )
    compiled, found = start("first", 1)
    assert (compiled > 0, found) == (True, 0)
    kept = file.read_bytes()
    assert (tmp_path / "me/helios_lite").stat().st_mode & 0o077 == 0
    assert start("second", 2) == (0, compiled)
    assert said() == []
    assert file.read_bytes() == kept
    for damaged in (kept[:-1] + bytes([kept[-1] ^ 1]), kept[:40], b""):
        file.write_bytes(damaged)
        start("third", 2)  # It had finished.
        assert said() == [not_used]
    file.write_bytes(kept)
    start("third", 2, user="another")
    assert said() == [not_used]
    with monkeypatch.context() as other:
        other.setattr(platform, "machine", lambda: "another")
        start("third", 2)
    assert said() == [not_used]
    start("third", 2)
    assert said() == []
    # A place that cannot be written to is no failure of the run.
    file.unlink()
    file.parent.rmdir()
    file.parent.write_text("in the way")
    assert start("fourth", 3) == (compiled, 0)
    assert [str(file) in text for text in said()] == [True]
