import numpy as np
import numpy.typing as npt
import pytest
from crepes import ConformalClassifier
from scipy.stats import binom
from sklearn.mixture import GaussianMixture

from bundle.appearance import LENGTH
from bundle.calibration import Conformal, prediction_set, softmax
from bundle.quality import quality_reasons
from training.calibration import (
    MIN_LABEL_LESIONS,
    conformal_quantile,
    fit_appearance,
    fit_condition,
    fit_conformal,
    fit_guess_weight,
    fit_novelty,
    fit_quality,
    group_folds,
    joint_thresholds,
    operating_points,
    out_of_fold,
)
from training.metrics import expected_calibration_error

PRIOR = np.array([0.7, 0.2, 0.1], np.float32)


def drawn(scores: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return labels that follow the probabilities of the scores."""
    cumulated = softmax(scores).cumsum(1)
    passed: npt.NDArray[np.int64] = (rng.random((len(scores), 1)) > cumulated).sum(1)
    return passed.clip(max=scores.shape[1] - 1)


def test_temperature_and_bias_undo_a_planted_miscalibration() -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 1.5, (4000, 3)).astype(np.float32)
    label = drawn(honest + np.log(PRIOR) + np.array([0, 0.8, 0], np.float32), rng)
    unseen = out_of_fold(honest * 2.5, label, PRIOR, np.arange(4000) % 5)
    fitted = fit_condition(honest * 2.5, unseen, label, PRIOR, alpha=0.1)
    assert fitted.temperature == pytest.approx(2.5, rel=0.1)
    bias = np.array(fitted.bias) - np.log(PRIOR)
    np.testing.assert_allclose(bias - bias[0], [0, 0.8, 0], atol=0.2)
    assert fitted.expected_calibration_error < 0.03
    assert fitted.lesions == 4000


@pytest.mark.parametrize("seed", [4, 12, 31])
def test_a_sharp_optimum_is_found(seed: int) -> None:
    """Narrow logits that know the truth well: the temperature is far below 1."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, 300)
    logits = rng.normal(0, 0.5, (300, 3)).astype(np.float32)
    logits[np.arange(300), label] += 0.75
    fitted = fit_condition(logits, softmax(logits), label, np.full(3, 1 / 3, np.float32), alpha=0.1)

    def loss(temperature: float) -> float:
        scaled = softmax(logits / np.float32(temperature) + np.array(fitted.bias, np.float32))
        return float(-np.log(scaled[np.arange(300), label]).mean())

    assert fitted.temperature < 0.5
    for factor in (0.9, 1.1):
        assert loss(fitted.temperature) < loss(factor * fitted.temperature)


def test_thresholds_are_of_lesions_that_calibration_did_not_see() -> None:
    rng = np.random.default_rng(2)
    logits, label = rng.normal(0, 2, (200, 3)).astype(np.float32), rng.integers(0, 3, 200)
    unseen = out_of_fold(logits, label, PRIOR, np.arange(200) % 5)
    fitted = fit_condition(logits, unseen, label, PRIOR, alpha=0.2)
    assert fitted.conformal == fit_conformal(unseen, label, alpha=0.2)


def test_few_lesions_leave_the_bias_near_the_prior() -> None:
    label = np.array([0, 1, 2, 0])
    logits = np.zeros((4, 3), np.float32)
    fitted = fit_condition(logits, softmax(logits), label, PRIOR, alpha=0.1)
    assert np.abs(np.array(fitted.bias) - np.log(PRIOR)).max() < 1.5
    assert np.isfinite(fitted.temperature)


def test_the_calibration_error_is_that_of_lesions_that_calibration_did_not_see() -> None:
    """Scores that say nothing, of few lesions: a bias that fits them does not hold for others."""
    rng = np.random.default_rng(1)
    logits, label = rng.normal(0, 2, (30, 3)).astype(np.float32), rng.integers(0, 3, 30)
    fold = np.arange(30) % 5
    unseen = out_of_fold(logits, label, PRIOR, fold)
    fitted = fit_condition(logits, unseen, label, PRIOR, alpha=0.1)
    assert fitted.expected_calibration_error == expected_calibration_error(unseen, label)
    for number in range(5):
        others = fold != number
        alone = fit_condition(logits[others], unseen[others], label[others], PRIOR, alpha=0.1)
        scaled = logits[~others] / np.float32(alone.temperature) + np.array(alone.bias, np.float32)
        np.testing.assert_allclose(unseen[~others], softmax(scaled), atol=1e-6)


def test_folds_keep_groups_whole_and_share_out_the_malignant() -> None:
    groups = [f"g{i // 3}" for i in range(90)]
    malignant = np.array([i % 3 == 0 and i // 3 % 5 == 0 for i in range(90)])
    fold = group_folds(groups, malignant, 4)
    assert len(set(zip(groups, fold.tolist(), strict=True))) == len(set(groups))
    assert np.bincount(fold).tolist() == [18] * 5
    # Six groups of thirty have a malignant lesion.
    assert np.bincount(fold[malignant], minlength=5).min() == 1
    assert not np.array_equal(fold, group_folds(groups, malignant, 5))


def logits_of_guesses(
    strength: float, count: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return logits without and with guesses, and labels of which the guesses know `strength`."""
    rng = np.random.default_rng(5)
    seen, unseen = rng.normal(0, 1, (2, count, 3)).astype(np.float32)
    label = drawn(seen + unseen + np.log(PRIOR), rng)
    noise = rng.normal(0, 1, (count, 3)).astype(np.float32)
    return seen, seen + np.float32(strength) * unseen + np.float32(2 - 2 * strength) * noise, label


def test_guesses_that_know_something_move_the_answer() -> None:
    own, filled, label = logits_of_guesses(1.0, 1500)
    groups = [str(i // 3) for i in range(1500)]
    assert fit_guess_weight(own, filled, label, PRIOR, groups) >= 0.8
    own, filled, label = logits_of_guesses(0.5, 1500)
    assert 0.2 <= fit_guess_weight(own, filled, label, PRIOR, groups) <= 0.8


def test_guesses_that_know_nothing_or_are_not_shown_to_do_not() -> None:
    own, filled, label = logits_of_guesses(0.0, 1500)
    groups = [str(i // 3) for i in range(1500)]
    assert fit_guess_weight(own, filled, label, PRIOR, groups) == 0
    own, filled, label = logits_of_guesses(1.0, 1500)
    assert fit_guess_weight(own[:12], filled[:12], label[:12], PRIOR, groups[:12]) == 0


@pytest.mark.parametrize("count", [1, 8, 9, 10, 19, 57])
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_the_conformal_quantile_is_the_smallest_that_covers_enough(
    count: int, alpha: float
) -> None:
    misfit = np.random.default_rng(count).random(count).astype(np.float32)
    wanted = (count + 1) * (1 - alpha)
    enough = [float(m) for m in sorted(misfit) if (misfit <= m).sum() >= wanted - 1e-9]
    assert conformal_quantile(misfit, alpha) == (enough[0] if enough else 1.0)


def test_conformal_sets_hold_the_truth_as_often_as_promised() -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(0, 1.5, (3000, 3)).astype(np.float32)
    label, probabilities = drawn(scores, rng), softmax(scores)
    conformal = fit_conformal(probabilities[:1000], label[:1000], alpha=0.1)
    held = [
        int(true) in prediction_set(row, conformal)
        for row, true in zip(probabilities[1000:], label[1000:], strict=True)
    ]
    # Beside the test rows' own chance, each label's quantile of about 330 lesions has its own.
    low, high = binom.ppf([0.0005, 0.9995], 2000, 0.9) / 2000
    assert low - 0.01 <= np.mean(held) <= high + 0.03
    assert conformal.scope == ("label",) * 3


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.25])
@pytest.mark.parametrize("count", [300, 80, MIN_LABEL_LESIONS - 1])
def test_prediction_sets_are_those_of_crepes(alpha: float, count: int) -> None:
    rng = np.random.default_rng(8)
    scores = rng.normal(0, 1.2, (count + 100, 3)).astype(np.float32)
    label, probabilities = drawn(scores + np.array([1.2, 0, 0], np.float32), rng), softmax(scores)
    own = fit_conformal(probabilities[:count], label[:count], alpha=alpha)
    frequent = np.bincount(label[:count]) >= MIN_LABEL_LESIONS
    assert frequent.sum() == {300: 3, 80: 1, MIN_LABEL_LESIONS - 1: 0}[count]
    assert [scope == "label" for scope in own.scope] == frequent.tolist()
    # The rare labels' lesions are one category.
    category = np.where(frequent, np.arange(3), -1)
    misfit = 1 - probabilities
    theirs = ConformalClassifier().fit(
        misfit[np.arange(count), label[:count]], bins=category[label[:count]]
    )
    for row in range(count, count + 100):
        p_values = theirs.predict_p(misfit[row][:, None], bins=category, smoothing=False)
        # Ours always holds the likeliest label too.
        inside = np.flatnonzero(np.ravel(p_values) > alpha).tolist()
        expected = {*inside, int(misfit[row].argmin())}
        assert set(prediction_set(probabilities[row], own)) == expected


def test_rare_labels_share_a_quantile_that_the_frequent_ones_do_not_make() -> None:
    """A hundred sure lesions of one label and five doubtful ones of each of two rare labels."""
    label = np.repeat([0, 1, 2], [100, 5, 5])
    sure, doubtful = [0.98, 0.01, 0.01], [0.8, 0.1, 0.1]
    probabilities = np.array([sure] * 100 + [doubtful] * 10, np.float32)
    conformal = fit_conformal(probabilities, label, alpha=0.1)
    assert isinstance(conformal, Conformal)
    assert conformal.scope == ("label", "rare", "rare")
    assert conformal.quantiles == pytest.approx((0.02, 0.9, 0.9))
    assert (conformal.alpha, conformal.lesions) == (0.1, 110)
    assert prediction_set(np.array(doubtful, np.float32), conformal) == [0, 1, 2]
    # Of all lesions together it would be 0.02, and the set of a doubtful one hold label 0 alone.
    assert conformal_quantile(1 - probabilities[np.arange(110), label], 0.1) < 0.1


def test_a_label_too_rare_for_any_quantile_is_in_every_set() -> None:
    label = np.repeat([0, 1], [60, 5])
    probabilities = np.array([[0.99, 0.01]] * 65, np.float32)
    conformal = fit_conformal(probabilities, label, alpha=0.1)
    assert conformal.scope == ("label", "rare")
    assert conformal.quantiles[1] == 1
    assert 1 in prediction_set(np.array([1.0, 0.0], np.float32), conformal)


@pytest.mark.parametrize("count", [5, 30, 40, 200])
def test_operating_points_keep_what_their_names_promise(count: int) -> None:
    rng = np.random.default_rng(count)
    malignant = np.arange(count) % 3 == 0
    score = (rng.random(count) + 0.3 * malignant).astype(np.float32)
    fold = np.arange(count) // 3 % 5
    sensitive, specific = operating_points(score, score, malignant, fold, "given")
    assert sensitive.name == "sensitivity_95"
    assert specific.name == "specificity_95"
    for point in (sensitive, specific):
        assert point.condition == "given"
        for value, (low, high) in (
            (point.sensitivity, point.sensitivity_interval),
            (point.specificity, point.specificity_interval),
        ):
            assert 0 <= low <= value <= high <= 1
    assert (score >= sensitive.threshold)[malignant].mean() >= 0.95
    assert (score < specific.threshold)[~malignant].mean() >= 0.95


def test_what_an_operating_point_keeps_is_measured_on_other_lesions_than_it_was_chosen_on() -> None:
    """The lowest malignant score of all lies in one fold, whose lesions it must not help."""
    malignant = np.tile([True, False], 10)
    score = np.where(malignant, 0.8, 0.1).astype(np.float32)
    fold = np.arange(20) // 2 % 5
    score[0] = 0.05
    sensitive, _ = operating_points(score, score, malignant, fold, "given")
    assert sensitive.threshold == np.float32(0.05)
    assert sensitive.sensitivity == pytest.approx(0.9)
    # The other folds' thresholds are 0.05, the first fold's is 0.8.
    assert sensitive.specificity == pytest.approx(0.2)


def test_the_interval_of_an_operating_point_is_wilsons() -> None:
    malignant = np.array([True] * 10 + [False] * 10)
    score = malignant.astype(np.float32)
    point = operating_points(score, score, malignant, np.arange(20) % 5, "missing")[0]
    z2 = 1.959964**2
    assert point.sensitivity_interval == pytest.approx((10 / (10 + z2), 1.0), abs=1e-5)


@pytest.mark.parametrize("side", [True, False])
def test_there_are_no_operating_points_where_only_one_side_occurs(side: bool) -> None:
    score, fold = np.ones(4, np.float32), np.arange(4)
    assert operating_points(score, score, np.full(4, side), fold, "given") == ()


def test_there_are_no_operating_points_where_one_fold_has_all_of_one_side() -> None:
    score, malignant = np.ones(4, np.float32), np.array([True, True, False, False])
    assert operating_points(score, score, malignant, np.array([0, 0, 1, 2]), "given") == ()
    assert operating_points(score, score, malignant, np.array([0, 1, 1, 2]), "given")


def test_quality_refuses_what_is_worse_than_every_calibration_picture_by_far() -> None:
    rng = np.random.default_rng(0)
    pictures = [
        {
            "min_side_px": float(rng.integers(200, 400)),
            "sharpness": float(rng.uniform(0.1, 0.2)),
            "brightness": float(rng.uniform(0.4, 0.7)),
            "contrast": float(rng.uniform(0.1, 0.3)),
        }
        for _ in range(50)
    ]
    fitted = fit_quality(pictures, 64)
    assert fitted.min_side_px == 32
    assert [quality_reasons(p, fitted) for p in pictures] == [[]] * 50
    worse = {
        "min_side_px": (31, "too_small"),
        "sharpness": (0.04, "blurred"),
        "brightness": (0.2, "too_dark"),
        "contrast": (0.04, "no_contrast"),
    }
    for name, (value, reason) in worse.items():
        assert quality_reasons({**pictures[0], name: value}, fitted) == [reason]
    assert quality_reasons({**pictures[0], "brightness": 0.9}, fitted) == ["too_bright"]
    assert fit_quality([{**pictures[0], "min_side_px": 20}], 64).min_side_px == 20


def test_novelty_is_about_one_for_the_training_lesions_and_large_off_them() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(400) % 2 * 2
    spread = np.array([3.0, 2.0, 1.0, 0.1, 0.1, 0.1])
    embeddings = (rng.normal(0, 1, (400, 6)) * spread).astype(np.float32)
    embeddings[label == 2, 0] += 8
    model = fit_novelty(embeddings, label, explained=0.99)
    assert model.components.shape == (3, 6)
    np.testing.assert_allclose(model.components @ model.components.T, np.eye(3), atol=1e-5)
    assert model.score(embeddings).mean() == pytest.approx(0.9, abs=0.15)
    off = np.zeros((2, 6), np.float32)
    off[0, 5], off[1, 1] = 3, 25
    assert (model.score(off) > 3).all()
    # The labels' means are the reference, not the middle between them.
    means = np.stack([embeddings[label == k].mean(0) for k in (0, 2)])
    middle = embeddings.mean(0, keepdims=True)
    assert model.score(means).max() < model.score(middle)[0]
    assert fit_novelty(embeddings, label, most=2).components.shape == (2, 6)


def test_appearance_is_a_mixture_that_unlike_pictures_are_far_from() -> None:
    rng = np.random.default_rng(0)
    described = rng.normal(0, 1, (600, LENGTH)).astype(np.float32)
    described[300:] = described[300:] / 5 + 12
    model = fit_appearance(described)
    assert len(model.weights) == 2
    own = model.score(described)
    between = np.full((1, LENGTH), 6, np.float32)
    assert model.score(between)[0] > own.max()
    standard = (described - model.centre) / model.scale
    mixture = GaussianMixture(2, reg_covar=0.01, random_state=0).fit(standard.astype(np.float64))
    np.testing.assert_allclose(own, -mixture.score_samples(standard) / LENGTH, rtol=1e-3)


def test_few_pictures_that_are_all_alike_in_something_have_one_finite_gaussian() -> None:
    described = np.random.default_rng(1).normal(0, 1, (20, LENGTH)).astype(np.float32)
    described[:, 3] = 7
    model = fit_appearance(described)
    assert len(model.weights) == 1
    assert np.isfinite(model.score(described)).all()


def test_joint_thresholds_leave_a_share_beyond_one_or_another() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(2, 4000)).astype(np.float32)
    low, high = joint_thresholds([first, second * 100], 0.1)
    beyond = np.stack([first > low, second * 100 > high])
    assert beyond.any(0).mean() == pytest.approx(0.1, abs=0.002)
    assert beyond.mean(1) == pytest.approx([0.051, 0.051], abs=0.01)
    same = joint_thresholds([first, first], 0.1)
    assert same == pytest.approx([np.quantile(first, 0.9)] * 2, abs=1e-3)
