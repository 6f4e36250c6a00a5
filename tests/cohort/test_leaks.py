"""Columns that may never be inputs."""

import pytest

from bundle.errors import LeakColumn
from cohort.leaks import LEAK_PATTERNS, OFF_BY_DEFAULT, leak_reason, refuse_leaks

DENIED = [
    *(pattern for pattern in LEAK_PATTERNS if "*" not in pattern),
    "diagnosis",
    "diagnosis_1",
    "diagnosis_full",
    "clinical_diagnosis",
    "iddx_full",
    "iddx_1",
    "iddx_5",
    "mel_mitotic_index",
    "mel_thick_mm",
    "mel_ulcer",
]


@pytest.mark.parametrize("name", DENIED)
def test_a_denied_column_is_refused_by_name_and_reason(name: str) -> None:
    with pytest.raises(LeakColumn) as caught:
        refuse_leaks(["age_years", name])

    assert f"{name!r}: {leak_reason(name)}" in str(caught.value)
    assert "age_years" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["Diagnosis Confirm-Type", " DX ", "Iddx-3", "TBP_LV_DNN_lesion_confidence"]
)
def test_another_spelling_of_a_denied_column_is_refused(name: str) -> None:
    with pytest.raises(LeakColumn):
        refuse_leaks([name])


def test_all_denied_columns_are_named_at_once() -> None:
    with pytest.raises(LeakColumn, match=r"'dx'.*'target'"):
        refuse_leaks(["dx", "sex", "target"])


@pytest.mark.parametrize(
    "name",
    [
        *OFF_BY_DEFAULT,
        "age_years",
        "sex",
        "skin_cancer_history",
        "MONET_hair",
        "tbp_lv_A",
        "melanin",
    ],
)
def test_other_columns_may_be_inputs(name: str) -> None:
    refuse_leaks([name])
