"""The field schema and the reading of one record."""

import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bundle.errors import InvalidRecord, OutOfRange, UnknownCategory, UnknownField
from bundle.fields import Field, FieldSchema, is_missing

AGE = Field(
    name="age_years",
    level="patient",
    kind="numeric",
    unit="years",
    minimum=0,
    maximum=120,
    aliases=("age", "Age_Approx"),
)
SITE = Field(
    name="anatom_site",
    level="lesion",
    kind="categorical",
    categories=("back", "scalp", "Upper Limb"),
    category_aliases={"dorsum": "back", "1": "scalp", "2.0": "back"},
)
GREW = Field(name="grew", level="lesion", kind="boolean")
ANY_NUMBER = Field(name="score", level="lesion", kind="numeric")
SCHEMA = FieldSchema(fields=(AGE, SITE, GREW, ANY_NUMBER))
HUGE = 10**5000
HUGE_RAW = pytest.param(HUGE, id="huge")


@pytest.mark.parametrize("raw", [None, "", "  ", "unknown", "UNKNOWN", " Unk\t", "UNK"])
def test_only_the_missing_words_mean_missing(raw: object) -> None:
    assert is_missing(raw)
    for field in SCHEMA.fields:
        assert field.parse(raw) is None


@pytest.mark.parametrize("raw", [0, 0.0, False, "0", "no", "none", "nan", "n/a", "-", [], {}, ()])
def test_falsy_values_and_other_words_are_not_missing(raw: object) -> None:
    assert not is_missing(raw)


@pytest.mark.parametrize(
    ("raw", "value"),
    [(0, 0.0), (0.0, 0.0), ("0", 0.0), (55, 55.0), (" 5.5 ", 5.5), ("1e1", 10.0), (120, 120.0)],
)
def test_a_number_is_read_with_its_bounds_included(raw: object, value: float) -> None:
    number = AGE.parse(raw)
    assert number == value
    assert type(number) is float


@pytest.mark.parametrize(
    "raw",
    [
        -0.001,
        120.001,
        "121",
        HUGE_RAW,
        pytest.param(-HUGE, id="minus huge"),
        math.inf,
        "-inf",
        "1e999",
    ],
)
def test_a_number_outside_the_bounds_is_out_of_range(raw: object) -> None:
    with pytest.raises(OutOfRange, match="age_years: expected a number from 0 to 120 years, got"):
        AGE.parse(raw)


@pytest.mark.parametrize("raw", [math.nan, math.inf, -math.inf, "nan", "Infinity", HUGE_RAW])
def test_a_number_without_bounds_must_still_be_finite(raw: object) -> None:
    with pytest.raises(OutOfRange, match=r"score: expected a number from -inf to inf, got"):
        ANY_NUMBER.parse(raw)


def test_a_field_may_have_one_bound_only() -> None:
    field = Field(name="count", level="lesion", kind="numeric", minimum=1)
    assert field.parse(1e9) == 1e9
    with pytest.raises(OutOfRange):
        field.parse(0.5)


@pytest.mark.parametrize("raw", [True, False, "old", "5 years", "1_5", "0x10", [55], {}, b"5", 5j])
def test_what_is_no_number_is_refused(raw: object) -> None:
    with pytest.raises(InvalidRecord, match="age_years: expected a number, got") as caught:
        AGE.parse(raw)
    assert type(caught.value) is InvalidRecord
    assert caught.value.field == "age_years"


@pytest.mark.parametrize("raw", [True, "true", "TRUE", " Yes ", "1", 1])
def test_true_words_are_true(raw: object) -> None:
    assert GREW.parse(raw) is True


@pytest.mark.parametrize("raw", [False, "false", "False", "no", "0", 0])
def test_false_words_are_false_and_not_missing(raw: object) -> None:
    assert GREW.parse(raw) is False


