"""Two real processes over gloo against one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from cohort.cohort import Cohort
from tests.training.shares import (
    OBJECTIVES,
    PROCESSES,
    gradients_of,
    val_loss_of,
    with_objective,
)
from tests.training.squares import read_metrics, tiny_config
from training.run import TOWERS, load_towers, read_info
from training.trainer import pretrain

SCRIPT = Path(__file__).parent / "shares.py"
# Nothing is drawn at random once the towers are built.
STILL = tiny_config(
    log_steps=1,
    batch={"patients": 7},
    objective={"column_dropout": 0.0, "pooling": "attention"},
    augment={"min_crop": 1.0, "flip": False},
    optimiser={"epochs": 2},
    fit={"dropout": 0.0},
)
# What an objective learns beside its layers, or the last of them.
LEARNED = {
    "nested": {"objective.lesion_log_scale", "objective.patient_log_scale"},
    "nested beside views": {"objective.lesion_log_scale", "views.projection.2.weight"},
    "flat": {"objective.log_scale"},
    "clip": {"objective.log_scale"},
    "siglip": {"objective.log_scale", "objective.bias"},
    "simclr": {"objective.projection.2.weight"},
    "mae": {"objective.decoder.decoder_pred.weight"},
    "supervised": {"objective.classifier.votes.1.weight", "objective.classifier.image_vote.bias"},
}


class Together(NamedTuple):
    """The folder that two processes worked in, and what each of them found."""

    folder: Path
    found: list[dict[str, Any]]


@pytest.fixture(scope="module")
def together(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Together:
    folder = tmp_path_factory.mktemp("together")
    (folder / "still.json").write_text(STILL.model_dump_json())
    stem = tiny_config(image={"stem": "convolutional"})
    (folder / "stem.json").write_text(stem.model_dump_json())
    # What a launcher tells its processes; they meet in a file all the same.
    told = {"WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    told["PYTHONPATH"] = str(SCRIPT.parents[2])
    started = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(rank), folder, cohort.path],
            env={**os.environ, **told, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(PROCESSES)
    ]
    errors = "\n".join(process.communicate(timeout=240)[1] for process in started)
    assert [process.returncode for process in started] == [0] * PROCESSES, errors
    return Together(folder, [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_processes_have_the_gradient_of_one(
    cohort: Cohort, together: Together, name: str
) -> None:
    expected = gradients_of(with_objective(STILL, name), cohort, (0, 1))
    trained = {n for n, gradient in expected.items() if gradient.any()}
    assert trained > LEARNED[name]
    assert len(trained) > 20
    for found in together.found:
        for part, gradient in expected.items():
            off = (found["gradients"][name][part] - gradient).abs().max()
            assert off <= 1e-6 * gradient.abs().max() + 1e-15, part


def test_a_gradient_that_no_process_has_stays_absent(together: Together) -> None:
    for found in together.found:
        both, one, none = found["unused"]
        assert both.tolist() == [1.5, 1.5]
        assert one.tolist() == [2.0, 2.0]
        assert none is None


def test_ids_and_flags_are_gathered_as_they_are(together: Together) -> None:
    for found in together.found:
        rows, flags = found["gathered"]
        assert rows.tolist() == [0, 1, 2**40, 2**40 + 1, 2**40 + 2]
        assert flags.tolist() == [True, False, True, False, True]


@pytest.mark.parametrize("name", ["run", "chunks"])
def test_a_run_of_two_processes_takes_the_steps_of_one(
    cohort: Cohort, together: Together, tmp_path: Path, name: str
) -> None:
    run, alone = together.folder / name, tmp_path / "alone"
    pretrain(cohort, STILL, alone)
    assert read_info(run).parameters == read_info(alone).parameters
    steps, expected = read_metrics(run), read_metrics(alone)
    assert len(expected) > 4
    for key in ("step", "loss", "gradient_norm", "lesion_negatives", "patient_accuracy"):
        assert [m[key] for m in steps] == pytest.approx([m[key] for m in expected], rel=1e-3)
    assert not load_towers(run).training


def test_a_resumed_run_of_two_processes_ends_with_the_weights_of_an_uninterrupted_one(
    together: Together,
) -> None:
    whole, resumed = (
        load_file(together.folder / name / TOWERS) for name in ("uninterrupted", "interrupted")
    )
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    steps = [m["step"] for m in read_metrics(together.folder / "interrupted")]
    assert steps == list(range(1, len(steps) + 1))


def test_batch_norm_over_processes_is_refused(together: Together) -> None:
    for found in together.found:
        assert "expected one process with a convolutional stem" in found["refused"]


def test_processes_agree_on_the_loss_that_chooses_the_weights(
    cohort: Cohort, together: Together
) -> None:
    first, second = (found["val_loss"] for found in together.found)
    # Each weighs the batches by its own images, and decides by the sum over all.
    assert first == second == pytest.approx(val_loss_of(STILL, cohort, (0, 1)), rel=1e-5)
