"""After pre-training: classifier, calibration, novelty, quality and the patient-context model.

Heads train on the train split; everything that decides how far an answer may be trusted is fitted
on the cal split, which neither encoders nor heads saw.
"""

import hashlib
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import set_seed
from safetensors.torch import save_file
from torch import nn

from bundle.calibration import (
    CONDITIONS,
    Calibration,
    Condition,
    Extrapolation,
    log_odds,
)
from bundle.encoder import Encoders, unit_norm
from bundle.errors import TrainingError
from bundle.fields import FieldSchema, Record
from bundle.images import ImageInput
from bundle.oddness import MIN_LESIONS, oddness
from cohort.cohort import Cohort
from cohort.info import COHORT_JSON
from training.augment import Augment
from training.calibration import (
    fit_appearance,
    fit_condition,
    fit_guess_weight,
    fit_novelty,
    fit_quality,
    group_folds,
    joint_thresholds,
    operating_points,
    out_of_fold,
)
from training.classifier import (
    ConditionRecords,
    feature_table,
    train_classifier,
    tuned_features,
)
from training.config import Config
from training.context import LesionTable, fit_scale, train_context
from training.data import Rows, Squares, image_loader, load_rows
from training.encoders import TorchEncoders
from training.features import (
    classify_rows,
    describe_rows,
    embed_rows,
    look_at_rows,
    record_features,
)
from training.heads import Classifier, ContextModel
from training.missingness import balance_lesions
from training.model import Slimp
from training.neighbours import Neighbours, fit_extrapolation
from training.passes import Passes
from training.precision import trained_attention
from training.processes import best_device
from training.progress import StageReport, silent
from training.run import (
    TOWERS,
    RunInfo,
    SeenGroups,
    describe_data,
    load_towers,
    read_info,
    read_run_config,
    write_json,
    write_run,
)
from training.sampler import PatientBatches
from training.whitening import Whitening, fit_whitening

FloatArray = npt.NDArray[np.float32]


def fit(
    run: Path, cohort: Cohort, out: Path, *, resume: bool = False, report: StageReport = silent
) -> RunInfo:
    """Fit all heads on a pre-trained run and write a complete run that `export` can read.

    Args:
        run: the pre-trained run; not changed.
        cohort: a labelled cohort with the run's fields.
        out: the new run folder. While the image tower is fine-tuned, what an interruption would
            lose lies beside it, in `OUT.partial`.
        resume: go on from there.
        report: called with stage, done and total.

    Raises:
        TrainingError: the run is unfinished or saw groups of the cal split, `out` exists, a
            split or label is missing, or there is nothing to resume.
    """
    if out.exists() and any(out.iterdir()):
        raise TrainingError(f"{out} exists: name another folder")
    info, config = read_info(run), read_run_config(run).fitted()
    set_seed(config.seed)
    towers = load_towers(run)
    towers.image.read_at(config.image.size_px)
    towers.to(best_device())
    partial = out.with_name(f"{out.name}.partial")
    passes = Passes(partial / "passes.pt", _key(run, cohort), resume=resume)
    fitting = Fitting(towers, info.record_schema, config, cohort, report, passes)
    _refuse_seen(info, fitting.cal)
    fitting.fit()
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", config.model_dump(mode="json"))
    shutil.copyfile(run / "metrics.jsonl", out / "metrics.jsonl")
    fitting.write(out)
    seen = SeenGroups.of({*fitting.train.group_id, *fitting.cal.group_id})
    known = {source.name for source in info.data}
    data = info.data if cohort.info.name in known else (*info.data, describe_data(cohort))
    complete = info.model_copy(
        update={
            "labels": cohort.info.labels,
            "malignant_labels": cohort.info.malignant_labels,
            "seen": (*info.seen, seen),
            "data": data,
        }
    )
    write_run(out, fitting.towers, complete)
    if partial.is_dir():
        shutil.rmtree(partial)
    return complete


def _key(run: Path, cohort: Cohort) -> str:
    """Return what names the run, its configuration and the cohort as it was split."""
    files = (run / TOWERS, run / "config.json", cohort.path / COHORT_JSON)
    return hashlib.sha256(
        b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
    ).hexdigest()


def _refuse_seen(info: RunInfo, cal: Rows) -> None:
    groups = set(cal.group_id)
    known = set[str]().union(*(seen.overlap(groups) for seen in info.seen))
    if known:
        raise TrainingError(
            f"expected a cal split that the run did not see, got {len(known)} of its {len(groups)} "
            "patients or lesions in what trained, chose or calibrated it: give a run from before "
            f"`slimp fit` and the cohort as it was split for it ({info.split_recipe}); where "
            "others bear the same ids, prepare the cohort with ids of its own"
        )


