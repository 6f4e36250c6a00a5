"""Pseudo-metadata that is nobody's, everybody's, or another's."""

import numpy as np

from bundle.calibration import Extrapolation
from bundle.fields import Field, FieldSchema, Record
from tests.fakes import IMAGE_INPUT, LABELS, MALIGNANT, FakeEncoders, make_calibration
from training.conditions import Answers
from training.extrapolation_study import believing, guess_accuracy, marginal, shuffled
from training.fitted import FittedModel
from training.harm import worst_harms
from training.scores import Raw, find_truth

SITE = Field(name="site", level="lesion", kind="categorical", categories=("arm", "leg"))
AGE = Field(name="age", level="patient", kind="numeric", mean=50.0, std=10.0)


def test_shuffling_moves_every_record_and_loses_none() -> None:
    guessed: list[Record] = [{"age": float(i)} for i in range(50)]
    moved = shuffled(guessed, seed=0)
    assert sorted(float(r["age"] or 0) for r in moved) == [r["age"] for r in guessed]
    assert all(a != b for a, b in zip(moved, guessed, strict=True))
    assert shuffled(guessed, seed=0) == moved
    assert shuffled([{"age": 1.0}], seed=0) == [{"age": 1.0}]


def test_marginal_values_fill_what_neighbours_filled() -> None:
    guessed: list[Record] = [{"site": "arm"}, {"age": 3.0}, {}, {"site": None, "age": 4.0}] * 100
    known: list[Record] = [{"site": "leg", "age": 7.0}, {"site": "leg"}, {"age": 9.0}]
    drawn = marginal(guessed, known, ["site", "age"], seed=0)
    for was, now in zip(guessed, drawn, strict=True):
        assert set(now) == {k for k, v in was.items() if v is not None}
    assert {r["site"] for r in drawn if "site" in r} == {"leg"}
    ages = [r["age"] for r in drawn if "age" in r]
    assert set(ages) == {7.0, 9.0}
    assert 0.4 < np.mean(np.array(ages) == 7.0) < 0.6


def test_the_commonest_value_is_what_neighbours_must_beat() -> None:
    known: list[Record] = [{"site": "leg", "age": 50.0}, {"site": "leg"}, {"site": "arm"}]
    given: list[Record] = [{"site": "leg", "age": 59.0}, {"site": "arm", "age": 61.0}, {}]
    assert guess_accuracy([SITE, AGE], given, known) == {"site": 0.5, "age": 0.5}
    assert guess_accuracy([SITE], given, [{}]) == {"site": None}
    assert guess_accuracy([SITE], [{}], known) == {"site": None}


def test_guesses_that_are_believed_are_calibrated_as_given_records_are() -> None:
    """The calibration of guesses was fitted to answers at their fitted weight, often 0."""
    calibration = make_calibration(extrapolation=Extrapolation(weight=0.0))
    conditions = dict(calibration.conditions)
    conditions["given"] = conditions["given"].model_copy(update={"temperature": 2.5})
    model = FittedModel(
        kind="run",
        id="a",
        variant="fp32",
        encoders=FakeEncoders(),
        calibration=calibration.model_copy(update={"conditions": conditions}),
        novelty=None,
        appearance=None,
        schema=FieldSchema(fields=(SITE, AGE)),
        image_input=IMAGE_INPUT,
        labels=LABELS,
        malignant_labels=MALIGNANT,
        seen=(),
    )
    trusting = believing(model).calibration
    assert trusting.extrapolation.weight == 1
    assert trusting.conditions == {**conditions, "extrapolated": conditions["given"]}
    assert model.calibration.conditions["extrapolated"] != conditions["given"]


def test_the_worst_harm_comes_first_and_help_is_none() -> None:
    def answers(first: list[float]) -> Answers:
        p = np.array(first, np.float32)
        return Answers(np.stack([p, 1 - p], axis=1), np.array(["missing"] * len(first)))

    truth = find_truth(
        Raw(["a", "a", None, "a", "a"], np.zeros(5, np.int64), list("vwxyz")),
        own=("a", "b"),
        labels=("a", "b"),
        malignant=np.zeros(2, np.bool_),
        prior=np.ones(2, np.float32),
        samples=2,
        seed=0,
    )
    both = {
        "image": answers([0.9, 0.6, 0.9, 0.9, 0.2]),
        "neighbours": answers([0.4, 0.4, 0.1, 0.8, 0.9]),
    }
    assert worst_harms(both, truth, count=5).tolist() == [0, 1]
    assert worst_harms(both, truth, count=1).tolist() == [0]
