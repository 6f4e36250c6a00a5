"""What a model's answers are worth: figures with intervals, and paired differences of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.calibration import Calibration
from training.conditions import Answers
from training.data import number_labels
from training.metrics import balanced_decision
from training.resampling import (
    Draws,
    Estimate,
    Resampling,
    auroc_of,
    average_precision_of,
    balanced_accuracy_of,
    calibration_error_of,
    estimate,
    macro_auroc_of,
    mean_of,
    mean_of_known,
    means_by_label_of,
    partial_auroc_of,
    sensitivity_of,
)

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

MELANOMA_NAMES = frozenset({"mel", "melanoma"})
# Actinic keratosis and intraepithelial carcinoma, which data sets count differently.
AKIEC_NAMES = frozenset({"akiec", "ak", "ack", "actinic keratosis"})
SPECIFICITY = 0.95
SENSITIVITY = 0.8
RARE = (
    "malignant_auprc",
    "malignant_pauc_above_80_sensitivity",
    "sensitivity_at_95_specificity",
)
COMPARED = ("balanced_accuracy", "macro_auroc", "malignant_auroc", "melanoma_auroc")

MEANING = {
    "balanced_accuracy": "mean recall over the labels that occur; decision: the largest of "
    "probability / training prevalence, as if all labels were equally frequent",
    "accuracy_most_probable": "share of images whose most probable label is right",
    "balanced_accuracy_most_probable": "mean recall of the most probable label",
    "macro_auroc": "mean one-against-rest AUROC over the labels that occur",
    "malignant_auroc": "AUROC of the malignant labels' probability together",
    "malignant_auroc_without_akiec": "the same without images and probability of "
    "actinic keratosis (akiec, ak, ack), which data sets count differently",
    "melanoma_auroc": "AUROC of the melanoma label's probability against all other images",
    "malignant_auprc": "average precision of the malignant labels' probability together; by chance "
    "it is the share of malignant images",
    "malignant_pauc_above_80_sensitivity": "area of the ROC curve of malignancy above 80 % "
    "sensitivity, from 0 to 0.2 (the ISIC 2024 challenge's metric)",
    "sensitivity_at_95_specificity": "malignancy; the threshold is chosen on these images, anew in "
    "each resample",
    "expected_calibration_error": "15 equally filled bins of the largest probability, filled anew "
    "in each resample, which makes the error larger: the value may lie low in its interval",
    "brier": "mean squared distance from the probabilities to the true label",
    "conformal_coverage": "share of images whose prediction set holds the true label",
    "conformal_set_size": "mean number of labels in the prediction set",
}


@dataclass(frozen=True)
class Question:
    """A yes-or-no question about some of the rows.

    Attributes:
        rows: (M,) int64, the rows whose answer is known.
        positive: (M,) bool, the answer.
        labels: (C,) bool, the labels whose probabilities together say yes.
        resampling: of the M rows' groups.
    """

    rows: IntArray
    positive: BoolArray
    labels: BoolArray
    resampling: Resampling

    def score(self, probabilities: FloatArray) -> FloatArray:
        """Return (M,) float32 from (N, C) probabilities."""
        summed: FloatArray = probabilities[self.rows][:, self.labels].sum(1)
        return summed

    def draws(self, probabilities: FloatArray) -> Draws:
        """Return the draws of the AUROC."""
        return self.resampling.draws(auroc_of(self.positive, self.score(probabilities)))


@dataclass(frozen=True)
class Labelled:
    """The rows that carry one of the model's labels: (M,) int64 rows and labels."""

    rows: IntArray
    label: IntArray
    resampling: Resampling


@dataclass(frozen=True)
class Truth:
    """What is known of the rows; a text says why something is not.

    Attributes:
        labels: the model's C labels.
        prior: (C,) float32, their shares in training.
        labelled: the rows with a label of the model's.
        questions: by metric.
    """

    labels: tuple[str, ...]
    prior: FloatArray
    labelled: Labelled | str
    questions: dict[str, Question | str]


@dataclass(frozen=True)
class Raw:
    """What a cohort says of N rows.

    Attributes:
        names: N labels as the cohort writes them, None where there is none.
        malignant: (N,) int64, 1, 0, or -1 where it is not known.
        groups: N patients (or lesions).
    """

    names: list[str | None]
    malignant: IntArray
    groups: list[str]


