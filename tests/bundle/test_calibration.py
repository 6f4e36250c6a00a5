"""Logits to probabilities, prevalence shift, prediction sets."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bundle.calibration import (
    Calibration,
    ConditionCalibration,
    Conformal,
    Extrapolation,
    log_odds,
    malignant_share,
    prediction_set,
    shift_odds,
    shift_prevalence,
    softmax,
)
from bundle.errors import InvalidSettings
from tests.fakes import make_calibration

FloatArray = npt.NDArray[np.float32]


def conformal(*quantiles: float, **changes: Any) -> Conformal:
    content: dict[str, Any] = {
        "alpha": 0.1,
        "quantiles": quantiles,
        "scope": ("label",) * len(quantiles),
        "lesions": 50,
    }
    return Conformal(**{**content, **changes})


def condition(temperature: float, *bias: float) -> ConditionCalibration:
    return ConditionCalibration(
        temperature=temperature,
        bias=bias,
        conformal=conformal(*([0.9] * len(bias))),
        expected_calibration_error=0.01,
        lesions=50,
    )


def softmax_slowly(logits: npt.NDArray[Any]) -> list[list[float]]:
    rows = []
    for row in logits:
        weights = [math.exp(float(value) - float(max(row))) for value in row]
        rows.append([weight / math.fsum(weights) for weight in weights])
    return rows


def test_softmax_agrees_with_the_slow_oracle() -> None:
    logits = (np.random.default_rng(0).normal(size=(11, 7)) * 5).astype(np.float32)
    shares = softmax(logits)
    assert shares.dtype == np.float32
    np.testing.assert_allclose(shares, softmax_slowly(logits), rtol=1e-5)


def test_softmax_of_two_logits_is_the_logistic_function() -> None:
    share = softmax(np.asarray([[math.log(3), 0]], np.float32))
    np.testing.assert_allclose(share, [[0.75, 0.25]], rtol=1e-6)


@given(
    st.lists(
        st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=3, max_size=3),
        min_size=1,
        max_size=4,
    )
)
def test_shares_sum_to_1_for_any_finite_logits(rows: list[list[float]]) -> None:
    shares = softmax(np.asarray(rows, np.float32))
    assert np.isfinite(shares).all()
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)


def test_each_condition_applies_its_own_temperature_and_bias() -> None:
    calibration = make_calibration(
        conditions={
            "given": condition(1, 0, 0, 0),
            "extrapolated": condition(2, 0, 1, 0),
            "missing": condition(4, 0, 0, -1),
        }
    )
    logits = np.asarray([[1, 2, 3], [4, 0, -4]], np.float32)
    before = logits.copy()
    for name, temperature, bias in (
        ("given", 1, (0, 0, 0)),
        ("extrapolated", 2, (0, 1, 0)),
        ("missing", 4, (0, 0, -1)),
    ):
        expected = softmax_slowly(logits / temperature + np.asarray(bias, np.float32))
        got = calibration.probabilities(logits, name)  # type: ignore[arg-type]  # one of the names
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_array_equal(logits, before)


def test_a_high_temperature_and_no_bias_makes_labels_alike_and_keeps_their_order() -> None:
    calibration = make_calibration(
        conditions=dict.fromkeys(("given", "extrapolated", "missing"), condition(1e6, 0, 0, 0))
    )
    shares = calibration.probabilities(np.asarray([[1, 9, 5]], np.float32), "given")
    np.testing.assert_allclose(shares, 1 / 3, atol=1e-5)


def test_the_malignant_share_is_summed_over_the_malignant_labels() -> None:
    prevalence = {"nv": 0.7, "mel": 0.2, "bcc": 0.1}
    assert malignant_share(prevalence, ("mel", "bcc")) == pytest.approx(0.3)
    assert malignant_share(prevalence, ()) == 0


def test_a_shift_of_odds_is_bayes_rule() -> None:
    # Likelihood ratio 4 at prior 0.2: posterior odds 1. At prior 0.01: 4 / 99.
    assert shift_odds(0.5, trained=0.2, site=0.01) == pytest.approx((4 / 99) / (1 + 4 / 99))


SHARE = st.floats(0.001, 0.999)


@given(SHARE, SHARE, SHARE)
def test_a_shift_to_the_same_prevalence_changes_nothing_and_a_shift_back_undoes_it(
    malignancy: float, trained: float, site: float
) -> None:
    assert shift_odds(malignancy, trained=trained, site=trained) == pytest.approx(malignancy)
    there = shift_odds(malignancy, trained=trained, site=site)
    assert shift_odds(there, trained=site, site=trained) == pytest.approx(malignancy)
    assert (there > malignancy) == (site > trained) or there == pytest.approx(malignancy)


@pytest.mark.parametrize("malignancy", [0.0, 1.0])
def test_certainty_is_not_shifted(malignancy: float) -> None:
    assert shift_odds(malignancy, trained=0.2, site=0.001) == malignancy


def test_a_shift_of_probabilities_moves_the_malignant_odds_and_keeps_the_rest_in_proportion() -> (
    None
):
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(5), size=7).astype(np.float32)
    malignant = np.asarray([False, True, False, True, False])
    shifted = shift_prevalence(probabilities, malignant, trained=0.4, site=0.05)
    assert shifted.shape == (7, 5)
    assert shifted.dtype == np.float32
    np.testing.assert_allclose(shifted.sum(axis=1), 1, rtol=1e-6)
    for before, after in zip(probabilities, shifted, strict=True):
        expected = shift_odds(float(before[malignant].sum()), trained=0.4, site=0.05)
        assert after[malignant].sum() == pytest.approx(expected, rel=1e-5)
        assert after[1] / after[3] == pytest.approx(before[1] / before[3], rel=1e-5)
        assert after[0] / after[4] == pytest.approx(before[0] / before[4], rel=1e-5)


@pytest.mark.parametrize(
    ("trained", "site"),
    [(0.0, 0.1), (1.0, 0.1), (0.1, 0.0), (0.1, 1.0), (-0.1, 0.5), (0.5, 1.5), (math.nan, 0.5)],
)
def test_a_prevalence_without_odds_is_refused(trained: float, site: float) -> None:
    with pytest.raises(InvalidSettings, match=r"^a shift of prevalence needs both malignant"):
        shift_odds(0.5, trained=trained, site=site)
    with pytest.raises(InvalidSettings, match="leave the site's prevalence unset"):
        shift_prevalence(
            np.asarray([[0.5, 0.5]], np.float32),
            np.asarray([True, False]),
            trained=trained,
            site=site,
        )


def test_a_label_is_in_the_set_when_one_minus_its_probability_is_at_most_its_quantile() -> None:
    probabilities = np.asarray([0.25, 0.5, 0.25], np.float32)
    assert prediction_set(probabilities, conformal(0.75, 0.5, 0.7)) == [1, 0]
    assert prediction_set(probabilities, conformal(0.7, 0.75, 0.75)) == [1, 2]


def test_the_set_is_ordered_by_probability_and_ties_by_position() -> None:
    probabilities = np.asarray([0.1, 0.4, 0.1, 0.4], np.float32)
    assert prediction_set(probabilities, conformal(1, 1, 1, 1)) == [1, 3, 0, 2]


def test_many_ties_are_ordered_by_position() -> None:
    probabilities = np.full(99, 1 / 99, np.float32)
    probabilities[::7] = 0.5
    order = sorted(range(99), key=lambda c: (-float(probabilities[c]), c))
    assert prediction_set(probabilities, conformal(*[1.0] * 99)) == order


def test_the_set_is_never_empty_and_then_holds_the_likeliest() -> None:
    assert prediction_set(np.asarray([0.2, 0.5, 0.3], np.float32), conformal(0, 0, 0)) == [1]


def test_the_set_may_leave_out_the_second_and_keep_the_third() -> None:
    assert prediction_set(np.asarray([0.5, 0.3, 0.2], np.float32), conformal(0, 0, 0.8)) == [0, 2]


def test_the_positions_are_plain_integers() -> None:
    chosen = prediction_set(np.asarray([0.5, 0.5], np.float32), conformal(1, 1))
    assert [type(position) for position in chosen] == [int, int]


def test_log_odds_undo_the_logistic_function_and_stay_finite() -> None:
    odds = log_odds([0, 0.5, 0.75, 1])
    assert odds.dtype == np.float32
    limit = math.log((1 - 1e-6) / 1e-6)
    np.testing.assert_allclose(odds, [-limit, 0, math.log(3), limit], rtol=1e-6, atol=1e-7)


def test_log_odds_of_single_precision_are_as_exact() -> None:
    limit = math.log((1 - 1e-6) / 1e-6)
    np.testing.assert_allclose(log_odds(np.asarray([0, 1], np.float32)), [-limit, limit], rtol=1e-6)


def test_log_odds_take_one_number_too() -> None:
    assert float(log_odds(0.25)) == pytest.approx(-math.log(3))


def test_a_calibration_survives_its_own_json() -> None:
    calibration = make_calibration(oddness_quantiles=(0.0, 0.1, 0.1, 0.4))
    assert Calibration.model_validate_json(calibration.model_dump_json()) == calibration


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"alpha": 0}, "greater than 0"),
        ({"alpha": 1}, "less than 1"),
        ({"quantiles": (0.1,)}, "one entry a label"),
        ({"scope": ("label", "patient")}, "'label', 'rare' or 'marginal'"),
        ({"quantiles": (0.1, math.inf)}, "finite"),
        ({"lesions": -1}, "greater than or equal to 0"),
        ({"note": ""}, "not permitted"),
    ],
)
def test_conformal_thresholds_that_make_no_sense_are_refused(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason):
        conformal(0.1, 0.2, **changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"temperature": 0}, "greater than 0"),
        ({"temperature": math.nan}, "greater than 0|finite"),
        ({"bias": (0.0,)}, "one entry a label"),
        ({"lesions": -1}, "greater than or equal to 0"),
    ],
)
def test_a_condition_that_makes_no_sense_is_refused(changes: dict[str, Any], reason: str) -> None:
    content = condition(1, 0, 0).model_dump()
    assert ConditionCalibration.model_validate({**content, "lesions": 0}).lesions == 0
    with pytest.raises(ValidationError, match=reason):
        ConditionCalibration.model_validate({**content, **changes})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prevalence": {"nv": 0.5, "mel": 0.4, "bcc": 0.0}}, "must sum to 1"),
        ({"prevalence": {"nv": 1.5, "mel": -0.5, "bcc": 0.0}}, "less than or equal to 1"),
        ({"oddness_quantiles": (0.2, 0.1)}, "must rise"),
        ({"novelty_threshold": math.nan}, "finite"),
        (
            {"conditions": {"guessed": condition(1, 0, 0, 0)}},
            "'given', 'extrapolated' or 'missing'",
        ),
        ({"secret": 1}, "not permitted"),
    ],
)
def test_a_calibration_that_makes_no_sense_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        make_calibration(**changes)


def test_a_rounded_prevalence_is_accepted_and_a_worse_one_is_not() -> None:
    make_calibration(prevalence={"nv": 0.333, "mel": 0.333, "bcc": 0.3335})
    with pytest.raises(ValidationError, match="must sum to 1"):
        make_calibration(prevalence={"nv": 0.333, "mel": 0.333, "bcc": 0.332})
    with pytest.raises(ValidationError, match="must sum to 1"):
        make_calibration(prevalence={"nv": 0.333, "mel": 0.333, "bcc": 0.336})


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("neighbours", 1, 200),
        ("min_similarity", -1, 1),
        ("min_support", 1, None),
        ("min_agreement", 0, 1),
    ],
)
def test_extrapolation_settings_have_bounds(name: str, low: float, high: float | None) -> None:
    for edge in (low, high):
        if edge is not None:
            assert getattr(Extrapolation.model_validate({name: edge}), name) == edge
    for outside in (low - 1, None if high is None else high + 1):
        if outside is not None:
            with pytest.raises(ValidationError):
                Extrapolation.model_validate({name: outside})
