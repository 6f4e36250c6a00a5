import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from training.metrics import (
    BINS,
    auroc,
    balanced_accuracy,
    balanced_decision,
    brier_score,
    expected_calibration_error,
    group_bootstrap,
    hit_in_top,
    macro_auroc,
)

RNG = np.random.default_rng(0)
LABEL = RNG.integers(0, 4, 77)
PROBABILITIES = RNG.dirichlet(np.ones(4), 77).astype(np.float32)


def test_balanced_accuracy_is_sklearns_and_counts_the_labels_that_occur() -> None:
    decided = RNG.integers(0, 5, 77)
    label = np.where(LABEL == 2, 1, LABEL)
    with pytest.warns(UserWarning, match="y_pred contains classes"):
        expected = balanced_accuracy_score(label, decided)
    assert balanced_accuracy(label, decided) == pytest.approx(expected)
    assert balanced_accuracy(np.array([0, 0, 1]), np.array([0, 1, 1])) == 0.75


def test_the_balanced_decision_forgets_the_prevalence() -> None:
    prior = np.array([0.8, 0.2], np.float32)
    probabilities = np.array([[0.75, 0.25], [0.85, 0.15]], np.float32)
    assert balanced_decision(probabilities, prior).tolist() == [1, 0]


def test_the_macro_auroc_is_the_mean_over_labels_one_against_the_rest() -> None:
    expected = roc_auc_score(LABEL, PROBABILITIES, multi_class="ovr", average="macro")
    assert macro_auroc(LABEL, PROBABILITIES) == pytest.approx(expected, abs=1e-6)
    some = LABEL < 2
    pairs = [roc_auc_score(LABEL[some] == k, PROBABILITIES[some][:, k]) for k in (0, 1)]
    assert macro_auroc(LABEL[some], PROBABILITIES[some]) == pytest.approx(np.mean(pairs))
    assert macro_auroc(np.zeros(3, np.int64), PROBABILITIES[:3]) is None


def test_the_auroc_counts_pairs_in_the_right_order() -> None:
    positive, score = LABEL == 0, PROBABILITIES[:, 0].round(1)
    pairs = [(a > b) + (a == b) / 2 for a in score[positive] for b in score[~positive]]
    assert auroc(positive, score) == pytest.approx(np.mean(pairs))
    for side in (True, False):
        assert auroc(np.full(3, side), score[:3]) is None


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


def test_the_brier_score_sums_over_labels() -> None:
    expected = np.mean(
        [
            sum((float(p) - (k == label)) ** 2 for k, p in enumerate(row))
            for row, label in zip(PROBABILITIES, LABEL, strict=True)
        ]
    )
    assert brier_score(PROBABILITIES, LABEL) == pytest.approx(expected, rel=1e-5)


def test_the_bootstrap_draws_whole_groups() -> None:
    groups = ["a", "b", "a", "c", "b", "a"]
    drawn: list[list[int]] = []

    def count(rows: npt.NDArray[np.int64]) -> float:
        drawn.append(rows.tolist())
        return float(len(rows))

    value, low, high = group_bootstrap(groups, count, samples=50, seed=1)
    assert (value, drawn[-1]) == (6, [0, 1, 2, 3, 4, 5])
    assert 3 <= low < 6 < high <= 9
    for rows in drawn:
        for group in "abc":
            own = [i for i, g in enumerate(groups) if g == group]
            assert len({rows.count(i) for i in own}) == 1
    assert group_bootstrap(groups, count, samples=50, seed=1) == (value, low, high)


def test_the_bootstrap_interval_of_a_mean_is_that_of_its_groups() -> None:
    values = np.random.default_rng(2).normal(0, 1, 200)
    groups = [str(i // 2) for i in range(200)]
    value, low, high = group_bootstrap(groups, lambda rows: float(values[rows].mean()))
    error = values.reshape(100, 2).mean(1).std() / 10
    assert value == pytest.approx(values.mean())
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.15)


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
