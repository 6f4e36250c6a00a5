"""Neighbours' votes and means against hand-made ones, and when they must abstain."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as bounded
from hypothesis import strategies as st

from bundle.calibration import Extrapolation
from bundle.fields import Field
from index.catalogue import Catalogue, CatalogueLesion
from index.extrapolation import extrapolate
from index.lesions import Hit
from tests.fakes import SCHEMA

SEX = Field(name="sex", level="patient", kind="categorical", categories=("female", "male"))
ITCH = Field(name="itch", level="lesion", kind="boolean")
AGE = Field(name="age_years", level="patient", kind="numeric", mean=50, std=10)
OPEN = Extrapolation(neighbours=15, min_similarity=0.0, min_support=1, min_agreement=0.0)


def make_hits(
    *neighbours: tuple[float, dict[str, Any]], patients: Sequence[str | None] | None = None
) -> list[Hit]:
    return [
        Hit(
            lesion_id=f"lesion-{n}",
            score=score,
            label="mel" if n % 2 else "nv",
            malignant=bool(n % 2),
            record=record,
            source="made up",
            patient_id=None if patients is None else patients[n],
            has_thumbnail=False,
        )
        for n, (score, record) in enumerate(neighbours)
    ]


def settings(**changes: Any) -> Extrapolation:
    return OPEN.model_copy(update=changes)


def test_a_vote_is_weighted_by_similarity() -> None:
    hits = make_hits((0.9, {"sex": "male"}), (0.5, {"sex": "female"}), (0.3, {"sex": "female"}))
    answer = extrapolate(hits, [SEX], OPEN)["sex"]
    assert (answer.value, answer.support, answer.reason) == ("male", 3, None)
    assert answer.agreement == pytest.approx(0.9 / 1.7)
    assert answer.interval is None


def test_votes_of_equal_weight_are_counted() -> None:
    hits = make_hits((0.9, {"sex": "male"}), (0.5, {"sex": "female"}), (0.3, {"sex": "female"}))
    alike = OPEN.model_copy(update={"weighting": "equal"})
    answer = extrapolate(hits, [SEX], alike)["sex"]
    assert (answer.value, answer.support) == ("female", 3)
    assert answer.agreement == pytest.approx(2 / 3)


def test_a_boolean_vote_for_false_is_an_answer() -> None:
    hits = make_hits((0.9, {"itch": False}), (0.8, {"itch": False}), (0.7, {"itch": True}))
    answer = extrapolate(hits, [ITCH], OPEN)["itch"]
    assert answer.value is False
    assert answer.agreement == pytest.approx(1.7 / 2.4)


def test_a_number_is_the_weighted_mean_with_its_quantiles() -> None:
    hits = make_hits(
        (0.8, {"age_years": 50.0}), (0.4, {"age_years": 53.0}), (0.4, {"age_years": 90.0})
    )
    answer = extrapolate(hits, [AGE], OPEN)["age_years"]
    mean = (0.8 * 50 + 0.4 * 53 + 0.4 * 90) / 1.6
    assert answer.value == pytest.approx(mean)
    # 60.75: only 53 lies within one standard deviation, 10 years.
    assert answer.agreement == pytest.approx(0.4 / 1.6)
    assert answer.interval == (50.0, 90.0)


def test_a_patient_with_many_lesions_has_one_vote_that_of_the_nearest() -> None:
    many, few = {"sex": "male", "itch": True}, {"sex": "female", "itch": False}
    hits = make_hits(
        *[(0.9, many)] * 5, (0.8, few), (0.7, few), patients=["ann"] * 5 + ["bob", None]
    )
    answers = extrapolate(hits, [SEX, ITCH], settings(min_support=3))
    for answer in answers.values():
        assert answer.support == 3
        assert answer.agreement == pytest.approx(1.5 / 2.4)
    assert (answers["sex"].value, answers["itch"].value) == ("female", False)
    alone = extrapolate(hits[:5], [SEX], settings(min_support=2))["sex"]
    assert (alone.value, alone.support, alone.reason) == (None, 1, "too_few_neighbours")


def test_lesions_of_unknown_patients_each_have_a_vote() -> None:
    hits = make_hits((0.9, {"sex": "male"}), (0.8, {"sex": "male"}), patients=[None, "lesion-0"])
    assert extrapolate(hits, [SEX], OPEN)["sex"].support == 2


def test_a_mean_that_a_far_number_carries_off_is_held_in_its_interval() -> None:
    near = [(0.9, {"age_years": 50.0})] * 12
    answer = extrapolate(make_hits(*near, (0.9, {"age_years": 90.0})), [AGE], OPEN)["age_years"]
    assert answer.interval == (50.0, 50.0)
    assert answer.value == 50.0
    assert answer.agreement == pytest.approx(12 / 13)


def test_only_the_first_hits_are_asked() -> None:
    far = [(0.5, {"sex": "male"})] * 9
    hits = make_hits((0.9, {"sex": "female"}), (0.9, {"sex": "female"}), *far)
    answer = extrapolate(hits, [SEX], settings(neighbours=2))["sex"]
    assert (answer.value, answer.support) == ("female", 2)


def test_neighbours_without_the_field_do_not_count() -> None:
    hits = make_hits((0.9, {}), (0.8, {"sex": None}), (0.7, {"sex": "male"}))
    answer = extrapolate(hits, [SEX], OPEN)["sex"]
    assert (answer.value, answer.support, answer.agreement) == ("male", 1, 1.0)


@pytest.mark.parametrize(
    ("scores", "reason", "support"),
    [
        ((), "too_few_neighbours", 0),
        ((0.9, 0.9), "too_few_neighbours", 2),
        ((0.9, 0.9, 0.2), "neighbours_too_far", 2),
        ((0.2, 0.2, 0.2), "neighbours_too_far", 0),
        ((0.9, 0.9, 0.5), None, 3),
    ],
)
def test_too_few_or_too_far_neighbours_abstain(
    scores: tuple[float, ...], reason: str | None, support: int
) -> None:
    hits = make_hits(*((score, {"age_years": 30.0}) for score in scores))
    chosen = settings(min_similarity=0.5, min_support=3)
    answer = extrapolate(hits, [AGE], chosen)["age_years"]
    assert (answer.reason, answer.support) == (reason, support)
    if reason is None:
        assert answer.value == pytest.approx(30.0)
        assert answer.agreement == 1.0
    else:
        assert (answer.value, answer.agreement, answer.interval) == (None, 0.0, None)


def test_neighbours_that_disagree_abstain_and_the_agreement_is_told() -> None:
    hits = make_hits(
        (0.6, {"sex": "male", "age_years": 10.0}), (0.5, {"sex": "female", "age_years": 90.0})
    )
    answers = extrapolate(hits, [SEX, AGE], settings(min_agreement=0.6))
    assert {a.reason for a in answers.values()} == {"neighbours_disagree"}
    assert {a.value for a in answers.values()} == {None}
    assert answers["sex"].agreement == pytest.approx(0.6 / 1.1)
    assert answers["age_years"].agreement == 0.0
    assert answers["age_years"].interval is None


def test_equal_votes_go_to_the_category_listed_first_and_to_false() -> None:
    record = {"sex": "male", "itch": True}
    other = {"sex": "female", "itch": False}
    for hits in (make_hits((0.5, record), (0.5, other)), make_hits((0.5, other), (0.5, record))):
        answers = extrapolate(hits, [SEX, ITCH], OPEN)
        assert answers["sex"].value == "female"
        assert answers["itch"].value is False


def test_a_category_that_the_field_does_not_list_wins_nothing_but_weighs() -> None:
    hits = make_hits((0.9, {"sex": "other"}), (0.3, {"sex": "male"}))
    answer = extrapolate(hits, [SEX], OPEN)["sex"]
    assert answer.value == "male"
    assert answer.agreement == pytest.approx(0.25)


def test_similarities_of_zero_and_below_still_vote_where_they_are_let_in() -> None:
    hits = make_hits((0.0, {"sex": "male"}), (-0.5, {"sex": "male"}), (-0.6, {"sex": "female"}))
    answer = extrapolate(hits, [SEX], settings(min_similarity=-1.0))["sex"]
    assert (answer.value, answer.support) == ("male", 3)
    assert answer.agreement == pytest.approx(2 / 3)


def test_a_numeric_field_that_was_never_fitted_is_refused() -> None:
    unfitted = Field(name="age_years", level="patient", kind="numeric")
    with pytest.raises(ValueError, match="age_years: std is not fitted"):
        extrapolate(make_hits((0.9, {"age_years": 3.0})), [unfitted], OPEN)


NEIGHBOURS = st.lists(
    st.tuples(
        st.floats(-1, 1, width=32),
        st.fixed_dictionaries(
            {},
            optional={
                "sex": st.sampled_from(["female", "male"]),
                "itch": st.booleans(),
                "age_years": st.floats(0, 120),
            },
        ),
    ),
    max_size=20,
)
SETTINGS = st.builds(
    Extrapolation,
    neighbours=st.integers(1, 20),
    min_similarity=st.floats(-1, 1),
    min_support=st.integers(1, 5),
    min_agreement=st.floats(0, 1),
)


@bounded(max_examples=60, deadline=None)
@given(NEIGHBOURS, SETTINGS)
def test_answers_equal_the_definition(
    neighbours: list[tuple[float, dict[str, Any]]], chosen: Extrapolation
) -> None:
    answers = extrapolate(make_hits(*neighbours), [SEX, ITCH, AGE], chosen)
    for field in (SEX, ITCH, AGE):
        asked = [
            (max(score, 1e-6), record[field.name])
            for score, record in neighbours[: chosen.neighbours]
            if field.name in record and score >= chosen.min_similarity
        ]
        answer = answers[field.name]
        assert answer.support == len(asked)
        assert 0 <= answer.agreement <= 1 + 1e-9
        assert (answer.value is None) == (answer.reason is not None)
        if len(asked) < chosen.min_support:
            assert answer.reason in ("neighbours_too_far", "too_few_neighbours")
            continue
        total = sum(weight for weight, _ in asked)
        if field is AGE:
            mean = sum(weight * value for weight, value in asked) / total
            ages = [value for _, value in asked]
            if answer.value is not None:
                assert answer.interval is not None
                low, high = answer.interval
                assert min(ages) <= low <= float(answer.value) <= high <= max(ages)
                held = min(max(mean, low), high)
                assert math.isclose(float(answer.value), held, rel_tol=1e-9, abs_tol=1e-9)
            continue
        votes: defaultdict[Any, float] = defaultdict(float)
        for weight, value in asked:
            votes[value] += weight
        assert answer.agreement == pytest.approx(max(votes.values()) / total)
        if answer.value is not None:
            assert votes[answer.value] == pytest.approx(max(votes.values()))


@bounded(max_examples=30, deadline=None)
@given(NEIGHBOURS, st.randoms(use_true_random=False))
def test_labels_are_never_read(neighbours: list[tuple[float, dict[str, Any]]], random: Any) -> None:
    hits = make_hits(*neighbours)
    relabelled = [
        dataclasses.replace(hit, label=random.choice(["bcc", None]), malignant=None) for hit in hits
    ]
    fields = [SEX, ITCH, AGE]
    assert extrapolate(hits, fields, OPEN) == extrapolate(relabelled, fields, OPEN)


def test_quantiles_equal_numpys_weighted_ones() -> None:
    rng = np.random.default_rng(4)
    for _ in range(40):
        size = int(rng.integers(1, 16))
        ages, weights = rng.integers(0, 100, size).astype(float), rng.uniform(0.1, 1, size)
        hits = make_hits(
            *((w, {"age_years": a}) for a, w in zip(ages.tolist(), weights.tolist(), strict=True))
        )
        expected = np.quantile(ages, [0.1, 0.9], weights=weights, method="inverted_cdf")
        assert extrapolate(hits, [AGE], OPEN)["age_years"].interval == tuple(expected.tolist())


CENTRES = np.eye(3, 6, dtype=np.float32)
PLANTED = (
    {"sex": "female", "anatom_site": "back", "itch": True, "age_years": 20.0},
    {"sex": "male", "anatom_site": "scalp", "itch": False, "age_years": 50.0},
    {"sex": "female", "anatom_site": "lower extremity", "itch": False, "age_years": 80.0},
)


def test_planted_clusters_are_recovered_and_far_queries_get_no_answer(
    make_catalogue: Callable[..., Catalogue], make_lesion: Callable[..., CatalogueLesion]
) -> None:
    rng = np.random.default_rng(8)
    lesions = []
    for number in range(90):
        cluster = number % 3
        # Every tenth value is missing, every seventh record is another cluster's.
        record = dict(PLANTED[(cluster + (number % 7 == 0)) % 3])
        record.pop(list(record)[number % 4] if number % 10 == 0 else "", None)
        embedding = CENTRES[cluster] + rng.normal(0, 0.05, 6).astype(np.float32)
        lesions.append(make_lesion(number, record=record, embedding=embedding))
    catalogue = make_catalogue(lesions)
    chosen = Extrapolation(neighbours=15, min_similarity=0.9, min_support=5, min_agreement=0.6)
    near = CENTRES + rng.normal(0, 0.05, (3, 6)).astype(np.float32)
    for hits, planted in zip(catalogue.search(near, k=15), PLANTED, strict=True):
        answers = extrapolate(hits, SCHEMA.fields, chosen)
        for name in ("sex", "anatom_site", "itch"):
            assert answers[name].value == planted[name]
        assert float(answers["age_years"].value or 0) == pytest.approx(planted["age_years"], abs=15)
        assert answers["diameter_mm"].reason == "too_few_neighbours"
    (far,) = catalogue.search(np.ones((1, 6), np.float32), k=15)
    reasons = {answer.reason for answer in extrapolate(far, SCHEMA.fields[:1], chosen).values()}
    assert reasons == {"neighbours_too_far"}