@pytest.mark.parametrize("raw", [2, -1, 1.0, 0.0, Decimal(1), "maybe", "y", [], {"a": 1}, HUGE_RAW])
def test_what_is_neither_true_nor_false_is_refused(raw: object) -> None:
    with pytest.raises(InvalidRecord, match="grew: expected true or false, got"):
        GREW.parse(raw)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("back", "back"),
        (" BACK ", "back"),
        ("Upper Limb", "Upper Limb"),
        ("upper limb", "Upper Limb"),
        ("Dorsum", "back"),
        (1, "scalp"),
        ("1", "scalp"),
        (2.0, "back"),
    ],
)
def test_a_category_is_read_by_name_or_alias_in_any_case(raw: object, value: str) -> None:
    assert SITE.parse(raw) == value


def test_an_unknown_category_is_refused_with_the_nearest_and_the_list() -> None:
    with pytest.raises(UnknownCategory) as caught:
        SITE.parse("Bakc")
    assert str(caught.value) == (
        "anatom_site: unknown category 'Bakc'; nearest is 'back'; accepted: back, scalp, Upper Limb"
    )
    assert caught.value.field == "anatom_site"


def test_the_hint_names_the_category_that_an_alias_means() -> None:
    with pytest.raises(UnknownCategory, match="nearest is 'back'"):
        SITE.parse("dorsun")


def test_a_long_list_of_categories_is_cut_in_the_message() -> None:
    words = tuple(f"site{n}" for n in range(13))
    field = Field(name="site", level="lesion", kind="categorical", categories=words)
    with pytest.raises(UnknownCategory, match=r"accepted: site0, .*site11, \.\.\.$"):
        field.parse("nowhere")
    shorter = field.model_copy(update={"categories": words[:12]})
    with pytest.raises(UnknownCategory, match=r"site10, site11$"):
        shorter.parse("nowhere")


@pytest.mark.parametrize("raw", [True, object(), ["back"], {"back": 1}, b"back"])
def test_what_is_no_word_is_no_category(raw: object) -> None:
    with pytest.raises(InvalidRecord, match="anatom_site: expected a category, got"):
        SITE.parse(raw)


@pytest.mark.parametrize("raw", [HUGE_RAW, math.nan, 3, "x" * 10**6])
def test_an_odd_category_is_unknown_and_the_message_stays_short(raw: object) -> None:
    with pytest.raises(UnknownCategory) as caught:
        SITE.parse(raw)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("field", [AGE, SITE, GREW], ids=lambda field: field.name)
def test_a_message_never_repeats_more_than_a_little_of_what_was_sent(field: Field) -> None:
    for raw in ("x" * 10**6, ["y" * 10**6], HUGE, [HUGE]):
        with pytest.raises(InvalidRecord) as caught:
            field.parse(raw)
        assert len(str(caught.value)) < 250


def test_a_value_of_64_characters_is_shown_whole_and_a_longer_one_is_cut() -> None:
    with pytest.raises(InvalidRecord, match=f"got '{'x' * 62}'$"):
        GREW.parse("x" * 62)
    with pytest.raises(InvalidRecord, match=rf"got '{'x' * 63}\.\.\.$"):
        GREW.parse("x" * 63)


@pytest.mark.parametrize(
    ("field", "raw", "message"),
    [
        (AGE, True, "age_years: expected a number, got True"),
        (AGE, "1_5", "age_years: expected a number, got '1_5'"),
        (AGE, "old", "age_years: expected a number, got 'old'"),
        (AGE, 121, "age_years: expected a number from 0 to 120 years, got 121"),
        (ANY_NUMBER, math.inf, "score: expected a number from -inf to inf, got inf"),
        (GREW, "perhaps", "grew: expected true or false, got 'perhaps'"),
        (SITE, False, "anatom_site: expected a category, got False"),
    ],
)
def test_a_refusal_says_what_was_expected_and_what_came(
    field: Field, raw: object, message: str
) -> None:
    with pytest.raises(InvalidRecord) as caught:
        field.parse(raw)
    assert str(caught.value) == message
    assert caught.value.field == field.name


