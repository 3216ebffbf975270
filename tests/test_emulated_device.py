"""Accelerators: what the trainer does on an emulated one, in a process that has it, and on a GPU where there is one."""

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest
from helpers import scripts
from torch.utils import backend_registration

TESTS = Path(__file__).parent
# Some of each kind: training, resumes, callbacks, evaluations, predictions, loaders, checkpoints, pages.
OF_OTHER_FILES = (
    "training/test_loop.py::test_a_buffer_first_made_in_validation_serves_training",
    "training/test_resume.py::test_the_metrics_of_the_best_validation_survive_a_resume",
    "test_callbacks.py::test_an_average_resumes_with_the_same_bits",
    "test_callbacks.py::test_validations_and_tests_use_the_average_and_training_does_not_notice",
    "test_callbacks.py::test_an_exception_in_an_evaluation_leaves_the_weights_and_modes_of_the_training",
    "calls/test_predict.py::test_a_file_has_all_outputs_and_their_indices",
    "calls/test_predict.py::test_nothing_of_a_prediction_is_seen_by_the_code_between_its_outputs",
    "loading/test_passes.py::test_an_iterator_that_can_be_used_once_serves_many_epochs",
    "networks/test_precision.py::test_a_step_whose_gradients_are_not_finite_is_left_out_and_counted",
    "test_docs.py::test_a_program_runs_and_prints_what_the_page_says[accumulation-1]",
    "test_docs.py::test_a_program_runs_and_prints_what_the_page_says[predict-1]",
    "test_docs.py::test_a_program_runs_and_prints_what_the_page_says[callbacks-1]",
)


def passed(*tests: str, env: dict[str, str | None], **options: bool) -> None:
    """Run tests in a process of their own, which must all pass."""
    arguments = ["-q", "-o", "addopts=--strict-markers", "-p", "no:cacheprovider", *tests]
    env = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **env}
    ended = scripts.run("-m", "pytest", *arguments, env=env, cwd=TESTS.parent, check=False, **options)
    assert ended.returncode == 0, ended.stdout + ended.stderr


emulation = pytest.mark.skipif(
    not hasattr(backend_registration, "_DummyBackendModule"), reason="this PyTorch takes no device that is in Python"
)


@emulation
def test_the_trainer_is_right_on_another_device() -> None:
    others = [f"tests/{test}" for test in OF_OTHER_FILES]
    passed("tests/on_emulated_device.py", *others, env={"EMULATED": "1"})


@emulation
def test_ranks_train_what_they_train_on_the_cpu_and_are_told_if_they_have_the_same_device(tmp_path: Path) -> None:
    """They have a backend for their devices; the error ends both without waiting for each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": TESTS.parent}
    program = (TESTS / "emulated_rank.py", tmp_path)
    ranks = [scripts.start(*program, env={**common, "RANK": rank, "LOCAL_RANK": rank}, **streams) for rank in "01"]
    right = {
        "devices": True,
        "rows read": True,
        "waits between rows": [],
        "as on the CPU": True,
        "as resumed": True,
    }
    for rank in ranks:
        output, errors = rank.communicate(timeout=scripts.DEADLINE)
        assert rank.returncode == 1
        *found, backends = output.splitlines()
        assert {line.split(" ", 1)[0]: json.loads(line.split(" ", 1)[1]) for line in found} == {
            "ddp": right,
            "fsdp": right,
        }
        assert backends == "cpu:gloo,emu:emuccl"
        assert "RuntimeError: ranks 0 and 1 have the same device (GPU-1), and ranks on emu need one each" in errors


@pytest.mark.skipif(
    not Path("/dev/nvidiactl").exists() or os.environ["TEST_VISIBLE_GPUS"] == "", reason="needs a GPU of NVIDIA"
)
def test_the_tests_of_a_gpu_pass_where_there_is_one() -> None:
    visible = os.environ["TEST_VISIBLE_GPUS"]
    environment = {"TEST_ON_GPU": None, "CUDA_VISIBLE_DEVICES": None if visible == "all" else visible}
    passed("tests/test_gpu.py", env=environment, new_interpreter=True)