@dataclass
class Part:
    """One split's features and records under each condition."""

    rows: Rows
    embeddings: FloatArray
    extrapolated: list[Record]

    def records(self, condition: Condition) -> list[Record]:
        if condition == "given":
            return self.rows.records
        empty: Record = {}
        return self.extrapolated if condition == "extrapolated" else [empty] * len(self.rows)

    def take(self, chosen: npt.NDArray[np.int64]) -> "Part":
        """Return some rows; `chosen` is (M,) positions."""
        extrapolated = [self.extrapolated[i] for i in chosen.tolist()]
        return Part(self.rows.take(chosen), self.embeddings[chosen], extrapolated)


class Fitting:
    """The steps of `fit` and what they share."""

    def __init__(
        self,
        towers: Slimp,
        schema: FieldSchema,
        config: Config,
        cohort: Cohort,
        report: StageReport,
        passes: Passes | None = None,
    ) -> None:
        self.passes = passes
        self.towers, self.schema, self.config, self.cohort = towers, schema, config, cohort
        self.device = next(towers.parameters()).device
        self.report = report
        self.labels = cohort.info.labels
        self.malignant = np.isin(self.labels, cohort.info.malignant_labels)
        self.train = _labelled(cohort, "train")
        self.cal = _labelled(cohort, "cal")
        self.squares = {
            name: self._read(rows, config.image.input)
            for name, rows in (("train", self.train), ("cal", self.cal))
        }
        self.classifier = self._new_classifier()
        self.context: ContextModel | None = None
        # As they were before any label: cross-fitting begins there.
        self._unlabelled = {k: v.clone() for k, v in _record_towers(towers).items()}

    def _read(self, rows: Rows, spec: ImageInput) -> Squares:
        return Squares(self.cohort, rows, spec, keep_mib=self.config.batch.kept_mib)

    def _new_classifier(self) -> Classifier:
        settings = self.config.fit
        return Classifier(
            self.towers.embedding_dim,
            len(self.labels),
            hidden=settings.hidden,
            dropout=settings.dropout,
        ).to(self.device)

    def fit(self, *, in_context: bool = True) -> None:
        """Run every step in order.

        Args:
            in_context: whether a context model is wanted, where the cohort has patients for it.
        """
        train, cal, extrapolation = self._embed()
        if self.config.fit.tune_image:
            tuned_in = Whitening.none(self.towers.embedding_dim, self.whitening.centre)
            self.towers.image.use(tuned_in)
            self._tune(train)
            train, cal, extrapolation = self._embed()
            self.classifier.read_from(self.whitening, tuned_in)
        else:
            self._train_on_features(self.towers, self.classifier, train, np.arange(len(train.rows)))
        self.novelty = fit_novelty(train.embeddings, train.rows.label)
        self.appearance = fit_appearance(describe_rows(self.cohort, train.rows))
        lesions = cal.take(cal.rows.one_a_lesion(self.config.seed))
        self.calibration = self._calibrate(train, cal, lesions, extrapolation)
        if in_context and self.cohort.has_patients and self.malignant.any():
            self.context = self._fit_context(train, lesions)

    def _encoders(self) -> TorchEncoders:
        return TorchEncoders(self.towers, self.classifier, self.context)

    def _embed(self) -> tuple[Part, Part, Extrapolation]:
        """Return both splits' features in the train split's metric, and extrapolated records."""
        encoders = self._encoders()
        self.towers.image.use(Whitening.none(self.towers.embedding_dim))
        train, cal = (
            embed_rows(encoders, self.squares[name], report=partial(self.report, f"embed {name}"))
            for name in ("train", "cal")
        )
        self.whitening = fit_whitening(train, self.train.lesion_id)
        self.towers.image.use(self.whitening)
        train, cal = self.whitening.apply(train), self.whitening.apply(cal)
        reference = Neighbours(self.train, train)
        scores, _ = reference.search(self.cal, cal, self.config.fit.neighbours)
        settings = fit_extrapolation(scores, self.config.fit)
        parts = [
            Part(
                rows,
                embeddings,
                reference.extrapolated(rows, embeddings, self.schema, settings),
            )
            for rows, embeddings in ((self.train, train), (self.cal, cal))
        ]
        return parts[0], parts[1], settings

    def _train_on_features(
        self, towers: Slimp, classifier: Classifier, part: Part, index: npt.NDArray[np.int64]
    ) -> None:
        settings = self.config.fit
        rows = part.rows.take(index)
        records = self._conditions(rows, [part.extrapolated[i] for i in index])
        train_classifier(
            towers,
            classifier,
            feature_table(part.embeddings[index], settings.batch, self.config.seed),
            rows,
            records,
            settings,
            tune=False,
            steps_per_epoch=-(-len(index) // settings.batch),
            seed=self.config.seed,
            report=partial(self.report, "classifier"),
        )

    def _conditions(self, rows: Rows, extrapolated: list[Record]) -> ConditionRecords:
        balance = self.config.fit.balance_missing
        return ConditionRecords.of(rows, extrapolated, self.schema, balance_missing=balance)

    def _tune(self, train: Part) -> None:
        config = self.config
        batches = PatientBatches(
            np.arange(len(train.rows)), patients=config.fit.tune_batch, lesions=1, seed=config.seed
        )
        side = config.image.resize_px
        square, squares = ImageInput(size_px=side, resize_px=side), self.squares["train"]
        if square != squares.spec:
            squares = self._read(train.rows, square)
        loader = image_loader(squares, batches=batches, workers=config.batch.workers)
        augment: nn.Module = Augment(config.fit.augment or config.augment, config.image.input)
        with trained_attention(self.towers.image.backbone, config.precision, self.device):
            train_classifier(
                self.towers,
                self.classifier,
                tuned_features(
                    self.towers, loader, augment, batches, config.precision, config.fit.tune_mixup
                ),
                train.rows,
                self._conditions(train.rows, train.extrapolated),
                config.fit,
                tune=True,
                steps_per_epoch=len(batches),
                seed=config.seed,
                passes=self.passes,
                report=partial(self.report, "fine-tune"),
            )

    def _logits(self, part: Part, condition: Condition) -> FloatArray:
        encoders = self._encoders()
        records = record_features(encoders, part.records(condition), self.schema)
        return classify_rows(encoders, part.embeddings, records)

    def _calibrate(
        self, train: Part, cal: Part, lesions: Part, extrapolation: Extrapolation
    ) -> Calibration:
        """Return what the cal split fits, most of it one image of each of its lesions."""
        # Of lesions, as everything here: how often one is photographed is no prevalence.
        of_lesions = train.rows.label[train.rows.one_a_lesion(self.config.seed)]
        counts = np.bincount(of_lesions, minlength=len(self.labels))
        prior = (counts / counts.sum()).astype(np.float32)
        label, groups = lesions.rows.label, lesions.rows.group_id
        malignant = self.malignant[label]
        fold = group_folds(groups, malignant, self.config.seed)
        logits = {condition: self._logits(lesions, condition) for condition in CONDITIONS}
        own, filled = logits["missing"], logits["extrapolated"]
        weight = fit_guess_weight(own, filled, label, prior, groups)
        extrapolation = extrapolation.model_copy(update={"weight": weight})
        logits["extrapolated"] = extrapolation.weigh(own, filled)
        unseen = {c: out_of_fold(logits[c], label, prior, fold) for c in CONDITIONS}
        fitted = {
            c: fit_condition(logits[c], unseen[c], label, prior, alpha=self.config.fit.alpha)
            for c in CONDITIONS
        }
        quality, described = look_at_rows(self.cohort, cal.rows)
        novel, unlike = joint_thresholds(
            [self.novelty.score(cal.embeddings), self.appearance.score(described)],
            self.config.fit.novel_share,
        )
        calibration = Calibration(
            conditions=fitted,
            prevalence={k: float(p) for k, p in zip(self.labels, prior, strict=True)},
            quality=fit_quality(quality, self.config.image.size_px),
            novelty_threshold=novel,
            appearance_threshold=unlike,
            extrapolation=extrapolation,
            oddness_quantiles=self._oddness(lesions),
        )
        points = [
            point
            for condition in CONDITIONS
            for point in operating_points(
                self._malignancy(calibration, logits[condition], condition),
                unseen[condition][:, self.malignant].sum(1),
                malignant,
                fold,
                condition,
            )
        ]
        return calibration.model_copy(update={"operating_points": tuple(points)})

    def _malignancy(
        self, calibration: Calibration, logits: FloatArray, condition: Condition
    ) -> FloatArray:
        return calibration.probabilities(logits, condition)[:, self.malignant].sum(1)

    def _oddness(self, cal: Part) -> tuple[float, ...]:
        """Return 101 quantiles of how odd calibration patients' benign lesions are."""
        if not self.cohort.has_patients:
            return ()
        values: list[float] = []
        units = unit_norm(cal.embeddings)
        benign = ~self.malignant[cal.rows.label]
        for patient in np.unique(cal.rows.patient):
            own = cal.rows.patient == patient
            if own.sum() >= MIN_LESIONS:
                values.extend(oddness(units[own])[benign[own]].tolist())
        if not values:
            return ()
        return tuple(float(q) for q in np.quantile(values, np.linspace(0, 1, 101)))

    def _fit_context(self, train: Part, cal: Part) -> ContextModel:
        """Return the context model; `cal` has one image of every lesion."""
        settings = self.config.fit
        model = ContextModel(
            self.towers.embedding_dim, width=settings.context_width, dropout=settings.dropout
        )
        given, missing = self._cross_fitted(train)
        lesions = train.rows.one_a_lesion(self.config.seed)
        part, malignant = train.take(lesions), self.malignant[train.rows.label[lesions]]
        records, weight = part.rows.records, np.ones(len(lesions), np.float32)
        if settings.balance_missing:
            rng = np.random.default_rng(self.config.seed)
            records, weight = balance_lesions(
                records, self.schema, part.rows.patient, malignant, rng
            )
        table = self._lesion_table(part, records, given[lesions], missing[lesions])
        train_context(
            model,
            table,
            weight,
            settings,
            seed=self.config.seed,
            report=partial(self.report, "context"),
        )
        # It is small: its batches are put together, and learnt, on the processor.
        model.to(self.device)
        alone = self._alone(self._logits(cal, "given"), "given")
        held_out = self._lesion_table(cal, cal.rows.records, alone, alone)
        encoders = TorchEncoders(self.towers, self.classifier, model)
        answers = context_answers(encoders, held_out)
        several = held_out.in_company
        fit_scale(model, answers[several], alone[several], held_out.malignant[several])
        return model

    def _alone(self, logits: FloatArray, condition: Condition) -> FloatArray:
        return log_odds(self._malignancy(self.calibration, logits, condition))

    def _cross_fitted(self, train: Part) -> tuple[FloatArray, FloatArray]:
        """Return the train lesions' log odds by heads and record towers that did not see them.

        The final ones know their training lesions' labels too well to teach the context model
        what an answer on a new lesion looks like. An image tower that was fine-tuned has seen
        them, and is not trained anew for every fold: `fit_scale` bounds what that makes of the
        context model, on lesions that taught nothing.
        """
        fold = np.random.default_rng(self.config.seed).integers(
            0, self.config.fit.folds, train.rows.patient.max() + 1
        )[train.rows.patient]
        given = np.zeros(len(train.rows), np.float32)
        missing = np.zeros(len(train.rows), np.float32)
        state = {k: v.clone() for k, v in self.towers.state_dict().items()}
        final = self.classifier
        for number in range(self.config.fit.folds):
            self.classifier = self._new_classifier()
            self.towers.load_state_dict(self._unlabelled, strict=False)
            self._train_on_features(
                self.towers, self.classifier, train, np.flatnonzero(fold != number)
            )
            out = fold == number
            given[out] = self._alone(self._logits(train, "given"), "given")[out]
            missing[out] = self._alone(self._logits(train, "missing"), "missing")[out]
        self.towers.load_state_dict(state)
        self.classifier = final
        return given, missing

    def _lesion_table(
        self, part: Part, records: list[Record], given: FloatArray, missing: FloatArray
    ) -> LesionTable:
        return LesionTable(
            image=part.embeddings,
            records=record_features(self._encoders(), records, self.schema),
            malignancy_logit=given,
            image_logit=missing,
            malignant=self.malignant[part.rows.label],
            patient=part.rows.patient,
        )

    def write(self, out: Path) -> None:
        """Write what was fitted."""
        save_file(_weights(self.classifier), out / "classifier.safetensors")
        if self.context is not None:
            save_file(_weights(self.context), out / "context.safetensors")
        write_json(out / "calibration.json", self.calibration.model_dump(mode="json"))
        for model in (self.novelty, self.appearance):
            (out / model.FILE).write_bytes(model.to_bytes())


def context_answers(encoders: Encoders, table: LesionTable) -> FloatArray:
    """Return (N,) float32 malignancy log odds of every lesion among its patient's others."""
    answers = np.zeros(len(table.image), np.float32)
    for own in table.patients():
        answers[own] = encoders.context(
            table.image[own],
            table.records.lesion[own],
            lesion_present=table.records.lesion_present[own],
            malignancy_logit=table.malignancy_logit[own],
            patient_record=table.records.patient[own[0]],
            patient_present=bool(table.records.patient_present[own[0]]),
        )
    return answers


def _labelled(cohort: Cohort, split: str) -> Rows:
    rows = load_rows(cohort, [split], cohort.info.labels)
    rows = rows.take(rows.label >= 0)
    absent = sorted(set(range(len(cohort.info.labels))) - set(rows.label.tolist()))
    if absent:
        names = ", ".join(cohort.info.labels[i] for i in absent)
        raise TrainingError(
            f"the {split} split has no lesion labelled {names}: fitting needs every label in train "
            "and cal; prepare the cohort with another --split-seed, or leave out a label too rare "
            "for both (slimp prepare --without-label)"
        )
    return rows


def _record_towers(towers: Slimp) -> dict[str, torch.Tensor]:
    """Return the state of the record towers alone, by its names in all towers."""
    own = ("lesion.", "patient.")
    return {k: v for k, v in towers.state_dict().items() if k.startswith(own)}


def _weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.contiguous().cpu() for k, v in module.state_dict().items()}
