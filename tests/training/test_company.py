"""A patient's malignant lesions among the first, alone and in company, counted in the head."""

import numpy as np

from tests.fakes import DIM, FakeEncoders
from training.company import TOPS, judge_company
from training.context import LesionTable
from training.features import RecordFeatures


def make_table(sizes: list[int], malignant: list[int]) -> LesionTable:
    """Return lesions whose scores fall from first to last within a patient, one picture of all.

    Args:
        sizes: the patients' lesions.
        malignant: rows that are malignant.
    """
    count = sum(sizes)
    nothing, no = np.zeros((count, DIM), np.float32), np.zeros(count, np.bool_)
    falling = np.concatenate([-np.arange(size, dtype=np.float32) for size in sizes])
    return LesionTable(
        image=nothing,
        records=RecordFeatures(nothing, nothing, no, no),
        malignancy_logit=falling,
        image_logit=falling,
        malignant=np.isin(np.arange(count), malignant),
        patient=np.repeat(np.arange(len(sizes)), sizes),
    )


def test_patients_of_no_more_lesions_than_are_looked_at_are_not_judged() -> None:
    # The first patient's only malignant lesion is the 15th of 15; the second's are the first and
    # the last of 16.
    table = make_table([15, 16], [14, 15, 30])
    figures = judge_company(FakeEncoders(), table, samples=20, seed=0)
    top = figures["sensitivity_in_top_15"]
    assert (top["patients"], top["alone"]["value"]) == (1, 0.5)
    assert figures["sensitivity_in_top_3"]["patients"] == 2
    assert figures["sensitivity_in_top_3"]["alone"]["value"] == 0.25
    assert figures["sensitivity_in_top_3"]["alone"]["low"] == 0


def test_lesions_alone_are_judged_without_a_context_model() -> None:
    table = make_table([16, 4], [15, 16])
    figures = judge_company(FakeEncoders(has_context=False), table, samples=20, seed=0)
    with_context = judge_company(FakeEncoders(), table, samples=20, seed=0)
    for name in ("malignant_auroc", *(f"sensitivity_in_top_{top}" for top in TOPS)):
        assert figures[name]["alone"] == with_context[name]["alone"]
        for missing in ("in_context", "difference"):
            assert figures[name][missing]["reason"] == "the model has no context model"
            assert with_context[name][missing]["value"] is not None


def test_without_a_patient_to_judge_the_reason_says_who_would_be() -> None:
    figures = judge_company(FakeEncoders(), make_table([3, 3], [0, 4]), samples=20, seed=0)
    reason = "no patient with more than 3 lesions, one of them malignant"
    none = {"value": None, "reason": reason}
    assert figures["sensitivity_in_top_3"] == {
        "patients": 0,
        "alone": none,
        "in_context": none,
        "difference": none,
    }
    assert figures["sensitivity_in_top_1"]["alone"]["value"] == 0.5


def test_the_number_of_a_patients_lesions_is_a_baseline() -> None:
    """The malignant lesions are an only one and one of three; the other patient has four."""
    figures = judge_company(FakeEncoders(), make_table([1, 3, 4], [0, 1]), samples=20, seed=0)
    # Of 2 x 6 pairs the only one wins 6, the other wins 4 and is level in 2.
    assert figures["malignant_auroc"]["lesion_count"]["value"] == (6 + 4 + 2 / 2) / 12