def find_truth(
    raw: Raw,
    *,
    own: Sequence[str],
    labels: tuple[str, ...],
    malignant: BoolArray,
    prior: FloatArray,
    samples: int,
    seed: int,
) -> Truth:
    """Return what can be asked of a model with these labels on rows of this cohort.

    Args:
        raw: the rows.
        own: the cohort's labels.
        labels: the model's C labels.
        malignant: (C,) bool, the model's malignant labels.
        prior: (C,) float32, the labels' shares in training.
        samples: resamplings of the groups.
        seed: of the resampling.
    """

    def resampled(rows: IntArray) -> Resampling:
        return Resampling([raw.groups[i] for i in rows], samples=samples, seed=seed)

    def ask(known: BoolArray, positive: BoolArray, summed: BoolArray) -> Question | str:
        rows = np.flatnonzero(known)
        if not len(rows):
            return "the cohort does not say it of any of these images"
        return Question(rows, positive[rows], summed, resampled(rows))

    named = np.array([name is not None for name in raw.names])
    folded = np.array(["" if name is None else name.casefold() for name in raw.names])
    model_folded = np.array([label.casefold() for label in labels])
    known = raw.malignant >= 0
    questions: dict[str, Question | str] = {}
    if not malignant.any():
        questions["malignant_auroc"] = "the model has no malignant label"
    else:
        questions["malignant_auroc"] = ask(known, raw.malignant == 1, malignant)
        theirs, models = (np.isin(each, list(AKIEC_NAMES)) for each in (folded, model_folded))
        if theirs.any() or models.any():
            questions["malignant_auroc_without_akiec"] = ask(
                known & ~theirs, raw.malignant == 1, malignant & ~models
            )
    questions["melanoma_auroc"] = _melanoma(own, model_folded) or ask(
        named, np.isin(folded, list(MELANOMA_NAMES)), np.isin(model_folded, list(MELANOMA_NAMES))
    )
    return Truth(labels, prior, _find_labels(raw.names, labels, resampled), questions)


def _melanoma(own: Sequence[str], model_folded: npt.NDArray[np.str_]) -> str | None:
    if not np.isin(model_folded, list(MELANOMA_NAMES)).any():
        return "the model has no label mel or melanoma"
    if not MELANOMA_NAMES & {label.casefold() for label in own}:
        return "the cohort has no label mel or melanoma"
    return None


def _find_labels(
    names: list[str | None], labels: tuple[str, ...], resampled: Any
) -> Labelled | str:
    number = number_labels(names, labels)
    # A label that the cohort declares and no image has asks for nothing.
    other = sorted({name for name, at in zip(names, number, strict=True) if name and at < 0})
    if other:
        return (
            f"the cohort's labels are not the model's: {', '.join(other)} not among "
            f"{', '.join(labels)}"
        )
    rows = np.flatnonzero(number >= 0)
    if not len(rows):
        return "none of these images has a label"
    label = number[rows]
    return Labelled(rows, label, resampled(rows))


@dataclass(frozen=True)
class Scored:
    """One condition's figures.

    Attributes:
        draws: by metric, (1 + samples,) values, for intervals and paired differences.
        figures: by metric, ready for JSON.
    """

    draws: dict[str, Draws]
    figures: dict[str, Any]


def score(answers: Answers, truth: Truth, calibration: Calibration) -> Scored:
    """Return every figure of one condition; what cannot be computed is null with the reason."""
    draws: dict[str, Draws] = {}
    figures: dict[str, Any] = {}
    probabilities = answers.probabilities
    for name, question in truth.questions.items():
        if isinstance(question, str):
            figures[name] = null(question)
            continue
        draws[name] = question.draws(probabilities)
    asked = truth.questions["malignant_auroc"]
    if isinstance(asked, str):
        figures |= dict.fromkeys(RARE, null(asked))
    else:
        draws |= _rare_draws(asked, probabilities)
    if isinstance(truth.labelled, str):
        figures |= {name: estimate(values) for name, values in draws.items()}
        reason = null(truth.labelled)
        names = [n for n in MEANING if n not in figures and n != "malignant_auroc_without_akiec"]
        return Scored(draws, {**dict.fromkeys(names, reason), **figures, "labels": reason})
    sets = answers.sets(calibration)[truth.labelled.rows]
    own = probabilities[truth.labelled.rows]
    aurocs = _label_aurocs(own, truth.labelled)
    draws |= _decision_draws(own, truth.labelled, truth.prior)
    draws |= _quality_draws(own, truth.labelled, sets)
    draws["macro_auroc"] = _macro(aurocs)
    figures |= {name: estimate(values) for name, values in draws.items()}
    labels = _per_label(own, truth, truth.labelled, sets, aurocs)
    return Scored(draws, {**figures, "labels": labels})


def _rare_draws(question: Question, probabilities: FloatArray) -> dict[str, Draws]:
    """Return the draws of what means something where malignancy is rare."""
    asked = question.positive, question.score(probabilities)
    statistics = (
        average_precision_of(*asked),
        partial_auroc_of(*asked, above=SENSITIVITY),
        sensitivity_of(*asked, specificity=SPECIFICITY),
    )
    return {
        name: question.resampling.draws(statistic)
        for name, statistic in zip(RARE, statistics, strict=True)
    }


