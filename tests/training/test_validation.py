"""Early stopping and the best weights, by the loss on the val split."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bundle.errors import TrainingError
from cohort.cohort import Cohort
from tests.training.squares import LABELS, read_metrics, tiny_config
from training.data import fit_schema, load_rows
from training.model import Slimp
from training.run import TOWERS, load_towers, read_info
from training.trainer import BEST, Trainer, last_checkpoint, pretrain
from training.validation import Validation

BESTS = {"epochs": 6, "keep_best": True}


def validation(cohort: Cohort, name: str) -> tuple[Validation, Slimp]:
    config = tiny_config(objective={"name": name, "column_dropout": 0.5})
    schema = fit_schema(cohort.schema, load_rows(cohort, ["train"], LABELS))
    torch.manual_seed(0)
    return Validation(cohort, schema, config, (0, 1)), Slimp(config, schema, labels=3)


@pytest.mark.parametrize("name", ["nested", "simclr", "mae", "supervised"])
def test_the_loss_is_the_same_every_time_and_leaves_the_run_as_it_was(
    cohort: Cohort, name: str
) -> None:
    measured, model = validation(cohort, name)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = measured.loss(model, model.weights)
    assert torch.equal(torch.rand(1), expected)
    assert measured.loss(model, model.weights) == first
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_the_loss_is_that_of_whole_records(cohort: Cohort) -> None:
    measured = validation(cohort, "nested")[0]
    seen = [row for index in measured.batches for row in index]
    assert sorted(seen) == list(range(len(load_rows(cohort, ["val"], LABELS))))
    for index in measured.batches:
        batch = measured.records.batch(torch.tensor(index))
        assert torch.equal(batch["lesion_present"], batch["raw_lesion_present"])


def test_every_epoch_logs_its_loss_and_the_run_keeps_the_best(
    cohort: Cohort, tmp_path: Path
) -> None:
    # A rate and a warm-up like these make some epochs worse than the one before.
    config = tiny_config(optimiser={**BESTS, "learning_rate": 0.05, "warmup": 1.0})
    pretrain(cohort, config, tmp_path / "run")
    losses = [m["val_loss"] for m in read_metrics(tmp_path / "run") if "val_loss" in m]
    assert len(losses) == 6
    assert losses[-1] > min(losses)
    schema = fit_schema(cohort.schema, load_rows(cohort, ["train"], LABELS))
    towers = load_towers(tmp_path / "run")
    measured = Validation(cohort, schema, config, (0, 1))
    assert measured.loss(towers, towers.weights) == pytest.approx(min(losses), rel=1e-5)
    assert not (tmp_path / "run" / BEST).exists()
    # Whoever resumes what has ended finds it ended.
    weights = (tmp_path / "run" / TOWERS).read_bytes()
    assert pretrain(cohort, config, tmp_path / "run", resume=True) == read_info(tmp_path / "run")
    assert (tmp_path / "run" / TOWERS).read_bytes() == weights


def test_what_chose_the_weights_was_seen(cohort: Cohort, pretrained: Path, tmp_path: Path) -> None:
    pretrain(cohort, tiny_config(optimiser={**BESTS, "epochs": 1}), tmp_path / "run")
    train, val = (set(load_rows(cohort, [s], LABELS).group_id) for s in ("train", "val"))
    everyone = set(cohort.group_ids())
    (seen,), (unchosen,) = read_info(tmp_path / "run").seen, read_info(pretrained).seen
    assert seen.overlap(everyone) == train | val
    assert unchosen.overlap(everyone) == train


def test_a_run_ends_when_its_patience_does(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 2.0, 1.5, 0.5, 0.4])
    monkeypatch.setattr(Validation, "loss", lambda *_: next(losses))
    config = tiny_config(optimiser={"epochs": 6, "patience": 2})
    pretrain(cohort, config, tmp_path / "run")
    seen = [m["val_loss"] for m in read_metrics(tmp_path / "run") if "val_loss" in m]
    assert seen == [3.0, 1.0, 2.0, 1.5]


class Stopped(Exception):
    """The power went away."""


@pytest.mark.parametrize("last", [4, 7])
def test_a_resumed_run_keeps_the_same_best_weights(
    cohort: Cohort, tmp_path: Path, last: int
) -> None:
    config = tiny_config(
        checkpoint_steps=2, log_steps=1, optimiser={**BESTS, "learning_rate": 0.1, "epochs": 4}
    )
    pretrain(cohort, config, tmp_path / "whole")

    def stop(step: int, total: int, metrics: dict[str, float]) -> None:
        if step == last:
            raise Stopped

    with pytest.raises(Stopped):
        pretrain(cohort, config, tmp_path / "run", report=stop)
    pretrain(cohort, config, tmp_path / "run", resume=True)
    whole, resumed = (load_file(tmp_path / name / TOWERS) for name in ("whole", "run"))
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    logs = [[m.get("val_loss") for m in read_metrics(tmp_path / name)] for name in ("whole", "run")]
    assert logs[0] == logs[1]


def test_progress_survives_in_the_checkpoint(cohort: Cohort, tmp_path: Path) -> None:
    config = tiny_config(checkpoint_steps=1, optimiser={**BESTS, "epochs": 2})
    pretrain(cohort, config, tmp_path / "run")
    folder = last_checkpoint(tmp_path / "run")
    assert folder is not None
    assert json.loads((folder / "progress.json").read_text())["best_loss"] > 0


def test_an_empty_val_split_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    splits = dict.fromkeys(cohort.group_ids(), "train")
    config = tiny_config(optimiser=BESTS)
    with pytest.raises(TrainingError, match="expected images in the cohort's val split"):
        pretrain(cohort.with_splits(splits), config, tmp_path / "run")  # type: ignore[arg-type]


def test_gradients_of_checkpointed_blocks_are_those_of_kept_ones(cohort: Cohort) -> None:
    gradients = []
    rows = load_rows(cohort, ["train"], LABELS)
    for checkpointed in (False, True):
        config = tiny_config(
            image={"checkpoint_gradients": checkpointed, "blocks": 2, "drop_path": 0.0}
        )
        schema = fit_schema(cohort.schema, rows)
        torch.manual_seed(0)
        model = Slimp(config, schema)
        trainer = Trainer(cohort, rows, model, schema, config, Path("unused"))
        assert trainer.model.image.backbone.is_activation_checkpointing == checkpointed
        pixels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        torch.autograd.backward(model.image.train()(pixels).square().sum())
        gradients.append([p.grad for p in model.image.parameters()])
    for kept, again in zip(*gradients, strict=True):
        assert (kept is None) == (again is None)
        if kept is not None:
            torch.testing.assert_close(kept, again)


def test_a_run_may_favour_patients_with_a_malignant_lesion_and_says_so(
    cohort: Cohort, tmp_path: Path
) -> None:
    config = tiny_config(batch={"malignant_patients": 0.5}, optimiser={"epochs": 1})
    info = pretrain(cohort, config, tmp_path / "run")
    assert info.objective == "nested, malignant patients favoured"


def test_compiling_without_a_compiler_is_refused(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(TrainingError, match="expected a C\\+\\+ compiler"):
        pretrain(cohort, tiny_config(compile=True), tmp_path / "run")


def test_memory_is_measured(pretrained: Path) -> None:
    taken = np.array([m["memory_mib"] for m in read_metrics(pretrained)])
    assert (taken > 50).all()
    assert (np.diff(taken) >= 0).all()
