"""Intervals from resampled groups, for many statistics at once.

A resample is a weight for each row: how often the row's group was drawn. A statistic takes all
rows under many weightings at once; row 0 weighs every row once, so that the figure itself and its
interval come from the same arithmetic. Statistics of one `Resampling` see the same draws: their
difference is a paired one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
# (S, N) weights to (S,) values, or (S, C) of C labels, NaN where the value is not defined.
Weights = npt.NDArray[np.float64]
Draws = npt.NDArray[np.float64]
Statistic = Callable[[Weights], Draws]

SAMPLES = 1000
# Of the calibration error.
BINS = 15
# Below this share of resamples with a value there is no interval.
DEFINED = 0.95
CHUNK = 2_000_000
Estimate = dict[str, Any]


class Resampling:
    """Draws of whole groups with replacement, the same for every statistic."""

    def __init__(self, groups: Sequence[str], *, samples: int = SAMPLES, seed: int = 0) -> None:
        """Draw.

        Args:
            groups: the N rows' patients (or lesions); 1 or more.
            samples: resamplings.
            seed: of the draws.
        """
        self.row_group = np.unique(np.array(groups, dtype=str), return_inverse=True)[1]
        count = int(self.row_group.max()) + 1
        rng = np.random.default_rng(seed)
        drawn = [
            np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(samples)
        ]
        self.counts = np.stack([np.ones(count, np.int64), *drawn]).astype(np.int32)

    def draws(self, statistic: Statistic) -> Draws:
        """Return (1 + samples, ...) values: of all rows, then of each resample.

        Of one group alone those of the resamples are NaN.
        """
        step = max(1, CHUNK // len(self.row_group))
        parts = [
            statistic(self.counts[start : start + step][:, self.row_group].astype(np.float64))
            for start in range(0, len(self.counts), step)
        ]
        drawn = np.concatenate(parts)
        if self.counts.shape[1] == 1:
            # Every resample of one group is that group: nothing is known of others.
            drawn[1:] = np.nan
        return drawn


def over_seeds(runs: Sequence[Draws], *, seed: int = 0) -> Draws:
    """Return (1 + S, ...) draws of the mean over runs that differ in their seed.

    The first is the mean of all runs. In each of the others as many runs are drawn with
    replacement, beside the groups: an interval says what other groups and other seeds would have
    given. Of few seeds it is a little narrow, by the root of (R - 1) / R. Statistics of as many
    runs see the same draws: their difference is a paired one.

    Args:
        runs: R arrays, (1 + S, ...) each, of the same `Resampling`.
        seed: of the draws.
    """
    stacked = np.stack(runs)
    mean = stacked.mean(0)
    samples = stacked.shape[1] - 1
    drawn = np.random.default_rng(seed).integers(0, len(runs), (samples, len(runs)))
    mean[1:] = stacked[drawn, np.arange(1, samples + 1)[:, None]].mean(1)
    return mean


def estimate(draws: Draws, reason: str = "the rows hold only one side") -> Estimate:
    """Return the value with its 95 % percentile interval, null with the reason where undefined.

    Args:
        draws: (1 + S,) as `Resampling.draws` gives them.
        reason: why there is no value, if there is none.
    """
    if np.isnan(draws[0]):
        return {"value": None, "reason": reason}
    known = draws[1:][~np.isnan(draws[1:])]
    if len(known) < DEFINED * len(draws[1:]):
        why = "no interval: one group alone, or too many resamples without a value"
        return {"value": float(draws[0]), "low": None, "high": None, "reason": why}
    low, high = np.quantile(known, [0.025, 0.975])
    return {"value": float(draws[0]), "low": float(low), "high": float(high)}


def auroc_of(positive: BoolArray, score: npt.NDArray[Any]) -> Statistic:
    """Return the weighted AUROC of (N,) scores, ties counting half; `positive` is (N,) bool."""
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    starts = np.concatenate(([0], np.flatnonzero(ranked[1:] != ranked[:-1]) + 1))
    yes = positive[order].astype(np.float64)

    def statistic(weights: Weights) -> Draws:
        weighed = weights[:, order]
        for_yes = weighed * yes
        if len(starts) < len(order):
            weighed, for_yes = (np.add.reduceat(w, starts, axis=1) for w in (weighed, for_yes))
        for_no = weighed - for_yes
        below = np.cumsum(for_no, axis=1) - for_no / 2
        return _ratio((for_yes * below).sum(1), for_yes.sum(1) * for_no.sum(1))

    return statistic


def _cumulated(
    positive: BoolArray, score: npt.NDArray[Any], weights: Weights
) -> tuple[Draws, Draws]:
    """Return (S, T + 1) weight of positives and negatives at or above T falling thresholds."""
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    starts = np.concatenate(([0], np.flatnonzero(ranked[1:] != ranked[:-1]) + 1))
    weighed = weights[:, order]
    sums = [
        np.add.reduceat(weighed * side[order], starts, axis=1).cumsum(1)
        for side in (positive, ~positive)
    ]
    none = np.zeros((len(weights), 1))
    return np.concatenate([none, sums[0]], axis=1), np.concatenate([none, sums[1]], axis=1)


def average_precision_of(positive: BoolArray, score: npt.NDArray[Any]) -> Statistic:
    """Return the weighted average precision, the area under precision over recall.

    Args:
        positive: (N,) bool.
        score: (N,) numbers; equal ones share a threshold.
    """

    def statistic(weights: Weights) -> Draws:
        yes, no = _cumulated(positive, score, weights)
        both = yes[:, 1:] + no[:, 1:]
        precision = np.divide(yes[:, 1:], both, out=np.zeros_like(both), where=both > 0)
        return _ratio((np.diff(yes, axis=1) * precision).sum(1), yes[:, -1])

    return statistic


def partial_auroc_of(positive: BoolArray, score: npt.NDArray[Any], *, above: float) -> Statistic:
    """Return the weighted area between the ROC curve and a sensitivity, 0 to 1 - `above`.

    With 0.8 it is the primary metric of the ISIC 2024 challenge (Kurtansky et al., 2024, Sci Data
    11:884).

    Args:
        positive: (N,) bool.
        score: (N,) numbers; equal ones share a threshold.
        above: the sensitivity below which nothing counts.
    """

    def statistic(weights: Weights) -> Draws:
        yes, no = _cumulated(positive, score, weights)
        known = yes[:, -1] * no[:, -1]
        with np.errstate(invalid="ignore", divide="ignore"):
            height = yes / yes[:, -1:] - above
            step = np.diff(no / no[:, -1:], axis=1)
        low, high = height[:, :-1].clip(min=0), height[:, 1:].clip(min=0)
        rise = np.diff(height, axis=1)
        # Where a slanted step crosses the sensitivity, only what lies above it counts.
        share = np.divide(
            high, rise, out=np.ones_like(high), where=(height[:, :-1] < 0) & (rise > 0)
        )
        area = (step * share * (low + high) / 2).sum(1)
        return np.where(known > 0, area, np.nan)

    return statistic


def sensitivity_of(
    positive: BoolArray, score: npt.NDArray[Any], *, specificity: float
) -> Statistic:
    """Return the weighted largest sensitivity of a threshold that keeps a specificity.

    The threshold is chosen anew under each weighting.

    Args:
        positive: (N,) bool.
        score: (N,) numbers; equal ones share a threshold.
        specificity: the least weighted share of negatives below the threshold.
    """

    def statistic(weights: Weights) -> Draws:
        yes, no = _cumulated(positive, score, weights)
        negatives = no[:, -1:]
        kept = negatives - no >= specificity * negatives
        found = _ratio(np.where(kept, yes, 0).max(1), yes[:, -1])
        return np.where(no[:, -1] > 0, found, np.nan)

    return statistic


def calibration_error_of(probabilities: npt.NDArray[Any], label: IntArray) -> Statistic:
    """Return the weighted mean gap between confidence and accuracy over 15 equally filled bins.

    Rows are ordered by confidence, equal ones as they come; a row of weight 2 counts as two rows,
    which may lie in two bins.

    Args:
        probabilities: (N, C) numbers.
        label: (N,) int64.
    """
    confidence = probabilities.max(1)
    order = np.argsort(confidence, kind="stable")
    gap = confidence.astype(np.float64) - (probabilities.argmax(1) == label)

    def statistic(weights: Weights) -> Draws:
        weighed = weights[:, order]
        none = np.zeros((len(weights), 1))
        counted = np.concatenate([none, weighed.cumsum(1)], axis=1)
        summed = np.concatenate([none, (weighed * gap[order]).cumsum(1)], axis=1)
        # Equal parts, the first ones a row larger, as `numpy.array_split` cuts.
        size, rest = np.divmod(counted[:, -1:], BINS)
        bins = np.arange(BINS + 1)
        edges = bins * size + np.minimum(bins, rest)
        # Equal rows stand together: between two rows the sum grows in proportion to the weight.
        at_edges = np.stack(
            [np.interp(*curve) for curve in zip(edges, counted, summed, strict=True)]
        )
        return _ratio(np.abs(np.diff(at_edges, axis=1)).sum(1), counted[:, -1])

    return statistic


def mean_of(values: npt.NDArray[Any]) -> Statistic:
    """Return the weighted mean of (N,) values."""
    numbers = values.astype(np.float64)

    def statistic(weights: Weights) -> Draws:
        return _ratio(weights @ numbers, weights.sum(1))

    return statistic


def balanced_accuracy_of(label: IntArray, decided: IntArray) -> Statistic:
    """Return the mean recall over the labels that a resample holds; both are (N,) int64."""
    return mean_by_label_of(label, label == decided)


def macro_auroc_of(label: IntArray, scores: npt.NDArray[Any]) -> Statistic:
    """Return the mean, over the labels, of the AUROC of each against the rest.

    Args:
        label: (N,) int64, 0 to C - 1.
        scores: (N, C) numbers.
    """
    each = [auroc_of(label == k, scores[:, k]) for k in np.unique(label)]

    def statistic(weights: Weights) -> Draws:
        return mean_of_known([auroc(weights) for auroc in each])

    return statistic


def mean_by_label_of(label: IntArray, values: npt.NDArray[Any]) -> Statistic:
    """Return the mean, over the labels that a resample holds, of the mean over their rows.

    Args:
        label: (N,) int64.
        values: (N,) numbers.
    """
    known, number = np.unique(label, return_inverse=True)
    means = means_by_label_of(number, values, count=len(known))

    def statistic(weights: Weights) -> Draws:
        return mean_of_known(list(means(weights).T))

    return statistic


def means_by_label_of(label: IntArray, values: npt.NDArray[Any], *, count: int) -> Statistic:
    """Return (S, C) weighted means over each label's rows, NaN where a resample holds none.

    Args:
        label: (N,) int64, 0 to C - 1.
        values: (N,) numbers.
        count: C.
    """
    own = np.eye(count)[label]
    numbers = own * values.astype(np.float64)[:, None]

    def statistic(weights: Weights) -> Draws:
        return _ratio(weights @ numbers, weights @ own)

    return statistic


def mean_of_known(parts: Sequence[Draws]) -> Draws:
    """Return the (S,) mean of the (S,) parts that are not NaN, NaN where all are."""
    stacked = np.stack(parts)
    known = ~np.isnan(stacked)
    return _ratio(np.where(known, stacked, 0).sum(0), known.sum(0).astype(np.float64))


def _ratio(above: Draws, below: Draws) -> Draws:
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
