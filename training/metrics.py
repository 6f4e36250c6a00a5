"""Numbers that say how good an answer is. Rows are lesion images; intervals resample groups."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from sklearn.metrics import recall_score, roc_auc_score

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BINS = 15


def balanced_decision(probabilities: FloatArray, prior: FloatArray) -> IntArray:
    """Return (N,) int64 labels as if all were equally frequent.

    Balanced accuracy rewards exactly this decision; the most probable label at a natural
    prevalence is another question.

    Args:
        probabilities: (N, C) float32, calibrated.
        prior: (C,) float32, the prevalence they were calibrated at.
    """
    return np.argmax(probabilities / prior, axis=1).astype(np.int64)


def balanced_accuracy(label: IntArray, decided: IntArray) -> float:
    """Return the mean recall over the labels that occur; both arrays are (N,) int64."""
    return float(recall_score(label, decided, labels=np.unique(label), average="macro"))


def macro_auroc(label: IntArray, probabilities: FloatArray) -> float | None:
    """Return the mean one-against-rest AUROC over the labels that occur, None for a single one.

    Args:
        label: (N,) int64.
        probabilities: (N, C) float32.
    """
    known = np.unique(label)
    if len(known) < 2:
        return None
    return float(np.mean([roc_auc_score(label == k, probabilities[:, k]) for k in known]))


def auroc(positive: npt.NDArray[np.bool_], score: FloatArray) -> float | None:
    """Return the AUROC of (N,) scores, None where only one side occurs."""
    if positive.all() or not positive.any():
        return None
    return float(roc_auc_score(positive, score))


def expected_calibration_error(probabilities: FloatArray, label: IntArray) -> float:
    """Return the mean gap between confidence and accuracy over 15 equally filled bins.

    Args:
        probabilities: (N, C) float32.
        label: (N,) int64.
    """
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == label
    order = np.argsort(confidence, kind="stable")
    bins = [part for part in np.array_split(order, BINS) if len(part)]
    gaps = [len(part) * abs(confidence[part].mean() - right[part].mean()) for part in bins]
    return float(np.sum(gaps) / len(label))


def brier_score(probabilities: FloatArray, label: IntArray) -> float:
    """Return the mean squared distance from (N, C) probabilities to the true labels."""
    truth = np.eye(probabilities.shape[1], dtype=np.float32)[label]
    return float(np.mean(np.sum((probabilities - truth) ** 2, axis=1)))


def group_bootstrap(
    groups: list[str],
    statistic: Callable[[IntArray], float],
    *,
    samples: int = 1000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Return a statistic of all rows with its 95 % percentile interval over resampled groups.

    Args:
        groups: the N rows' patients (or lesions).
        statistic: of row numbers, (M,) int64 with repeats.
        samples: resamplings.
        seed: of the resampling.
    """
    numbers = np.unique(np.array(groups), return_inverse=True)[1]
    order = np.argsort(numbers, kind="stable")
    rows_of_group = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(samples):
        drawn = rng.integers(0, len(rows_of_group), len(rows_of_group))
        values.append(statistic(np.concatenate([rows_of_group[g] for g in drawn])))
    low, high = np.quantile(values, [0.025, 0.975])
    return statistic(np.arange(len(groups))), float(low), float(high)


def hit_in_top(
    score: FloatArray, malignant: npt.NDArray[np.bool_], patient: IntArray, *, top: int, least: int
) -> dict[int, bool]:
    """Return for each patient whether a malignant lesion is among the `top` highest scores.

    Only patients with a malignant lesion and at least `least` lesions are judged; ties count
    against the answer.

    Args:
        score: (N,) float32, one a lesion.
        malignant: (N,) bool.
        patient: (N,) int64.
        top: how many lesions are looked at.
        least: fewest lesions of a judged patient.
    """
    answers = {}
    for number in np.unique(patient):
        own = patient == number
        if own.sum() < least or not malignant[own].any():
            continue
        best = score[own][malignant[own]].max()
        ahead = int((score[own][~malignant[own]] >= best).sum())
        answers[int(number)] = ahead < top
    return answers