def test_a_huge_integer_is_named_as_such() -> None:
    with pytest.raises(OutOfRange, match="got a huge integer"):
        AGE.parse(HUGE)


def build(**changes: Any) -> Field:
    return Field(**{"name": "size_mm", "level": "lesion", "kind": "numeric", **changes})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "Size"}, "pattern"),
        ({"name": "1st"}, "pattern"),
        ({"name": "size-mm"}, "pattern"),
        ({"name": "s" * 65}, "at most 64"),
        ({"level": "image"}, "'lesion' or 'patient'"),
        ({"kind": "text"}, "'numeric', 'categorical' or 'boolean'"),
        ({"kind": "categorical"}, "at least one"),
        ({"categories": ("a",)}, "belong to categorical fields"),
        ({"kind": "boolean", "categories": ("a",)}, "belong to categorical fields"),
        ({"kind": "categorical", "categories": ("a", "a")}, "listed twice"),
        ({"kind": "categorical", "categories": ("a", "A")}, "stands for two categories"),
        ({"kind": "categorical", "categories": ("a", "unknown")}, "cannot be read"),
        ({"kind": "categorical", "categories": ("a", " b")}, "cannot be read"),
        (
            {"kind": "categorical", "categories": ("a",), "category_aliases": {"x": "b"}},
            "not listed",
        ),
        (
            {"kind": "categorical", "categories": ("a", "b"), "category_aliases": {"A": "b"}},
            "stands for two categories",
        ),
        ({"category_aliases": {"x": "y"}}, "not listed"),
        ({"kind": "boolean", "minimum": 0}, "belong to numeric fields"),
        ({"kind": "boolean", "maximum": 0}, "belong to numeric fields"),
        ({"kind": "boolean", "mean": 0, "std": 1}, "belong to numeric fields"),
        ({"mean": 1}, "come together"),
        ({"std": 1}, "come together"),
        ({"mean": 1, "std": 0}, "greater than 0"),
        ({"mean": math.nan, "std": 1}, "finite"),
        ({"maximum": math.inf}, "finite"),
        ({"minimum": 2, "maximum": 1}, "minimum exceeds maximum"),
        ({"colour": "red"}, "not permitted"),
    ],
)
def test_a_field_that_makes_no_sense_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        build(**changes)


def test_a_field_may_accept_one_number_only_and_repeat_a_category_as_its_alias() -> None:
    assert build(minimum=2, maximum=2).parse(2) == 2
    field = build(kind="categorical", categories=("a",), category_aliases={"A": "a"})
    assert field.parse("A") == "a"


def test_a_field_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        AGE.minimum = 5  # type: ignore[misc]  # what mypy forbids is refused at run time too


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ((("a", ()), ("a", ())), "'a' is used twice"),
        ((("a", ("B",)), ("b", ())), "'b' is used twice"),
        ((("a", ("x",)), ("b", ("X",))), "'X' is used twice"),
        ((("a", ("a",)),), "'a' is used twice"),
        ((("a", ("",)),), "cannot be read"),
        ((("a", (" b",)),), "cannot be read"),
    ],
)
def test_a_name_belongs_to_one_field(
    names: tuple[tuple[str, tuple[str, ...]], ...], reason: str
) -> None:
    fields = tuple(Field(name=n, level="lesion", kind="boolean", aliases=a) for n, a in names)
    with pytest.raises(ValidationError, match=reason):
        FieldSchema(fields=fields)


def test_names_and_levels_keep_the_schemas_order() -> None:
    assert SCHEMA.names == ("age_years", "anatom_site", "grew", "score")
    assert SCHEMA.at("patient") == (AGE,)
    assert SCHEMA.at("lesion") == (SITE, GREW, ANY_NUMBER)


