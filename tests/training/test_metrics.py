import numpy as np
import pytest

from training.metrics import (
    BINS,
    balanced_decision,
    expected_calibration_error,
    hit_in_top,
)

RNG = np.random.default_rng(0)
LABEL = RNG.integers(0, 4, 77)
PROBABILITIES = RNG.dirichlet(np.ones(4), 77).astype(np.float32)


def test_the_balanced_decision_forgets_the_prevalence() -> None:
    prior = np.array([0.8, 0.2], np.float32)
    probabilities = np.array([[0.75, 0.25], [0.85, 0.15]], np.float32)
    assert balanced_decision(probabilities, prior).tolist() == [1, 0]


def test_the_calibration_error_is_the_gap_of_equally_filled_bins() -> None:
    ranked = sorted(
        (float(p.max()), bool(p.argmax() == k)) for p, k in zip(PROBABILITIES, LABEL, strict=True)
    )
    sizes = [77 // BINS + (i < 77 % BINS) for i in range(BINS)]
    total, start = 0.0, 0
    for size in sizes:
        part = ranked[start : start + size]
        total += abs(sum(c for c, _ in part) - sum(right for _, right in part))
        start += size
    assert expected_calibration_error(PROBABILITIES, LABEL) == pytest.approx(total / 77, rel=1e-4)
    sure = np.eye(4, dtype=np.float32)[LABEL[:5]]
    assert expected_calibration_error(sure, LABEL[:5]) == 0
    assert expected_calibration_error(sure, (LABEL[:5] + 1) % 4) == 1


def test_a_hit_is_a_malignant_lesion_among_the_first_with_ties_against_it() -> None:
    rows = [
        *[(1, s, bad) for s, bad in ((0.9, False), (0.8, True), (0.1, False))],
        *[(2, s, bad) for s, bad in ((0.9, True), (0.9, False), (0.1, True))],
        *[(3, s, False) for s in (0.9, 0.8, 0.1)],
        *[(4, s, True) for s in (0.9, 0.8)],
    ]
    patient, score, malignant = (np.array(column) for column in zip(*rows, strict=True))
    assert hit_in_top(score, malignant, patient, top=1, least=3) == {1: False, 2: False}
    assert hit_in_top(score, malignant, patient, top=2, least=3) == {1: True, 2: True}
    assert hit_in_top(score, malignant, patient, top=1, least=2)[4] is True
