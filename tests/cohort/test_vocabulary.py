"""Canonical fields and the values that they accept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isic_metadata.fields import AnatomSiteGeneralEnum

from bundle.errors import InvalidRecord, UnknownCategory
from cohort import (
    derm7pt,
    ham10000,
    hiba,
    isic2020,
    milk10k,
    pad_ufes_20,
    slice3d_fields,
)
from cohort.vocabulary import (
    AGE_YEARS,
    DIAMETER_MM,
    FITZPATRICK_SKIN_TYPE,
    SEX,
    SITE_LIES_IN,
    SITE_SPELLINGS,
    adapted,
    read_value,
    site_field,
)


@pytest.mark.parametrize(
    ("field", "raw", "value"),
    [
        (AGE_YEARS, "85+", 85),
        (AGE_YEARS, "0.0", 0),
        (AGE_YEARS, "", None),
        (DIAMETER_MM, "3 cm", 30),
        (DIAMETER_MM, "2.7mm", 2.7),
        (DIAMETER_MM, "0", 0),
        (DIAMETER_MM, "UNK", None),
        (FITZPATRICK_SKIN_TYPE, "3.0", "III"),
        (FITZPATRICK_SKIN_TYPE, "vi", "VI"),
        (SEX, "FEMALE", "female"),
        (SEX, "unknown", None),
    ],
)
def test_a_cell_is_read_by_the_rules_of_its_field(field, raw, value) -> None:  # type: ignore[no-untyped-def]
    assert read_value(field, raw) == value


@given(st.text(max_size=8), st.sampled_from([AGE_YEARS, DIAMETER_MM, SEX, FITZPATRICK_SKIN_TYPE]))
def test_any_text_is_a_checked_value_or_an_invalid_record(raw, field) -> None:  # type: ignore[no-untyped-def]
    try:
        value = read_value(field, raw)
    except InvalidRecord:
        return
    if field.kind == "categorical":
        assert value is None or value in field.categories
    else:
        assert value is None or field.minimum <= value <= field.maximum


@given(st.floats(0, 300).map(lambda number: round(number, 3)))
def test_a_diameter_in_mm_reads_back(diameter: float) -> None:
    assert read_value(DIAMETER_MM, f"{diameter}") == diameter


@pytest.mark.parametrize("raw", ["85 +", "-1", "121", "nan", "inf", "fifty", "1 mm"])
def test_an_age_that_is_none_is_refused(raw: str) -> None:
    with pytest.raises(InvalidRecord, match="age_years"):
        read_value(AGE_YEARS, raw)


@pytest.mark.parametrize("raw", ["mm", "x mm", "-1 mm"])
def test_a_diameter_that_is_none_is_refused(raw: str) -> None:
    with pytest.raises(InvalidRecord, match="diameter_mm"):
        read_value(DIAMETER_MM, raw)


def test_a_finer_site_is_read_as_the_one_that_it_lies_in() -> None:
    field = site_field(("head/neck", "posterior torso", "upper extremity"))

    assert field.parse("Nose") == "head/neck"
    assert field.parse("torso back") == "posterior torso"
    assert field.parse("forearm") == "upper extremity"
    with pytest.raises(UnknownCategory):
        field.parse("thigh")


def test_a_site_that_the_cohort_has_is_read_as_itself() -> None:
    field = site_field(("face", "nose", "trunk"))

    assert field.parse("nose") == "nose"
    assert field.parse("lip") == "face"
    assert field.parse("anterior torso") == "trunk"


def test_a_coarser_site_is_never_read_as_a_finer_one() -> None:
    with pytest.raises(UnknownCategory):
        site_field(("face", "scalp")).parse("head/neck")


def test_every_site_of_the_data_sets_is_known() -> None:
    isic = {site.value for site in AnatomSiteGeneralEnum}
    known = {*SITE_LIES_IN, *SITE_LIES_IN.values(), *SITE_SPELLINGS.values()}

    assert set(slice3d_fields.SITES) <= isic
    for reader in (derm7pt, ham10000, hiba, isic2020, milk10k, pad_ufes_20):
        assert set(reader.SITES) <= known


def test_sites_lie_in_each_other_without_a_circle() -> None:
    for site in SITE_LIES_IN:
        path = [site]
        while path[-1] in SITE_LIES_IN:
            path.append(SITE_LIES_IN[path[-1]])
            assert len(path) == len(set(path))


def test_an_adapted_field_is_checked_again() -> None:
    assert adapted(AGE_YEARS, level="lesion").level == "lesion"
    with pytest.raises(ValueError, match="categorical"):
        adapted(SEX, categories=())
