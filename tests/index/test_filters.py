"""What a caller may write as a filter, and what each kind of mistake is told."""

import contextlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.errors import InvalidFilter, UnknownField
from index.catalogue import Catalogue, CatalogueLesion
from index.filters import MAX_ALTERNATIVES, Filter, OneOf, Range, parse_filter
from tests.fakes import LABELS, SCHEMA

MakeLesion = Callable[..., CatalogueLesion]
MakeCatalogue = Callable[..., Catalogue]
FIND = Callable[[dict[str, object]], set[str]]


@pytest.fixture
def find(make_catalogue: MakeCatalogue, make_lesion: MakeLesion) -> FIND:
    """Call it with a filter for the lesions that it keeps; lesions: a, b, c and d."""
    records = {
        "a": {"sex": "female", "age_years": 40.0, "itch": True},
        "b": {"sex": "male", "age_years": 60.0, "itch": False, "anatom_site": "back"},
        "c": {"age_years": 41.5, "anatom_site": "scalp"},
        "d": {},
    }
    answers = {"a": ("mel", True), "b": ("nv", False), "c": (None, True), "d": (None, None)}
    catalogue = make_catalogue(
        [
            make_lesion(n, lesion_id=name, record=record, label=label, malignant=malignant)
            for n, ((name, record), (label, malignant)) in enumerate(
                zip(records.items(), answers.values(), strict=True)
            )
        ]
    )

    def search(raw: dict[str, object]) -> set[str]:
        where = parse_filter(raw, SCHEMA, LABELS)
        (hits,) = catalogue.search(np.ones((1, 6), np.float32), k=9, where=where)
        return {hit.lesion_id for hit in hits}

    return search


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ({}, "abcd"),
        ({"sex": "female"}, "a"),
        ({"SEX": "Female"}, "a"),
        ({"sex": ["female", "male"]}, "ab"),
        ({"sex": ["female", "female"]}, "a"),
        ({"localization": "back"}, "b"),
        ({"anatom_site": ["leg", "scalp"]}, "c"),
        ({"itch": False}, "b"),
        ({"itch": "yes"}, "a"),
        ({"itch": [True, False]}, "ab"),
        ({"age": 40}, "a"),
        ({"age_years": [40, "60"]}, "ab"),
        ({"age_years": {"gte": 40, "lte": 41.5}}, "ac"),
        ({"age_years": {"gt": 40, "lt": 60}}, "c"),
        ({"age_years": {"gt": 41.5}}, "b"),
        ({"age_years": {"lte": 40}}, "a"),
        ({"age_years": {"gt": 40, "lt": 41}}, ""),
        ({"label": "mel"}, "a"),
        ({"label": ["NV", "mel", "bcc"]}, "ab"),
        ({"malignant": True}, "ac"),
        ({"malignant": "false"}, "b"),
        ({"malignant": True, "anatom_site": "scalp"}, "c"),
        ({"malignant": False, "sex": "female"}, ""),
    ],
)
def test_keys_are_and_lists_are_or_and_what_is_missing_never_matches(
    find: FIND, raw: dict[str, object], kept: str
) -> None:
    assert find(raw) == set(kept)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ("sex=female", "expected an object"),
        ({"sex": "femail"}, "nearest is 'female'"),
        ({"sex": None}, "missing values"),
        ({"sex": ["female", "unknown"]}, "missing values"),
        ({"sex": []}, "expected 1 to 1000 values, got 0"),
        ({"sex": ["male"] * (MAX_ALTERNATIVES + 1)}, "got 1001"),
        ({"sex": [["male"]]}, "expected a category"),
        ({"sex": {"gte": 1}}, "the field is categorical"),
        ({"itch": {"gte": 0}}, "the field is boolean"),
        ({"itch": 2}, "expected true or false"),
        ({"age_years": {}}, "gte, gt, lte, lt"),
        ({"age_years": {"min": 3}}, "gte, gt, lte, lt"),
        ({"age_years": {"gte": None}}, "missing values"),
        ({"age_years": {"gte": "old"}}, "expected a number"),
        ({"age_years": {"gte": [1]}}, "expected a number"),
        ({"age_years": {"gte": 500}}, "from 0 to 120"),
        ({"age_years": {"gte": 4, "gt": 4}}, "one lower and one upper"),
        ({"age_years": {"lte": 4, "lt": 4}}, "one lower and one upper"),
        ({"age_years": {"gte": 60, "lte": 40}}, "got 60 and 40"),
        ({"age_years": float("nan")}, "age_years"),
        ({"age_years": True}, "expected a number"),
        ({"age": 4, "age_years": 4}, "age_years: expected one condition, got two"),
        ({"label": "mel", "LABEL": "nv"}, "label: expected one condition, got two"),
        ({"label": "melanoma"}, "one of nv, mel, bcc"),
        ({"label": None}, "one of nv, mel, bcc"),
        ({"label": []}, "got 0"),
        ({"malignant": None}, "missing values"),
        ({"malignant": "maybe"}, "expected true or false"),
        ({"malignant": {"gte": 1}}, "boolean"),
    ],
)
def test_a_filter_that_cannot_be_read_says_what_was_expected(raw: object, told: str) -> None:
    with pytest.raises(InvalidFilter) as caught:
        parse_filter(raw, SCHEMA, LABELS)  # type: ignore[arg-type]  # what a caller may send
    assert told in str(caught.value)
    assert len(str(caught.value)) < 300


def test_an_unknown_field_is_told_with_the_nearest() -> None:
    with pytest.raises(UnknownField, match="nearest is 'age_years'"):
        parse_filter({"age_year": 4}, SCHEMA, LABELS)


def test_a_catalogue_without_labels_has_none_to_filter_by() -> None:
    with pytest.raises(InvalidFilter, match="expected one of none"):
        parse_filter({"label": "mel"}, SCHEMA, ())


def test_a_label_called_unknown_can_be_asked_for() -> None:
    parsed = parse_filter({"label": "unk"}, SCHEMA, ("nv", "UNK"))
    assert parsed == Filter((OneOf("label", "categorical", ("UNK",)),))


def test_a_filter_is_canonical_and_can_be_compared() -> None:
    parsed = parse_filter({"age": {"gte": "40"}, "Sex": "FEMALE"}, SCHEMA, LABELS)
    expected = Filter(
        (Range("age_years", (("gte", 40.0),)), OneOf("sex", "categorical", ("female",)))
    )
    assert parsed == expected
    assert hash(parsed) == hash(expected)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
NAMES = st.sampled_from([*SCHEMA.names, "label", "malignant", "Age"]) | st.text(max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, JSON, max_size=3))
def test_any_json_is_a_filter_or_one_of_our_errors(raw: dict[str, object]) -> None:
    with contextlib.suppress(InvalidFilter, UnknownField):
        assert len(parse_filter(raw, SCHEMA, LABELS).conditions) == len(raw)
