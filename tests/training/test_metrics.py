import numpy as np
import numpy.typing as npt
import pytest

from tests.training.slow_figures import group_bootstrap
from training.metrics import (
    balanced_decision,
    expected_calibration_error,
    hit_in_top,
    sensitivity_in_top,
)
from training.resampling import BINS, Resampling, calibration_error_of, estimate

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


def test_the_calibration_errors_interval_is_that_of_one_sample_at_a_time() -> None:
    groups = [f"g{g}" for g in RNG.integers(0, 25, 77)]
    got = estimate(
        Resampling(groups, samples=60, seed=5).draws(calibration_error_of(PROBABILITIES, LABEL))
    )

    def slow(rows: npt.NDArray[np.int64]) -> float:
        confidence, label = PROBABILITIES[rows].max(1).astype(np.float64), LABEL[rows]
        right = PROBABILITIES[rows].argmax(1) == label
        bins = np.array_split(np.argsort(confidence, kind="stable"), BINS)
        gaps = [abs(float(confidence[own].sum() - right[own].sum())) for own in bins]
        return sum(gaps) / len(rows)

    assert tuple(got.values()) == pytest.approx(group_bootstrap(groups, slow, samples=60, seed=5))


def test_sensitivity_in_the_top_is_the_share_of_a_patients_malignant_lesions() -> None:
    rows = [
        *[(1, s, bad) for s, bad in ((0.9, True), (0.8, False), (0.7, True), (0.1, False))],
        *[(2, s, bad) for s, bad in ((0.5, True), (0.5, False), (0.5, False))],
        *[(3, s, False) for s in (0.9, 0.8, 0.1)],
    ]
    order = RNG.permutation(len(rows))
    patient, score, malignant = (np.array(column)[order] for column in zip(*rows, strict=True))
    assert sensitivity_in_top(score, malignant, patient, top=1) == {1: 0.5, 2: 0}
    assert sensitivity_in_top(score, malignant, patient, top=2) == {1: 0.5, 2: 0}
    assert sensitivity_in_top(score, malignant, patient, top=3) == {1: 1}


def test_a_patient_whose_lesions_are_all_looked_at_is_not_judged() -> None:
    malignant = np.arange(15) == 0
    patient, lowest = np.zeros(15, np.int64), -malignant.astype(np.float32)
    assert sensitivity_in_top(lowest, malignant, patient, top=15) == {}
    more = sensitivity_in_top(
        np.append(lowest, np.float32(0)), np.append(malignant, False), np.append(patient, 0), top=15
    )
    assert more == {0: 0}


def test_sensitivity_in_the_top_is_that_of_lesions_counted_one_by_one() -> None:
    patient, malignant = RNG.integers(0, 11, 130), RNG.random(130) < 0.3
    score = np.round(RNG.random(130) + malignant / 3, 1).astype(np.float32)
    expected = {}
    for number in range(11):
        own = np.flatnonzero(patient == number)
        bad = [i for i in own if malignant[i]]
        if len(own) <= 5 or not bad:
            continue
        # Of equal scores the benign come first; equal malignant ones share the places left.
        found = 0
        for place, i in enumerate(sorted(bad, key=lambda i: -score[i])):
            benign = sum(score[j] >= score[i] and not malignant[j] for j in own)
            found += place + benign < 5
        expected[number] = found / len(bad)
    assert set(expected.values()) - {0, 1}
    assert sensitivity_in_top(score, malignant, patient, top=5) == pytest.approx(expected)


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
