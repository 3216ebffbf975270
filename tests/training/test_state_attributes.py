"""Plain attributes that `state_attributes` names are in checkpoints; others are not."""

import random
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.compare import same
from helpers.models import Tiny, data, quiet


class Pooling(Tiny):
    """Keeps a value of each kind that a checkpoint can hold."""

    state_attributes = ("pool", "average", "counts", "nested", "name")

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.pool: deque[torch.Tensor] = deque(maxlen=3)
        self.average, self.counts = torch.zeros(()), np.zeros(2)
        self.nested: dict[str, Any] = {"steps": [(0, 0.5)], "seen": {1}}
        self.name = "none"

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        index, x = batch
        self.pool.append(x.mean(0))
        self.average = 0.9 * self.average + 0.1 * x.sum()
        self.counts[state.step % 2] += 1
        self.nested["steps"].append((state.step, random.random()))
        self.nested["seen"] |= set(index.tolist())
        self.name = f"after {state.step}"

    def values(self) -> list[Any]:
        return [getattr(self, name) for name in self.state_attributes]


@pytest.mark.parametrize("async_save", [True, False])
def test_they_are_after_any_cut_what_they_are_without_one(async_save: bool, tmp_path: Path) -> None:
    whole = Pooling()
    quiet(max_epochs=3).fit(whole, data())
    for cut in (1, 3, 5):
        options = {"root": tmp_path / str(cut), "async_save": async_save}
        quiet(max_steps=cut, **options).fit(Pooling(), data())
        model = Pooling()
        quiet(max_epochs=3, **options).fit(model, data())
        assert list(map(type, model.values())) == list(map(type, whole.values()))
        assert model.pool.maxlen == 3
        assert same([*model.pool], [*whole.pool])
        assert np.array_equal(model.counts, whole.counts)
        assert same([model.average, model.nested, model.name], [whole.average, whole.nested, whole.name])
    model.counts += 1  # It is an array of its own, and no view of what was read.
    restored = Pooling()
    quiet().test(restored, data(), checkpoint=str(tmp_path / "1" / "tiny"))
    assert restored.name == "none"  # An evaluation takes networks alone.


def test_a_program_may_name_more_and_fewer_of_them_later(tmp_path: Path) -> None:
    class Fewer(Pooling):
        state_attributes = ("pool",)  # type: ignore[assignment]

    quiet(max_steps=2, root=tmp_path).fit(Fewer(), data())
    model = Pooling()
    quiet(max_steps=3, root=tmp_path).fit(model, data())
    assert [step for step, _ in model.nested["steps"]] == [0, 2]  # It has begun anew.
    assert len(model.pool) == 3
    with pytest.raises(ValueError, match="average: only in the checkpoint"):
        quiet(max_steps=4, root=tmp_path).fit(Fewer(), data())


@pytest.mark.parametrize(
    ("names", "error", "text"),
    [
        (("pol",), ValueError, "^state_attributes: Named has no attribute 'pol'; assign it in __init__ or in setup"),
        ("pool", TypeError, "^state_attributes='pool': must be a tuple of names of attributes"),
        (("net",), ValueError, "^net: is the name of two attributes"),
        (("generator",), TypeError, r"^generator.state_dict\(\)\['value'\] is a random.Random"),
    ],
)
def test_what_cannot_be_held_is_an_error_before_the_first_step(
    names: Any, error: Any, text: str, tmp_path: Path
) -> None:
    class Named(Pooling):
        state_attributes = names
        generator = random.Random(0)

        def train_step(self, batch: Any, state: Any) -> None:
            raise AssertionError

    with pytest.raises(error, match=text):
        quiet(max_steps=1, root=tmp_path).fit(Named(), data())


def test_a_tensor_that_an_optimizer_trains_cannot_be_one_since_a_resume_would_replace_it(tmp_path: Path) -> None:
    class Tempered(Tiny):
        state_attributes = ("temperature",)

        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.temperature = torch.ones(1, requires_grad=True)
            self.optimizer.add_param_group({"params": [self.temperature]})

        def train_step(self, batch: Any, state: Any) -> None:
            raise AssertionError

    with pytest.raises(ValueError, match=r"^temperature: is trained .* make it a parameter of a network"):
        quiet(max_steps=1, root=tmp_path).fit(Tempered(), data())
