"""Runs that ended in the middle go on to the weights of an uninterrupted one, bit by bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cohort.cohort import Cohort
from tests.training.killed import MOMENTS
from tests.training.squares import read_metrics, tiny_config
from training.config import Config
from training.run import TOWERS
from training.trainer import pretrain

SCRIPT = Path(__file__).parent / "killed.py"


class Stopped(Exception):
    """The power went away."""


def short(**batch: int) -> Config:
    """Return an experiment of two epochs that draws random numbers in all that it does."""
    return tiny_config(
        checkpoint_steps=2,
        log_steps=1,
        optimiser={"epochs": 2},
        record={"dropout": 0.2},
        objective={"column_dropout": 0.3},
        augment={"min_crop": 0.5, "brightness": 0.2},
        batch={"patients": 4, **batch},
    )


def assert_same_run(run: Path, whole: Path) -> None:
    expected, found = (load_file(folder / TOWERS) for folder in (whole, run))
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    logs = [[(m["step"], m["loss"]) for m in read_metrics(folder)] for folder in (whole, run)]
    assert logs[0] == logs[1]
    assert len(logs[0]) > 6


@pytest.mark.parametrize("batch", [{"chunk": 5}, {"workers": 1}], ids=["in chunks", "by a worker"])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    cohort: Cohort, tmp_path: Path, batch: dict[str, int]
) -> None:
    config = short(**batch)
    pretrain(cohort, config, tmp_path / "whole")

    def stop(step: int, total: int, metrics: dict[str, float]) -> None:
        if step == 5:
            raise Stopped

    with pytest.raises(Stopped):
        pretrain(cohort, config, tmp_path / "run", report=stop)
    torch.manual_seed(99)
    pretrain(cohort, config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.fixture(scope="module")
def killed(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run and of those that were killed, by the moment."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "killed.json").write_text(short().model_dump_json())
    path = {"PYTHONPATH": str(SCRIPT.parents[2])}
    command = [sys.executable, str(SCRIPT), str(folder), str(cohort.path)]
    subprocess.run(command, env={**os.environ, **path}, check=True, timeout=240)
    pretrain(cohort, short(), folder / "whole")
    return folder


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_to_the_weights_of_an_uninterrupted_one(
    cohort: Cohort, killed: Path, moment: str
) -> None:
    ended = json.loads((killed / "ended.json").read_text())
    assert ended[moment] == signal.SIGKILL
    assert not (killed / moment / TOWERS).exists()
    pretrain(cohort, short(), killed / moment, resume=True)
    assert_same_run(killed / moment, killed / "whole")
