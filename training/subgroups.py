"""Figures by sex, age, site and skin type: a mean over everybody hides who is served worse."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.calibration import Calibration
from bundle.fields import Record, Value
from training.conditions import Answers
from training.metrics import balanced_decision
from training.resampling import Resampling, auroc_of, balanced_accuracy_of, estimate, mean_of
from training.scores import Raw, Truth, null

BoolArray = npt.NDArray[np.bool_]
FIELDS = ("sex", "age_years", "anatom_site", "fitzpatrick_skin_type", "skin_tone_class")
# By name, the age that it ends below.
AGE_BANDS = {"0 to 29": 30, "30 to 49": 50, "50 to 69": 70, "70 and over": math.inf}
# With fewer images an interval says nothing.
LEAST_IMAGES = 20
# And an AUROC with fewer malignant, or fewer benign, images.
LEAST_OF_A_SIDE = 5
FIGURES = ("balanced_accuracy", "malignant_auroc", "conformal_coverage")


def subgroup_figures(
    answers: dict[str, Answers],
    records: Sequence[Record],
    raw: Raw,
    truth: Truth,
    calibration: Calibration,
    *,
    samples: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Return by field and subgroup how many images there are and each condition's figures.

    Args:
        answers: by condition, of the N rows.
        records: the N rows' records in canonical names, read by the model or not.
        raw: what the cohort says of the rows.
        truth: what can be asked of them.
        calibration: gives the prediction sets.
        samples: resamplings of the groups.
        seed: of the resampling.
    """
    sets = {name: answered.sets(calibration) for name, answered in answers.items()}
    found: dict[str, dict[str, Any]] = {}
    for field in FIELDS:
        names = np.array([_subgroup(field, record.get(field)) for record in records])
        for name in np.unique(names[names != ""]):
            own = names == name
            figures: dict[str, Any] = {"images": int(own.sum())}
            draw = _Draw(raw, truth, own, samples, seed)
            for condition, answered in answers.items():
                figures[condition] = draw.figures(answered, sets[condition])
            found.setdefault(field, {})[str(name)] = figures
    return found


def _subgroup(field: str, value: Value) -> str:
    if value is None:
        return ""
    if field != "age_years":
        return str(value)
    age = float(value)
    return next(name for name, below in AGE_BANDS.items() if age < below)


class _Draw:
    """One subgroup's rows and their resamples."""

    def __init__(self, raw: Raw, truth: Truth, own: BoolArray, samples: int, seed: int) -> None:
        self.raw, self.truth, self.own = raw, truth, own
        self.samples, self.seed = samples, seed

    def figures(self, answered: Answers, sets: BoolArray) -> dict[str, Any]:
        if self.own.sum() < LEAST_IMAGES:
            return dict.fromkeys(FIGURES, null(f"fewer than {LEAST_IMAGES} images"))
        return {
            "malignant_auroc": self._malignant(answered),
            **self._of_labels(answered, sets),
        }

    def _resampling(self, rows: npt.NDArray[np.int64]) -> Resampling:
        groups = [self.raw.groups[i] for i in rows]
        return Resampling(groups, samples=self.samples, seed=self.seed)

    def _malignant(self, answered: Answers) -> dict[str, Any]:
        question = self.truth.questions["malignant_auroc"]
        if isinstance(question, str):
            return null(question)
        inside = self.own[question.rows]
        count = int(question.positive[inside].sum())
        if min(count, int(inside.sum()) - count) < LEAST_OF_A_SIDE:
            return null(f"fewer than {LEAST_OF_A_SIDE} malignant or benign images")
        score = question.score(answered.probabilities)[inside]
        statistic = auroc_of(question.positive[inside], score)
        return estimate(self._resampling(question.rows[inside]).draws(statistic))

    def _of_labels(self, answered: Answers, sets: BoolArray) -> dict[str, Any]:
        labelled = self.truth.labelled
        names = ("balanced_accuracy", "conformal_coverage")
        if isinstance(labelled, str):
            return dict.fromkeys(names, null(labelled))
        inside = self.own[labelled.rows]
        rows, label = labelled.rows[inside], labelled.label[inside]
        if not len(rows):
            return dict.fromkeys(names, null("none of these images has a label"))
        resampling = self._resampling(rows)
        decided = balanced_decision(answered.probabilities[rows], self.truth.prior)
        covered = sets[rows, label]
        return {
            "balanced_accuracy": estimate(resampling.draws(balanced_accuracy_of(label, decided))),
            "conformal_coverage": estimate(resampling.draws(mean_of(covered))),
        }
