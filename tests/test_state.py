"""The counters of a run: they start at nothing, and survive a file."""

import dataclasses

import pytest
import torch

from helios_lite import FitResult, TrainingState

COUNTED = {
    "epoch": 1,
    "step": 2,
    "skipped_steps": 11,
    "batch": 3,
    "epoch_batch": 4,
    "epoch_samples": 5,
    "validation_cycle": 6,
    "validated_step": 7,
    "early_stop_count": 8,
    "best_score": 0.0,
    "best_step": 9,
    "seconds": 10.5,
}


def test_a_new_run_has_finished_nothing():
    nothing = dict.fromkeys(COUNTED, 0)
    assert TrainingState().state_dict() == nothing | {"validated_step": None, "best_score": None, "best_step": None}


def test_state_dict_has_every_counter():
    assert TrainingState(**COUNTED).state_dict() == COUNTED


@pytest.mark.parametrize("state", [TrainingState(), TrainingState(**COUNTED)])
def test_a_state_survives_a_file(state, tmp_path):
    torch.save(state.state_dict(), tmp_path / "state")
    loaded = TrainingState(**dict.fromkeys(COUNTED, -1))
    loaded.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert loaded == state


def test_state_dict_does_not_follow_the_state():
    state = TrainingState()
    before = state.state_dict()
    state.step += 1
    assert before["step"] == 0


def test_a_counter_that_the_file_does_not_have_stays():
    state = TrainingState(step=3)
    state.load_state_dict({"epoch": 2})
    assert (state.epoch, state.step) == (2, 3)


def test_an_unknown_counter_is_an_error_that_names_it_and_lists_the_known():
    with pytest.raises(AttributeError, match=r"'steps'.*'epoch_samples'.*'step'"):
        TrainingState().load_state_dict({"steps": 1})


def test_a_result_cannot_be_changed():
    result = FitResult(TrainingState(), {}, {}, None, None, "max_steps")
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.stop_reason = "patience"