def null(reason: str) -> Estimate:
    """Return a figure that there is not, and why."""
    return {"value": None, "reason": reason}


def headline(probabilities: FloatArray, truth: Truth) -> dict[str, Estimate]:
    """Return the main figures of (N, C) float32 probabilities."""
    draws: dict[str, Draws] = {}
    reasons: dict[str, str] = {}
    if isinstance(truth.labelled, str):
        reasons |= dict.fromkeys(("balanced_accuracy", "macro_auroc"), truth.labelled)
    else:
        draws |= label_draws(probabilities, truth.labelled, truth.prior)
    for name in ("malignant_auroc", "melanoma_auroc"):
        question = truth.questions[name]
        if isinstance(question, str):
            reasons[name] = question
        else:
            draws[name] = question.draws(probabilities)
    return {k: null(reasons[k]) if k in reasons else estimate(draws[k]) for k in COMPARED}


def label_draws(
    probabilities: FloatArray, labelled: Labelled, prior: FloatArray
) -> dict[str, Draws]:
    """Return the draws of decisions and of the macro AUROC.

    Args:
        probabilities: (N, C) float32 of all rows.
        labelled: those with a label.
        prior: (C,) float32, the prevalence that the probabilities hold at.
    """
    own = probabilities[labelled.rows]
    macro = labelled.resampling.draws(macro_auroc_of(labelled.label, own))
    return {**_decision_draws(own, labelled, prior), "macro_auroc": macro}


def _decision_draws(own: FloatArray, labelled: Labelled, prior: FloatArray) -> dict[str, Draws]:
    balanced, likeliest = balanced_decision(own, prior), own.argmax(1)
    statistics = {
        "balanced_accuracy": balanced_accuracy_of(labelled.label, balanced),
        "accuracy_most_probable": mean_of(labelled.label == likeliest),
        "balanced_accuracy_most_probable": balanced_accuracy_of(labelled.label, likeliest),
    }
    return {k: labelled.resampling.draws(statistic) for k, statistic in statistics.items()}


def _label_aurocs(own: FloatArray, labelled: Labelled) -> dict[int, Draws]:
    return {
        int(k): labelled.resampling.draws(auroc_of(labelled.label == k, own[:, k]))
        for k in np.unique(labelled.label)
    }


def _macro(aurocs: dict[int, Draws]) -> Draws:
    return mean_of_known(list(aurocs.values()))


def _quality_draws(own: FloatArray, labelled: Labelled, sets: BoolArray) -> dict[str, Draws]:
    truth = np.eye(own.shape[1], dtype=np.float32)[labelled.label]
    statistics = {
        "expected_calibration_error": calibration_error_of(own, labelled.label),
        "brier": mean_of(((own - truth) ** 2).sum(1)),
        **{k: mean_of(v) for k, v in _of_sets(labelled, sets).items()},
    }
    return {k: labelled.resampling.draws(statistic) for k, statistic in statistics.items()}


def _of_sets(labelled: Labelled, sets: BoolArray) -> dict[str, npt.NDArray[Any]]:
    """Return (M,) values of the labelled rows' (M, C) prediction sets, by metric."""
    return {
        "conformal_coverage": sets[np.arange(len(sets)), labelled.label],
        "conformal_set_size": sets.sum(1),
    }


def _per_label(
    own: FloatArray, truth: Truth, labelled: Labelled, sets: BoolArray, aurocs: dict[int, Draws]
) -> dict[str, Any]:
    right = balanced_decision(own, truth.prior) == labelled.label
    count = len(truth.labels)
    draws = {
        name: labelled.resampling.draws(means_by_label_of(labelled.label, values, count=count))
        for name, values in {"recall": right, **_of_sets(labelled, sets)}.items()
    }
    absent = "no image carries this label"
    figures: dict[str, Any] = {}
    for number, name in enumerate(truth.labels):
        mine = labelled.label == number
        figures[name] = {
            "images": int(mine.sum()),
            "recalled": int(right[mine].sum()),
            **{k: estimate(values[:, number], absent) for k, values in draws.items()},
            "auroc": estimate(aurocs[number]) if number in aurocs else null(absent),
        }
    return figures


def compare(first: Mapping[str, Draws], second: Mapping[str, Draws]) -> dict[str, Any]:
    """Return first minus second for the main figures, with paired intervals, or why there is none.

    Args:
        first: (1 + samples,) values by metric.
        second: the same of the other, over the same rows and draws.
    """
    shared = [name for name in COMPARED if name in first and name in second]
    if not shared:
        return null("nothing to compare: the main figures are missing")
    return {name: estimate(first[name] - second[name]) for name in shared}
