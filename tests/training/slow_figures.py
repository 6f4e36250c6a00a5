"""Figures one sample at a time, the slow and plain way that `training/resampling.py` must match."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from sklearn.metrics import recall_score, roc_auc_score

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


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
