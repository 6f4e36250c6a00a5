"""How good a fitted run or a bundle is on a cohort: figures, tables, plots and predictions.

Every figure is of all images of the chosen splits, those that a service would call not assessable
included; what cannot be computed is null with the reason. Patients (lesions where there are no
patient ids) are resampled for the intervals, so that a patient's pictures stand or fall together.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from bundle.errors import CohortError, SeenGroups, TrainingError
from bundle.fields import Record
from bundle.quality import quality_reasons
from bundle.store import staged_folder
from cohort.cohort import Cohort
from cohort.splits import SPLITS
from index.catalogue import Catalogue
from training.anchor import Anchor, compare_with_anchor, read_anchor
from training.company import judge_company, lesion_table
from training.conditions import (
    CONDITION_NAMES,
    Accepted,
    Answers,
    absent,
    accept_records,
    answer,
    compare_fields,
    hide_values,
    neighbours_records,
)
from training.data import Rows, Squares, load_rows
from training.duplicates import describe_near_duplicates, find_near_duplicates, thumbnails
from training.encoders import TorchEncoders
from training.extrapolation_study import believing, guess_accuracy, study
from training.features import embed_rows, look_at_rows
from training.fitted import FittedModel, open_fitted
from training.frozen import KEEP_MIB, Frozen, FrozenFeatures
from training.harm import harm_and_help, worst_harms
from training.missing_figures import blanked, indicators_alone
from training.occlusion import occlusion_page
from training.pages import attention_page, frozen_pages, harm_page
from training.progress import StageReport, silent
from training.report import PREDICTED, Evaluation, write_report
from training.resampling import SAMPLES
from training.scores import MEANING, Raw, Scored, Truth, compare, find_truth, headline, null, score
from training.subgroups import subgroup_figures

FloatArray = npt.NDArray[np.float32]
SEED = 0
UNLIKE = ("novelty", "appearance")
HIDDEN_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
SHOWN_HARMS = 12
# The train split is compared where frozen features learn from it.
HELD_OUT = ("val", "cal")
NO_CATALOGUE = "no catalogue"
NO_FIELDS = "the cohort has no metadata field that the model reads"
DIFFERENCES = (("given", "image"), ("given", "metadata"), ("extrapolated", "image"))
CALIBRATED_AS = {
    "image": "missing",
    "metadata": "given: metadata without an image has no calibration of its own",
    "given": "given; missing where a record is empty",
    "extrapolated": "extrapolated; missing where neighbours abstain on every field",
}


def evaluate(
    model: Path,
    cohort: Cohort,
    out: Path,
    *,
    splits: Sequence[str] = ("test",),
    catalogue: Path | None = None,
    against: Path | None = None,
    allow_seen: bool = False,
    without_seen: bool = False,
    variant: str | None = None,
    report: StageReport = silent,
) -> dict[str, Any]:
    """Evaluate a model on a cohort, write the folder `out` and return `metrics.json`'s content.

    Args:
        model: a fitted run or a bundle.
        cohort: a cohort, with the model's labels or others.
        out: the folder that is made; must not exist or be empty.
        splits: any of train, val, cal, test, or "all".
        catalogue: the bundle's catalogue, for extrapolated metadata.
        against: another's answers to the same images, an `.npz` as `training/anchor.py` says.
        allow_seen: evaluate on groups that the model was shown, and mark every table.
        without_seen: leave those groups out instead, and say how many images that were.
        variant: precision of a bundle's image encoder; None takes the bundle's choice.
        report: called with stage, done and total.

    Raises:
        SeenGroups: the model was shown some of these groups, or does not say.
        CohortError: there is no such split, or the splits are empty.
        TrainingError: the model or `against` cannot be used.
        CatalogueError: the catalogue is not the bundle's.
    """
    with staged_folder(out) as stage:
        fitted = open_fitted(model, variant)
        rows = _choose_rows(cohort, splits, fitted)
        chosen_images = len(rows)
        if without_seen:
            rows = leave_seen_out(fitted, rows)
        seen = check_seen(fitted, set(rows.group_id), allow_seen=allow_seen)
        anchor = None if against is None else read_anchor(against, fitted.labels)
        judging = Judging(fitted, cohort, rows, report)
        evaluation = judging.run(catalogue, anchor)
        chosen = list(dict.fromkeys(rows.split.tolist()))
        metrics = {
            "model": _describe_model(fitted),
            "cohort": judging.describe_cohort(chosen),
            "seen": {
                **seen,
                "images_left_out": chosen_images - len(rows),
                "unseen_images_elsewhere": _unseen_elsewhere(fitted, cohort, chosen),
            },
            **evaluation.metrics,
        }
        write_report(stage, evaluation.with_metrics(metrics))
    return metrics


def _choose_rows(cohort: Cohort, splits: Sequence[str], fitted: FittedModel) -> Rows:
    chosen = SPLITS if "all" in splits else splits
    if unknown := [split for split in chosen if split not in SPLITS]:
        raise CohortError(f"expected splits among {', '.join(SPLITS)} or all, got {unknown[0]!r}")
    rows = load_rows(cohort, chosen, fitted.labels)
    if not len(rows):
        raise CohortError(
            f"{cohort.info.name}: expected images in {', '.join(chosen) or 'no split'}, got none; "
            "--split all takes every image"
        )
    return rows


def leave_seen_out(fitted: FittedModel, rows: Rows) -> Rows:
    """Return the rows of groups that the model was not shown.

    Raises:
        SeenGroups: the model does not say what it was shown, or was shown all of them.
    """
    overlap = fitted.overlap(set(rows.group_id))
    if overlap is None:
        raise SeenGroups("expected a model that says which groups it was shown, this one does not")
    kept = rows.take(np.array([group not in overlap for group in rows.group_id], np.bool_))
    if not len(kept):
        raise SeenGroups(f"the model was shown all {len(overlap)} of these groups in training")
    return kept


def _unseen_elsewhere(fitted: FittedModel, cohort: Cohort, chosen: Sequence[str]) -> int | None:
    """Return how many images other splits hold, where the model saw none; None where it did."""
    others = [split for split in SPLITS if split not in chosen]
    rows = load_rows(cohort, others, fitted.labels) if others else None
    if rows is None or fitted.overlap(set(rows.group_id)) != set():
        return None
    return len(rows)


def check_seen(fitted: FittedModel, groups: set[str], *, allow_seen: bool) -> dict[str, Any]:
    """Return how many groups the model was shown, and the mark that tables then carry.

    Raises:
        SeenGroups: some were, or the model does not say, and that is not allowed.
    """
    overlap = fitted.overlap(groups)
    if overlap is not None and not overlap:
        return {"groups": 0, "mark": None}
    if overlap is None:
        count, mark = None, "may include groups seen in training: the bundle does not say"
        problem = "this bundle does not say which groups it was shown"
    else:
        count, mark = len(overlap), "includes groups seen in training"
        problem = f"the model was shown {len(overlap)} of these {len(groups)} groups in training"
    if not allow_seen:
        raise SeenGroups(
            f"expected groups that training did not see: {problem}; evaluate another split or "
            "cohort, leave them out with --without-seen, or allow it with --allow-seen, which "
            "marks every table (where other people bear the same ids, prepare the cohort with ids "
            "of its own)"
        )
    return {"groups": count, "mark": mark}


def _describe_model(fitted: FittedModel) -> dict[str, Any]:
    return {
        "kind": fitted.kind,
        "id": fitted.id,
        "variant": fitted.variant,
        "labels": list(fitted.labels),
        "malignant_labels": list(fitted.malignant_labels),
    }


@dataclass(frozen=True)
class Judged:
    """The answers and figures of the conditions that there are, and why others are not."""

    answers: dict[str, Answers]
    scored: dict[str, Scored]
    reasons: dict[str, str]

    def figures(self) -> dict[str, Any]:
        return {
            name: null(self.reasons[name])
            if name in self.reasons
            else {"calibrated_as": CALIBRATED_AS[name], **self.scored[name].figures}
            for name in CONDITION_NAMES
        }

    def differences(self) -> dict[str, Any]:
        return {
            f"{first} - {second}": null(self._reason(first, second))
            if first in self.reasons or second in self.reasons
            else compare(self.scored[first].draws, self.scored[second].draws)
            for first, second in DIFFERENCES
        }

    def _reason(self, *names: str) -> str:
        return next(self.reasons[name] for name in names if name in self.reasons)


@dataclass(frozen=True)
class Guessed:
    """What a catalogue says: N records of neighbours' answers, and the records it holds."""

    records: list[Record]
    known: list[Record]


