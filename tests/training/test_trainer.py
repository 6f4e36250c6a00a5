import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from bundle.errors import TrainingError
from bundle.fields import FieldSchema
from cohort.cohort import Cohort
from tests.training.squares import LABELS, SCHEMA, read_metrics, squares, tiny_config, write_cohort
from training.batch import same_records
from training.config import Config
from training.data import fit_schema, load_rows
from training.metrics_log import forget_steps_after
from training.model import Slimp
from training.objectives.objective import MAX_LOG_SCALE, Term
from training.record_batches import RecordBatches
from training.run import TOWERS, load_towers, read_info
from training.sampler import PatientBatches
from training.trainer import Trainer, last_checkpoint, pretrain


class Stopped(Exception):
    """The power went away."""


class Stopper:
    """Ends a run after a step, as a crash would."""

    def __init__(self, last: int) -> None:
        self.last = last

    def __call__(self, step: int, total: int, metrics: dict[str, float]) -> None:
        if step == self.last:
            raise Stopped


def weights(run: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(run / TOWERS)
    return tensors


def short() -> Config:
    return tiny_config(checkpoint_steps=2, log_steps=2, optimiser={"epochs": 2})


def test_the_loss_falls_on_squares_that_match_their_records(cohort: Cohort, tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    def keep(step: int, total: int, metrics: dict[str, float]) -> None:
        assert step == len(seen) + 1 <= total
        seen.append(metrics)

    config = tiny_config(objective={"column_dropout": 0.0}, optimiser={"epochs": 12})
    pretrain(cohort, config, tmp_path / "run", report=keep)
    # The last batch of an epoch is smaller, and its loss with it: compare whole batches.
    whole = [m for m in seen if m["lesion_negatives"] > 20]
    first, last = (sum(m["loss"] for m in part) for part in (whole[:4], whole[-4:]))
    assert last < 0.9 * first


def test_a_run_holds_what_it_is_and_what_it_saw(pretrained: Path, cohort: Cohort) -> None:
    info = read_info(pretrained)
    assert info.objective == "nested"
    assert info.embedding_dim == 16
    assert info.labels == cohort.info.labels
    assert info.data[0].name == "squares"
    assert info.data[0].patients == 20
    assert "patient groups, seed 0" in info.split_recipe
    towers = load_towers(pretrained)
    assert info.parameters == sum(p.numel() for p in towers.parameters())
    assert not towers.training
    (seen,) = info.seen
    groups = set(load_rows(cohort, ["train"], ()).group_id)
    assert seen.overlap(set(cohort.group_ids())) == groups
    assert not seen.overlap({"somebody else"})
    assert "patient 1" not in (pretrained / "run.json").read_text()


def test_every_log_step_leaves_a_line_of_metrics(pretrained: Path) -> None:
    lines = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps[:-1] == [4 * (i + 1) for i in range(len(steps) - 1)]
    assert steps[-1] > steps[-2]
    names = {"loss", "gradient_norm", "learning_rate", "images_per_second", "data_wait_share"}
    names.add("memory_mib")
    terms = {f"{t}_{m}" for t in ("lesion", "patient") for m in ("loss", "accuracy", "negatives")}
    assert set(lines[0]) == {"step"} | names | terms
    assert lines[-1]["learning_rate"] < lines[0]["learning_rate"]
    assert list((pretrained / "tensorboard").iterdir())
    for line in lines:
        expected = (line["lesion_loss"] + line["patient_loss"]) / 2
        assert line["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def uninterrupted(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "uninterrupted"
    pretrain(cohort, short(), run)
    return run


@pytest.mark.parametrize("last", [3, 5])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    cohort: Cohort, uninterrupted: Path, tmp_path: Path, last: int
) -> None:
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        pretrain(cohort, short(), run, report=Stopper(last))
    assert not (run / "run.json").exists()
    torch.manual_seed(99)
    pretrain(cohort, short(), run, resume=True)
    expected, resumed = weights(uninterrupted), weights(run)
    assert expected.keys() == resumed.keys()
    assert [name for name in expected if not torch.equal(expected[name], resumed[name])] == []
    logged = [
        [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (run, uninterrupted)
    ]
    assert logged[0] == logged[1]


def test_a_run_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(
    cohort: Cohort, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, write = tmp_path / "run", Accelerator.save_state

    def cut_off(self: Accelerator, folder: str, **options: bool) -> None:
        write(self, folder, **options)
        if last_checkpoint(run) is not None:
            raise Stopped

    monkeypatch.setattr(Accelerator, "save_state", cut_off)
    with pytest.raises(Stopped):
        pretrain(cohort, short(), run)
    monkeypatch.undo()
    # What lies there of the second checkpoint must not be taken for the first.
    assert len(list((run / "state").iterdir())) == 2
    pretrain(cohort, short(), run, resume=True)
    expected, resumed = weights(uninterrupted), weights(run)
    assert [name for name in expected if not torch.equal(expected[name], resumed[name])] == []
    assert [folder.suffix for folder in (run / "state").iterdir()] == [""]


def test_a_line_that_a_killed_run_left_half_written_is_forgotten(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    forget_steps_after(2, tmp_path)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_temperature_beyond_its_bound_keeps_its_gradient_and_is_brought_back(
    cohort: Cohort,
) -> None:
    config = tiny_config(objective={"temperature": 0.001})
    rows = load_rows(cohort, ["train"], LABELS)
    schema = fit_schema(cohort.schema, rows)
    model = Slimp(config, schema)
    scales = [p for name, p in model.named_parameters() if name.endswith("log_scale")]
    assert [scale.item() for scale in scales] == pytest.approx([MAX_LOG_SCALE] * 2)
    with torch.no_grad():
        for scale in scales:
            scale.add_(1)
    index = next(iter(PatientBatches(rows.patient, patients=8, lesions=3, seed=0)))
    batch = RecordBatches(rows, schema, config.objective).batch(torch.tensor(index))
    batch["pixels"] = torch.randn(len(index), 3, 16, 16)
    torch.autograd.backward([term.loss for term in model(batch).values()])
    assert all(scale.grad is not None and scale.grad.item() for scale in scales)
    model.objective.limit_scales()
    assert [scale.item() for scale in scales] == pytest.approx([MAX_LOG_SCALE] * 2)


def test_a_run_ends_after_its_steps_wherever_in_an_epoch(
    cohort: Cohort, uninterrupted: Path, tmp_path: Path
) -> None:
    both_epochs = int(read_metrics(uninterrupted)[-1]["step"])
    epoch = both_epochs // 2
    for asked, taken in ((epoch + 1, epoch + 1), (both_epochs + 1, both_epochs)):
        run = tmp_path / f"{asked} steps"
        settings = {"epochs": 2, "steps": asked, "keep_best": True}
        pretrain(cohort, tiny_config(optimiser=settings, log_steps=1), run)
        lines = read_metrics(run)
        assert [line["step"] for line in lines] == list(range(1, taken + 1))
        assert lines[-1]["learning_rate"] == 0
        # The last step may lie within an epoch: its loss is measured all the same.
        assert [line["step"] for line in lines if "val_loss" in line] == [epoch, taken]


def test_a_run_of_some_steps_resumes_to_the_same_weights(cohort: Cohort, tmp_path: Path) -> None:
    config = tiny_config(optimiser={"steps": 5}, checkpoint_steps=2)
    pretrain(cohort, config, tmp_path / "whole")
    with pytest.raises(Stopped):
        pretrain(cohort, config, tmp_path / "parts", report=Stopper(3))
    pretrain(cohort, config, tmp_path / "parts", resume=True)
    expected, resumed = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert [name for name in expected if not torch.equal(expected[name], resumed[name])] == []


def test_mirror_images_change_no_weight_of_pre_training(cohort: Cohort, tmp_path: Path) -> None:
    for views in (1, 2):
        config = tiny_config(optimiser={"steps": 3}, image={"views": views})
        pretrain(cohort, config, tmp_path / str(views))
    alone, mirrored = weights(tmp_path / "1"), weights(tmp_path / "2")
    assert [name for name in alone if not torch.equal(alone[name], mirrored[name])] == []


def test_a_folder_that_is_taken_is_not_trained_into(pretrained: Path, cohort: Cohort) -> None:
    with pytest.raises(TrainingError, match="exists: name another folder, or go on with --resume"):
        pretrain(cohort, tiny_config(), pretrained)


def test_a_resume_needs_a_run_of_the_same_configuration_with_a_checkpoint(
    pretrained: Path, cohort: Cohort, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="nothing to resume"):
        pretrain(cohort, tiny_config(), tmp_path / "absent", resume=True)
    with pytest.raises(TrainingError, match="another configuration"):
        pretrain(cohort, tiny_config(seed=5), pretrained, resume=True)
    shutil.copytree(
        pretrained, tmp_path / "run", ignore=shutil.ignore_patterns("state", "run.json")
    )
    with pytest.raises(TrainingError, match="no checkpoint was written yet"):
        pretrain(cohort, tiny_config(), tmp_path / "run", resume=True)


def test_a_cohort_without_patient_ids_trains_the_lesion_objective(
    lesion_cohort: Cohort, tmp_path: Path
) -> None:
    seen: list[dict[str, float]] = []
    config = tiny_config(optimiser={"epochs": 1})
    info = pretrain(
        lesion_cohort, config, tmp_path / "run", report=lambda step, total, m: seen.append(m)
    )
    assert info.objective == "lesion"
    assert info.data[0].patients is None
    assert "lesion groups" in info.split_recipe
    assert all(m["loss"] == pytest.approx(m["lesion_loss"]) for m in seen)


def test_patients_without_fields_train_the_lesion_objective(tmp_path: Path) -> None:
    schema = FieldSchema(fields=SCHEMA.at("lesion"))
    images = list(squares(patients=4))
    for image in images:
        for name in ("age_years", "sex"):
            image.record.pop(name, None)
    cohort = write_cohort(tmp_path / "cohort", images, schema=schema)
    info = pretrain(cohort, tiny_config(optimiser={"epochs": 1}), tmp_path / "run")
    assert info.objective == "lesion"
    assert load_towers(tmp_path / "run").patient is None


def test_a_cohort_that_no_objective_can_use_is_refused(tmp_path: Path) -> None:
    images = list(squares(patients=4, with_ids=False))
    for image in images:
        for name in ("diameter_mm", "itch", "anatom_site"):
            image.record.pop(name, None)
    schema = FieldSchema(fields=SCHEMA.at("patient"))
    cohort = write_cohort(tmp_path / "cohort", images, schema=schema)
    with pytest.raises(TrainingError, match="no lesion-level field"):
        pretrain(cohort, tiny_config(), tmp_path / "run")


def test_an_empty_train_split_is_refused(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = load_rows(cohort, ["train"], ()).take(np.arange(0))
    monkeypatch.setattr("training.trainer.load_rows", lambda *args: nobody)
    with pytest.raises(TrainingError, match="train split is empty"):
        pretrain(cohort, tiny_config(), tmp_path / "run")


def test_a_loss_that_is_no_number_ends_the_run(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer._total_loss

    def lost(self: Trainer, terms: dict[str, Term]) -> torch.Tensor:
        return real(self, terms) * torch.nan

    monkeypatch.setattr(Trainer, "_total_loss", lost)
    with pytest.raises(TrainingError, match="the loss is nan at step 1"):
        pretrain(cohort, tiny_config(), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_bfloat16_trains(cohort: Cohort, tmp_path: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        config = tiny_config(precision="bf16", optimiser={"epochs": 1})
        pretrain(cohort, config, tmp_path / "run")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    numbers = [t for t in weights(tmp_path / "run").values() if t.is_floating_point()]
    assert {t.dtype for t in numbers} == {torch.float32}


def test_records_that_augmentation_makes_alike_are_alike() -> None:
    raw = torch.tensor([[1.0], [1.0], [2.0]])
    known = torch.ones(3, 1, dtype=torch.bool)
    batch = {
        "raw_lesion_values": raw,
        "raw_lesion_present": known,
        "lesion_values": raw,
        "lesion_present": torch.tensor([[False], [True], [False]]),
    }
    assert same_records(batch, "lesion").tolist() == [
        [True, True, True],
        [True, True, False],
        [True, False, True],
    ]
