"""Figures of malignancy that mean something where it is rare, against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from training.resampling import average_precision_of, partial_auroc_of

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
