"""Figures of malignancy that mean something where it is rare, against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from tests.fakes import LABELS, make_calibration
from training.conditions import Answers
from training.resampling import average_precision_of, partial_auroc_of, sensitivity_of
from training.scores import Raw, find_truth
from training.scores import score as score_answers

ABOVE = 0.8


def drawn(seed: int, ties: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    positive = rng.random(60) < 0.3
    score = rng.normal(size=60) + positive
    weights = rng.integers(0, 4, (5, 60)).astype(float)
    return positive, np.round(score) if ties else score, weights


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_weighted_average_precision_is_scikit_learns(seed: int, ties: bool) -> None:
    positive, score, weights = drawn(seed, ties)
    expected = [average_precision_score(positive, score, sample_weight=w) for w in weights]
    assert average_precision_of(positive, score)(weights) == pytest.approx(expected)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_partial_area_is_the_challenges(seed: int, ties: bool) -> None:
    positive, score, weights = drawn(seed, ties)
    limit = 1 - ABOVE
    least, most = limit**2 / 2, limit
    for weight, found in zip(
        weights, partial_auroc_of(positive, score, above=ABOVE)(weights), strict=True
    ):
        # The challenge swaps the sides and asks for the area below a fall-out of 20 %, which
        # scikit-learn rescales from its range by chance to 0.5 and 1.
        rescaled = roc_auc_score(~positive, -score, sample_weight=weight, max_fpr=limit)
        expected = least + (rescaled - 0.5) / 0.5 * (most - least)
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_sensitivity_is_the_best_of_all_thresholds_that_keep_the_specificity(
    seed: int, ties: bool
) -> None:
    positive, score, weights = drawn(seed, ties)
    for weight, found in zip(
        weights, sensitivity_of(positive, score, specificity=0.75)(weights), strict=True
    ):
        best = 0.0
        for threshold in score:
            called = score >= threshold
            if weight[called & ~positive].sum() <= 0.25 * weight[~positive].sum():
                best = max(best, weight[called & positive].sum() / weight[positive].sum())
        assert found == pytest.approx(best)


def test_a_threshold_of_tied_scores_is_not_passed_over() -> None:
    # The ten highest scores are each one of 10 malignant and one of 40 benign images: the ROC curve
    # is straight up to there, and its inner points look superfluous.
    malignant = np.arange(50) < 10
    place = np.concatenate([np.arange(10), np.arange(-30, 10)])
    malignancy = ((place + 40) / 100).astype(np.float32)
    raw = Raw(
        [LABELS[int(yes)] for yes in malignant],
        malignant.astype(np.int64),
        [f"g{i}" for i in range(50)],
    )
    truth = find_truth(
        raw,
        own=LABELS,
        labels=LABELS,
        malignant=np.array([False, True, True]),
        prior=np.full(3, 1 / 3, np.float32),
        samples=50,
        seed=0,
    )
    chances = np.stack([1 - malignancy, malignancy, 0 * malignancy], axis=1)
    answers = Answers(chances, np.full(50, "missing"))
    found = score_answers(answers, truth, make_calibration()).figures[
        "sensitivity_at_95_specificity"
    ]
    assert found["value"] == pytest.approx(0.2)
    assert found["low"] < 0.2 < found["high"]


def test_perfect_and_worst_scores_are_the_ends_of_the_range() -> None:
    positive = np.array([True, True, False, False])
    weights = np.ones((1, 4))
    for score, area, precision in (
        (np.array([4, 3, 2, 1]), 0.2, 1.0),
        (np.array([1, 2, 3, 4]), 0.0, (1 / 3 + 2 / 4) / 2),
        (np.zeros(4), 0.02, 0.5),
    ):
        assert partial_auroc_of(positive, score, above=ABOVE)(weights)[0] == pytest.approx(area)
        assert average_precision_of(positive, score)(weights)[0] == pytest.approx(precision)


def test_one_side_alone_has_no_figure() -> None:
    positive = np.zeros(3, dtype=bool)
    score, weights = np.arange(3.0), np.ones((1, 3))
    assert np.isnan(average_precision_of(positive, score)(weights)).all()
    assert np.isnan(partial_auroc_of(positive, score, above=ABOVE)(weights)).all()
    for side in (positive, ~positive):
        assert np.isnan(sensitivity_of(side, score, specificity=0.95)(weights)).all()
