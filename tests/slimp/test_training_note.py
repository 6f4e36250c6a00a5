"""What a training line says beside its step."""

import pytest

from slimp.verbs.training_note import FEW_NEGATIVES, training_note

METRICS = {"loss": 1.23456, "images_per_second": 98.6, "data_wait_share": 0.125}


def test_a_line_says_loss_rate_and_how_long_data_was_waited_for() -> None:
    assert training_note(METRICS) == "loss 1.235  99 images/s  data wait 12%"


@pytest.mark.parametrize("level", ["lesion", "patient"])
def test_too_few_negatives_are_said_for_the_level_that_lacks_them(level: str) -> None:
    other = {"lesion": "patient", "patient": "lesion"}[level]
    negatives = {f"{level}_negatives": 7.0, f"{other}_negatives": 40.0}
    note = training_note({**METRICS, **negatives})
    assert note.endswith(f"data wait 12%  few negatives: 7 a {level}")


def test_both_levels_may_lack_negatives() -> None:
    note = training_note({**METRICS, "lesion_negatives": 0.0, "patient_negatives": 3.0})
    assert note.endswith("  few negatives: 0 a lesion  few negatives: 3 a patient")


def test_enough_negatives_and_a_level_that_does_not_train_are_no_warning() -> None:
    enough = {"lesion_negatives": float(FEW_NEGATIVES)}
    assert "few negatives" not in training_note({**METRICS, **enough})