class Judging:
    """The steps of `evaluate` on one model and one cohort, and what they share."""

    def __init__(
        self, fitted: FittedModel, cohort: Cohort, rows: Rows, report: StageReport = silent
    ) -> None:
        self.fitted, self.cohort, self.rows, self.report = fitted, cohort, rows, report
        labels = cohort.table()["label"].take(rows.position).to_pylist()
        self.raw = Raw(labels, rows.malignant, rows.group_id)
        self.accepted: Accepted = accept_records(rows.records, cohort.schema, fitted.schema)
        self.truth: Truth = find_truth(
            self.raw,
            own=cohort.info.labels,
            labels=fitted.labels,
            malignant=fitted.malignant,
            prior=fitted.prior,
            samples=SAMPLES,
            seed=SEED,
        )

    def run(self, catalogue: Path | None, anchor: Anchor | None) -> Evaluation:
        """Return everything that is measured."""
        squares = Squares(self.cohort, self.rows, self.fitted.image_input, keep_mib=KEEP_MIB)
        embeddings = embed_rows(self.fitted.encoders, squares, report=partial(self.report, "embed"))
        guessed = self._guess(embeddings, catalogue)
        judged = self._judge(embeddings, guessed)
        asking = FrozenFeatures(self.fitted, self.cohort, self.rows, self.report)
        frozen = asking.measure(squares, embeddings, self.accepted.records, self.truth.labelled)
        metrics = {
            "bootstrap": {"samples": SAMPLES, "seed": SEED, "interval": "95 % percentile"},
            "meaning": MEANING,
            "fields": self._describe_fields(),
            "assessable": self._assess(embeddings),
            "conditions": judged.figures(),
            "differences": judged.differences(),
            "harm": harm_and_help(judged.answers, self.truth),
            "subgroups": subgroup_figures(
                {name: judged.answers[name] for name in PREDICTED if name in judged.answers},
                # The cohort's own: whom a model serves worse does not depend on what it reads.
                self.rows.records,
                self.raw,
                self.truth,
                self.fitted.calibration,
                samples=SAMPLES,
                seed=SEED,
            ),
            "against": null("no other answers given")
            if anchor is None
            else self._against(anchor, judged),
            "extrapolation": self._extrapolation(embeddings, guessed, judged),
            "missing_metadata": self._hide(embeddings),
            "missingness": self._missingness(embeddings, asking.reference),
            "patients": self._patients(embeddings),
            "frozen": frozen.figures if isinstance(frozen, Frozen) else null(frozen),
            "near_duplicates": self._find_near_duplicates(squares),
        }
        pages = self._pages(frozen, squares, embeddings, judged, guessed)
        draws = {name: scored.draws for name, scored in judged.scored.items()}
        return Evaluation(metrics, self.rows, self.raw, self.truth, judged.answers, draws, pages)

    def _guess(self, embeddings: FloatArray, path: Path | None) -> Guessed | None:
        if path is None:
            return None
        if self.fitted.kind != "bundle":
            raise TrainingError(
                "expected a bundle with the catalogue, got a run: a catalogue holds one bundle's "
                "vectors; export the run and evaluate its bundle"
            )
        model = self.fitted
        with Catalogue.open(path, bundle_id=model.id, variant=model.variant) as catalogue:
            records = neighbours_records(
                model,
                self.cohort,
                self.rows,
                embeddings,
                catalogue,
                report=partial(self.report, "extrapolate"),
            )
            return Guessed(records, catalogue.records())

    def _extrapolation(
        self, embeddings: FloatArray, guessed: Guessed | None, judged: Judged
    ) -> dict[str, Any]:
        if guessed is None:
            return null(NO_CATALOGUE)
        fields, given = self.accepted.fields, self.accepted.records
        found = compare_fields(fields, given, guessed.records)
        commonest = guess_accuracy(fields, given, guessed.known)
        for name, figures in found.items():
            figures["commonest_value_right"] = commonest[name]
        shares = [figures["fill_share"] for figures in found.values()]
        return {
            "fields": found,
            "filled_share": float(np.mean(shares)) if shares else None,
            "study": study(
                self.fitted,
                embeddings,
                judged.answers,
                guessed.records,
                guessed.known,
                self.truth,
                seed=SEED,
            ),
        }

    def _judge(self, embeddings: FloatArray, guessed: Guessed | None) -> Judged:
        given, model = self.accepted.records, self.fitted
        answers = {"image": answer(model, embeddings, absent(given), "missing")}
        reasons: dict[str, str] = {}
        if self.accepted.fields:
            answers["metadata"] = answer(model, embeddings, given, "given", modality="record")
            answers["given"] = answer(model, embeddings, given, "given")
        else:
            reasons |= dict.fromkeys(("metadata", "given"), NO_FIELDS)
        if guessed is None:
            reasons["extrapolated"] = NO_CATALOGUE
        else:
            answers["extrapolated"] = answer(model, embeddings, guessed.records, "extrapolated")
        scored: dict[str, Scored] = {}
        for number, (name, answered) in enumerate(answers.items(), 1):
            scored[name] = score(answered, self.truth, model.calibration)
            self.report("score", number, len(answers))
        return Judged(answers, scored, reasons)

    def _against(self, anchor: Anchor, judged: Judged) -> dict[str, Any]:
        return compare_with_anchor(
            anchor,
            self.rows.image_id,
            {name: answered.probabilities for name, answered in judged.answers.items()},
            self.truth,
            self.rows.group_id,
            samples=SAMPLES,
            seed=SEED,
        )

    def _assess(self, embeddings: FloatArray) -> dict[str, Any]:
        """Return the share of images that a service would not judge, and why."""
        calibration, count = self.fitted.calibration, len(self.rows)
        measured, described = look_at_rows(self.cohort, self.rows)
        reasons = [quality_reasons(scores, calibration.quality) for scores in measured]
        unlike: dict[str, npt.NDArray[np.bool_]] = {}
        if self.fitted.novelty is not None:
            score = self.fitted.novelty.score(embeddings)
            unlike["novelty"] = score > calibration.novelty_threshold
        look = calibration.appearance_threshold
        if self.fitted.appearance is not None and look is not None:
            unlike["appearance"] = self.fitted.appearance.score(described) > look
        bad = np.array([bool(found) for found in reasons])
        by_reason = {
            reason: sum(reason in found for found in reasons) / count
            for reason in sorted({reason for found in reasons for reason in found})
        }
        shares = {
            name: {"value": float(unlike[name].mean())}
            if name in unlike
            else null(f"the bundle has no {name} model")
            for name in UNLIKE
        }
        refused = np.any([bad, *unlike.values()], axis=0)
        return {
            "not_assessable": {"value": float(refused.mean())},
            "quality": {"value": float(bad.mean())},
            "quality_by_reason": by_reason,
            **shares,
        }

    def _hide(self, embeddings: FloatArray) -> list[dict[str, Any]]:
        """Return the figures of image and metadata as ever more metadata are hidden."""
        names = [field.name for field in self.accepted.fields]
        curve = []
        # Of few columns, a half and three quarters may be the same ones.
        shares = {round(share * len(names)) / len(names) for share in HIDDEN_SHARES if names}
        for share in sorted(shares):
            seen = hide_values(self.accepted.records, names, share, seed=SEED)
            answered = answer(self.fitted, embeddings, seen, "given")
            figures = headline(answered.probabilities, self.truth)
            curve.append({"hidden_share": share, **figures})
        return curve

    def _missingness(self, embeddings: FloatArray, train: Rows) -> dict[str, Any]:
        fields, records = self.accepted.fields, self.accepted.records
        known = accept_records(train.records, self.cohort.schema, self.fitted.schema).records
        return {
            "indicators_alone": indicators_alone(fields, known, train.label, records, self.truth),
            "blanked": blanked(
                self.fitted,
                embeddings,
                records,
                fields,
                self.rows.group_id,
                samples=SAMPLES,
                seed=SEED,
            ),
        }

    def _patients(self, embeddings: FloatArray) -> dict[str, Any]:
        if not self.cohort.has_patients:
            return null("the cohort has no patient ids")
        if not self.fitted.malignant.any():
            return null("the model has no malignant label")
        if not (self.rows.malignant >= 0).any():
            return null("the cohort does not say which lesions are malignant")
        table = lesion_table(self.fitted, self.rows, embeddings, self.accepted.records)
        return judge_company(self.fitted.encoders, table, samples=SAMPLES, seed=SEED)

    def _find_near_duplicates(self, squares: Squares) -> dict[str, Any]:
        """Return by split of other groups which evaluated pictures it shows too."""
        shown, own = thumbnails(squares), set(self.rows.group_id)
        found: dict[str, Any] = {}
        for number, split in enumerate(HELD_OUT, 1):
            rows = load_rows(self.cohort, [split], self.fitted.labels)
            rows = rows.take(np.array([g not in own for g in rows.group_id], np.bool_))
            if len(rows):
                known = thumbnails(Squares(self.cohort, rows, self.fitted.image_input))
                found[split] = describe_near_duplicates(
                    find_near_duplicates(shown, known), self.rows.image_id, rows.image_id, split
                )
            self.report("near duplicates", number, len(HELD_OUT))
        return found

    def _pages(
        self,
        frozen: Frozen | str,
        squares: Squares,
        embeddings: FloatArray,
        judged: Judged,
        guessed: Guessed | None,
    ) -> dict[str, Figure]:
        """Return the pages of pictures that there is something to show on, by file name."""
        pages: dict[str, Figure] = {}
        if isinstance(frozen, Frozen):
            pages |= frozen_pages(frozen, self.cohort, self.rows, squares, self.fitted.labels)
        if guessed is not None:
            pages |= self._harms(squares, embeddings, judged.answers["image"], guessed.records)
        if isinstance(self.fitted.encoders, TorchEncoders):
            page = attention_page(self.fitted.encoders.towers.image, squares, self.rows)
            pages["attention.png"] = page
        if self.fitted.malignant.any():
            pages["occlusion.png"] = occlusion_page(self.fitted, squares, self.rows)
        return pages

    def _harms(
        self, squares: Squares, embeddings: FloatArray, image: Answers, guessed: list[Record]
    ) -> dict[str, Figure]:
        """Return the page of what neighbours' metadata does wrong, none where it does nothing so.

        It is taken as if given: at the weight that is served, often 0, there may be no harm to see.
        """
        believed = answer(believing(self.fitted), embeddings, guessed, "extrapolated")
        answers = {"image": image, "neighbours": believed}
        worst = worst_harms(answers, self.truth, count=SHOWN_HARMS)
        if not len(worst):
            return {}
        weight = self.fitted.calibration.extrapolation.weight
        page = harm_page(worst, squares, answers, guessed, self.truth, weight=weight)
        return {"harm.png": page}

    def _describe_fields(self) -> dict[str, Any]:
        return {
            "used": [field.name for field in self.accepted.fields],
            "left_out": self.accepted.left_out,
            "values_not_accepted": self.accepted.rejected,
            "images_without_metadata": sum(not record for record in self.accepted.records),
        }

    def describe_cohort(self, splits: list[str]) -> dict[str, Any]:
        """Return the counts of what is evaluated."""
        rows = self.rows
        ids = "\n".join(sorted(rows.image_id))
        return {
            "name": self.cohort.info.name,
            "splits": splits,
            "images": len(rows),
            "image_ids_sha256": hashlib.sha256(ids.encode()).hexdigest(),
            "lesions": len(set(rows.lesion_id)),
            "groups": len(set(rows.group_id)),
            "group": "patient" if self.cohort.has_patients else "lesion",
            "unlabelled": sum(name is None for name in self.raw.names),
            "malignant": int((rows.malignant == 1).sum()),
            "malignant_unknown": int((rows.malignant < 0).sum()),
            "labels": list(self.cohort.info.labels),
            "malignant_labels": list(self.cohort.info.malignant_labels),
        }
