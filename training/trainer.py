"""Pre-training: batches in, encoders out, resumable at any checkpoint."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LambdaLR

from bundle.errors import TrainingError
from bundle.fields import FieldSchema
from bundle.images import ImageInput
from cohort.cohort import Cohort
from training.augment import Augment
from training.batch import encode_at_once
from training.config import Config
from training.data import Rows, Squares, fit_schema, image_loader, load_rows
from training.gradient_cache import GradientCache
from training.metrics_log import MetricsLog, forget_steps_after, peak_memory_mib
from training.model import Slimp
from training.objectives.nested import Nested
from training.objectives.objective import Term
from training.objectives.supervised import Supervised
from training.objectives.whole_record import WholeRecord
from training.precision import is_bf16, trained_attention
from training.prefetch import one_ahead
from training.processes import average_gradients, this_process
from training.progress import StepReport, silent
from training.record_batches import RecordBatches
from training.run import RunInfo, SeenGroups, describe_data, read_info, write_json, write_run
from training.sampler import PatientBatches
from training.schedule import build_optimiser, warmup_cosine
from training.validation import Validation

# The weights of the best epoch so far, while a run goes on.
BEST = "best.safetensors"
# Whole checkpoints, by step.
STATE = "state"


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    best_loss: float | None = None
    epochs_since_best: int = 0


def pretrain(
    cohort: Cohort,
    config: Config,
    out: Path,
    *,
    resume: bool = False,
    report: StepReport = silent,
    start: Slimp | None = None,
    schema: FieldSchema | None = None,
    history: RunInfo | None = None,
) -> RunInfo:
    """Pre-train SLIMP encoders on a cohort's train split and write the run.

    No label takes part. A cohort without patient ids trains with the outer loss off and its run is
    named `lesion`.

    Args:
        cohort: the prepared data set.
        config: the experiment.
        out: the run folder.
        resume: go on from the folder's last checkpoint.
        report: called after each step with step, total and the step's metrics.
        start: towers to go on with; None builds them as the configuration says.
        schema: their fitted fields; None fits the cohort's on its train split.
        history: the run they come from, whose data and groups this run has seen too.

    Raises:
        TrainingError: the folder holds another run, or there is nothing to train on.
    """
    process = this_process()
    if process.is_main_process:
        _open_run(out, config, resume)
    process.wait_for_everyone()
    set_seed(config.seed)
    if resume and (out / "run.json").is_file():
        # Ended: nothing is left to do, and of the best weights nothing is kept beside the run's.
        return read_info(out)
    rows = load_rows(cohort, ["train"], cohort.info.labels)
    if not len(rows):
        raise TrainingError("the cohort's train split is empty: prepare it again")
    schema = schema or fit_schema(cohort.schema, rows)
    towers = start or Slimp(config, schema, labels=len(cohort.info.labels))
    if isinstance(towers.objective, Supervised):
        towers.objective.balance(torch.from_numpy(rows.label))
    trainer = Trainer(cohort, rows, towers, schema, config, out)
    if resume:
        trainer.load_state()
    trainer.run(report)
    chosen_by = trainer.validation.group_id if trainer.validation else []
    seen = SeenGroups.of({*rows.group_id, *chosen_by})
    info = RunInfo(
        objective=trainer.objective,
        record_schema=schema,
        labels=cohort.info.labels,
        malignant_labels=cohort.info.malignant_labels,
        embedding_dim=trainer.model.embedding_dim,
        data=(*(history.data if history else ()), describe_data(cohort)),
        seen=(*(history.seen if history else ()), seen),
        split_recipe=f"{'patient' if cohort.has_patients else 'lesion'} groups, "
        f"seed {cohort.info.split_seed}",
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        seconds=round(trainer.progress.seconds, 1),
    )
    if process.is_main_process:
        write_run(out, trainer.model, info)
        (out / BEST).unlink(missing_ok=True)
    process.wait_for_everyone()
    return info


def _open_run(out: Path, config: Config, resume: bool) -> None:
    stored = out / "config.json"
    if resume:
        if not stored.is_file():
            raise TrainingError(f"{out}: nothing to resume; leave --resume out")
        if Config.model_validate_json(stored.read_bytes()) != config:
            raise TrainingError(f"{out} was started with another configuration: it cannot resume")
        return
    if out.exists() and any(out.iterdir()):
        raise TrainingError(f"{out} exists: name another folder, or go on with --resume")
    out.mkdir(parents=True, exist_ok=True)
    write_json(stored, config.model_dump(mode="json"))


def choose_objective(
    cohort: Cohort, rows: Rows, schema: FieldSchema, model: Slimp
) -> tuple[str, dict[str, float]]:
    """Return the run's objective by name, and its terms' weights on this cohort.

    Without patient ids the outer loss is off, and a nested run is named `lesion`.

    Raises:
        TrainingError: the cohort has nothing that the objective trains on.
    """
    objective = model.objective
    name: str = model.objective_name
    weights = model.weights
    has_patients = cohort.has_patients and bool(schema.at("patient"))
    if isinstance(objective, Nested) and not has_patients:
        if not (weights["lesion"] and schema.at("lesion")):
            raise TrainingError(
                "nothing to train on: the cohort has no patients with ids and fields for the outer "
                "loss, and the inner loss has no weight or no lesion-level field"
            )
        name, weights = "lesion", {**weights, "lesion": 1.0, "patient": 0.0}
    if isinstance(objective, Nested) and name == "lesion" and not schema.at("lesion"):
        raise TrainingError("nothing to train lesion on: expected a lesion-level field")
    if isinstance(objective, WholeRecord) and not schema.fields:
        raise TrainingError(f"nothing to train {name} on: expected a field")
    if isinstance(objective, Supervised) and not (rows.label >= 0).any():
        raise TrainingError("nothing to train supervised on: expected labels")
    beside = "" if model.views is None else f" + {weights['image']:g} image"
    return name + beside, weights


class Trainer:
    """One pre-training run: model, optimiser, batches and where it stands."""

    def __init__(
        self,
        cohort: Cohort,
        rows: Rows,
        model: Slimp,
        schema: FieldSchema,
        config: Config,
        out: Path,
    ) -> None:
        self.config, self.out = config, out
        bf16 = is_bf16(config.precision, this_process().device)
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision="bf16" if bf16 else "no",
            step_scheduler_with_optimizer=False,
        )
        if self.accelerator.num_processes > 1 and config.image.stem == "convolutional":
            raise TrainingError(
                "expected one process with a convolutional stem, whose batch norm sees one "
                f"process's images alone, got {self.accelerator.num_processes}: set image.stem to "
                "linear or start one"
            )
        self.objective, self.weights = choose_objective(cohort, rows, schema, model)
        if config.batch.malignant_patients is not None:
            self.objective += ", malignant patients favoured"
        optimiser = build_optimiser(model, config.optimiser)
        share = (self.accelerator.process_index, self.accelerator.num_processes)
        self.batches = PatientBatches(
            rows.patient,
            patients=config.batch.patients,
            lesions=config.batch.lesions,
            seed=config.seed,
            share=share,
            positive=has_malignant(rows),
            positive_share=config.batch.malignant_patients,
        )
        settings = config.optimiser
        validates = settings.keep_best or settings.patience is not None
        self.validation = Validation(cohort, schema, config, share) if validates else None
        self.total = self._count_steps()
        scheduler = LambdaLR(optimiser, warmup_cosine(self.total, config.optimiser.warmup))
        if config.image.checkpoint_gradients:
            model.image.backbone.activation_checkpointing_enable()
        if config.compile:
            compile_towers(model)
        # In no wrapper of its own: gradients are averaged below, once a batch, chunked or not.
        self.model: Slimp = self.accelerator.prepare_model(model, evaluation_mode=True)
        self.optimiser, self.scheduler = self.accelerator.prepare(optimiser, scheduler)
        if self.accelerator.num_processes > 1:
            # Towers start alike everywhere; from here on each process draws its own numbers.
            set_seed(config.seed, device_specific=True)
        self.records = RecordBatches(rows, schema, config.objective)
        self.augment = Augment(config.augment, config.image.input).to(self.accelerator.device)
        side = config.image.resize_px
        square = ImageInput(size_px=side, resize_px=side)
        squares = Squares(cohort, rows, square, keep_mib=config.batch.kept_mib)
        self.loader = image_loader(squares, batches=self.batches, workers=config.batch.workers)
        self.progress = Progress()

    def _count_steps(self) -> int:
        total, limit = 0, self.config.optimiser.steps
        for epoch in range(self.config.optimiser.epochs):
            self.batches.start(epoch)
            total += len(self.batches)
            if limit is not None and total >= limit:
                return limit
        return total

    def run(self, report: StepReport) -> None:
        """Train to the end, logging and checkpointing on the way."""
        self.model.train()
        with (
            self._open_log() as log,
            trained_attention(
                self.model.image.backbone, self.config.precision, self.accelerator.device
            ),
        ):
            for metrics in self._steps():
                step = self.progress.step
                if log is not None:
                    report(step, self.total, metrics)
                    due = step % self.config.log_steps == 0 or step == self.total
                    if due or "val_loss" in metrics:
                        log.write(step, metrics)
                if step % self.config.checkpoint_steps == 0:
                    self.save_state()
        if self.config.optimiser.keep_best:
            self.model.load_state_dict(load_file(self.out / BEST))

    def _open_log(self) -> MetricsLog | nullcontext[None]:
        if self.accelerator.is_main_process:
            return MetricsLog(self.out, self.progress.step)
        return nullcontext()

    def _steps(self) -> Iterator[dict[str, float]]:
        while not self._is_over():
            self.batches.start(self.progress.epoch, self.progress.batch)
            mark = time.perf_counter()
            for images in one_ahead(self.loader):
                waited = time.perf_counter() - mark
                metrics = self._step(images)
                spent = time.perf_counter() - mark
                self.progress.step += 1
                self.progress.batch += 1
                self.progress.seconds += spent
                count = len(images["index"]) * self.accelerator.num_processes
                metrics["images_per_second"] = count / spent
                metrics["data_wait_share"] = waited / spent
                metrics["memory_mib"] = peak_memory_mib(self.accelerator.device)
                # The last step may lie within an epoch.
                ended = self.progress.step == self.total or self.progress.batch == len(self.batches)
                if self.validation is not None and ended:
                    metrics["val_loss"] = self._validate(self.validation)
                yield metrics
                if ended:
                    break
                mark = time.perf_counter()
            self.progress.epoch += 1
            self.progress.batch = 0

    def _is_over(self) -> bool:
        if self.progress.step >= self.total:
            return True
        patience = self.config.optimiser.patience
        return patience is not None and self.progress.epochs_since_best >= patience

    def _validate(self, validation: Validation) -> float:
        """Return the loss on the val split, and keep the weights if it is the lowest so far."""
        loss, progress = validation.loss(self.model, self.weights), self.progress
        if progress.best_loss is not None and loss >= progress.best_loss:
            progress.epochs_since_best += 1
            return loss
        # The loss is that of all processes, so that all of them come here or none.
        progress.best_loss, progress.epochs_since_best = loss, 0
        if self.config.optimiser.keep_best and self.accelerator.is_main_process:
            partial = self.out / f"{BEST}.partial"
            save_file(
                {k: v.contiguous().cpu() for k, v in self.model.state_dict().items()}, partial
            )
            partial.replace(self.out / BEST)
        self.accelerator.wait_for_everyone()
        return loss

    def _step(self, images: dict[str, torch.Tensor]) -> dict[str, float]:
        device = self.accelerator.device
        batch = {k: v.to(device) for k, v in self.records.batch(images["index"]).items()}
        pixels = images["pixels"].to(device)
        batch["pixels"] = self.augment(pixels)
        if self.config.objective.compares_views:
            batch["second_pixels"] = self.augment(pixels)
        chunk = self.config.batch.chunk
        cache = None if chunk is None else GradientCache(chunk, self.accelerator.autocast)
        with self.accelerator.autocast():
            terms = self.model(batch, encode_at_once if cache is None else cache.encode)
        loss = self._total_loss(terms)
        self.accelerator.backward(loss)
        if cache is not None:
            cache.backward()
        average_gradients(self.model.parameters())
        norm = self.accelerator.clip_grad_norm_(
            self.model.parameters(), self.config.optimiser.clip_norm
        )
        self.optimiser.step()
        self.model.objective.limit_scales()
        self.scheduler.step()
        self.optimiser.zero_grad()
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss is {loss.item()} at step {self.progress.step + 1}")
        return self._metrics(loss, terms, float(norm))

    def _total_loss(self, terms: dict[str, Term]) -> torch.Tensor:
        parts = [self.weights[name] * term.loss for name, term in terms.items()]
        return torch.stack(parts).sum()

    def _metrics(self, loss: torch.Tensor, terms: dict[str, Term], norm: float) -> dict[str, float]:
        metrics = {"loss": loss.item(), "gradient_norm": norm}
        metrics["learning_rate"] = self.scheduler.get_last_lr()[0]
        for name, term in terms.items():
            metrics[f"{name}_loss"] = term.loss.item()
            metrics |= {f"{name}_{figure}": value for figure, value in term.figures.items()}
        return metrics

    def save_state(self) -> None:
        """Write everything that an exact resume needs, under its step's name once it is whole."""
        whole = self.out / STATE / f"step-{self.progress.step:09d}"
        partial = whole.with_suffix(".partial")
        if self.accelerator.is_main_process and partial.exists():
            shutil.rmtree(partial)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial), safe_serialization=True)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            write_json(partial / "progress.json", self.progress.__dict__)
            partial.rename(whole)
            for older in set(whole.parent.iterdir()) - {whole}:
                shutil.rmtree(older)
        self.accelerator.wait_for_everyone()

    def load_state(self) -> None:
        """Go back to the last checkpoint.

        Raises:
            TrainingError: there is none.
        """
        folder = last_checkpoint(self.out)
        if folder is None:
            raise TrainingError(f"{self.out}: no checkpoint was written yet; start again")
        self.accelerator.load_state(str(folder))
        self.progress = Progress(**json.loads((folder / "progress.json").read_text()))
        if self.accelerator.is_main_process:
            forget_steps_after(self.progress.step, self.out)


def last_checkpoint(out: Path) -> Path | None:
    """Return the folder of a run's last whole checkpoint; None where there is none."""
    whole = (folder for folder in (out / STATE).glob("step-*") if not folder.suffix)
    return max(whole, default=None)


def compile_towers(model: Slimp) -> None:
    """Compile the towers in place, under the names that their weights have.

    Raises:
        TrainingError: there is no C++ compiler.
    """
    if shutil.which("c++") is None:
        raise TrainingError(
            "expected a C++ compiler (c++) for compile = true, found none: install g++, or leave "
            "compile out"
        )
    for tower in (model.image, model.lesion, model.patient):
        if tower is not None:
            tower.compile(dynamic=True)


def has_malignant(rows: Rows) -> npt.NDArray[np.bool_]:
    """Return (N,) bool: rows of patients with a lesion that is known to be malignant."""
    return np.isin(rows.patient, rows.patient[rows.malignant == 1])