@pytest.mark.parametrize("name", ["age_years", "AGE", " age_approx ", "Age_Approx"])
def test_a_field_is_found_by_name_or_alias_in_any_case(name: str) -> None:
    assert SCHEMA.resolve(name) is AGE


@pytest.mark.parametrize(
    ("name", "hint"),
    [("ages", "nearest is 'age_years'"), ("sit", "nearest is 'anatom_site'"), ("", "nearest is")],
)
def test_an_unknown_field_is_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UnknownField, match=f"unknown field '{name}'; {hint}") as caught:
        SCHEMA.resolve(name)
    assert caught.value.field == name


def test_a_schema_without_fields_knows_no_name() -> None:
    with pytest.raises(UnknownField, match="unknown field 'age'; there is none"):
        FieldSchema(fields=()).resolve("age")


def test_a_record_is_returned_under_canonical_names_and_only_what_was_named() -> None:
    raw = {"AGE": 0, "grew": False, "anatom_site": "UNK"}
    assert SCHEMA.parse(raw) == {"age_years": 0.0, "grew": False, "anatom_site": None}
    assert SCHEMA.parse({}) == {}


def test_an_error_names_the_field_as_the_caller_wrote_it() -> None:
    with pytest.raises(OutOfRange, match=r"^age_years: ") as caught:
        SCHEMA.parse({"Age": 300})
    assert caught.value.field == "Age"


@pytest.mark.parametrize("first", [5, None])
def test_two_names_of_one_field_are_refused_even_if_one_is_missing(first: object) -> None:
    with pytest.raises(InvalidRecord, match="age_years: given twice, last as 'AGE'") as caught:
        SCHEMA.parse({"age": first, "AGE": 6})
    assert caught.value.field == "AGE"


def test_fill_makes_absent_fields_explicitly_missing() -> None:
    record = {"age_years": 0.0, "grew": False}
    filled = {"age_years": 0.0, "anatom_site": None, "grew": False, "score": None}
    assert SCHEMA.fill(record) == filled
    assert SCHEMA.fill(record, "patient") == {"age_years": 0.0}
    assert list(SCHEMA.fill(record, "lesion")) == ["anatom_site", "grew", "score"]
    assert record == {"age_years": 0.0, "grew": False}


def test_a_schema_survives_its_own_json() -> None:
    assert FieldSchema.model_validate_json(SCHEMA.model_dump_json()) == SCHEMA


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.sampled_from(["back", "DORSUM", "yes", "0", "55", "UNK"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)
NAMES = st.text() | st.sampled_from(["age", "AGE_YEARS", "grew", " anatom_site", "score"])


@given(raw=st.dictionaries(NAMES, ANYTHING, max_size=4))
def test_parse_raises_nothing_but_invalid_record_and_leaves_its_input_alone(
    raw: dict[str, Any],
) -> None:
    before = repr(raw)
    refusal: InvalidRecord | None = None
    record = {}
    try:
        record = SCHEMA.parse(raw)
    except InvalidRecord as error:
        refusal = error
    assert repr(raw) == before
    assert refusal is None or (refusal.field in raw and len(str(refusal)) < 400)
    assert set(record) <= set(SCHEMA.names)
    assert SCHEMA.parse(record) == record


@given(raw=ANYTHING, field=st.sampled_from(SCHEMA.fields))
def test_a_parsed_value_parses_to_itself(raw: object, field: Field) -> None:
    try:
        value = field.parse(raw)
    except InvalidRecord:
        return
    assert field.parse(value) == value
    assert type(field.parse(value)) is type(value)


@given(number=st.floats(allow_nan=False) | st.integers())
def test_a_number_is_accepted_exactly_inside_the_bounds(number: float) -> None:
    if 0 <= number <= 120:
        assert AGE.parse(number) == number
    else:
        with pytest.raises(OutOfRange):
            AGE.parse(number)
