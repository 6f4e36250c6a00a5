"""Records to arrays, against a row-by-row oracle."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.errors import OutOfRange
from bundle.fields import Field, Value
from bundle.records import (
    MAX_STANDARDISED,
    EncodedRecords,
    FieldColumn,
    encode_columns,
    encode_records,
    fit_columns,
    fit_fields,
)

SIZE = Field(name="size_mm", level="lesion", kind="numeric", mean=4, std=2)
SITE = Field(name="site", level="lesion", kind="categorical", categories=("back", "arm", "leg"))
GREW = Field(name="grew", level="lesion", kind="boolean")
FIELDS = (SIZE, SITE, GREW)


def encode_slowly(
    records: Sequence[Mapping[str, Value]], fields: Sequence[Field]
) -> tuple[list[list[float]], list[list[bool]]]:
    values: list[list[float]] = []
    present: list[list[bool]] = []
    for record in records:
        row: list[float] = []
        for field in fields:
            value = record.get(field.name)
            if value is None:
                row.append(0.0)
            elif field.kind == "categorical":
                row.append(field.categories.index(str(value)))
            elif field.kind == "boolean":
                row.append(1.0 if value else 0.0)
            else:
                assert field.mean is not None
                assert field.std is not None
                row.append((float(value) - field.mean) / field.std)
        values.append(row)
        present.append([record.get(field.name) is not None for field in fields])
    return values, present


RECORDS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "size_mm": st.none() | st.floats(-1000, 1000),
            "site": st.none() | st.sampled_from(SITE.categories),
            "grew": st.none() | st.booleans(),
        },
    ),
    max_size=11,
)


@given(records=RECORDS)
def test_records_are_encoded_as_the_slow_oracle_does(records: list[dict[str, Value]]) -> None:
    encoded = encode_records(records, FIELDS)
    values, present = encode_slowly(records, FIELDS)
    assert encoded.values.dtype == np.float32
    assert encoded.present.dtype == np.bool_
    assert encoded.values.shape == encoded.present.shape == (len(records), 3)
    np.testing.assert_array_equal(
        encoded.values, np.asarray(values, np.float32).reshape(len(records), 3)
    )
    np.testing.assert_array_equal(
        encoded.present, np.asarray(present, np.bool_).reshape(len(records), 3)
    )


def test_a_real_zero_and_a_missing_value_differ_only_in_presence() -> None:
    records: list[dict[str, Value]] = [
        {"size_mm": 4.0, "site": "back", "grew": False},
        {"size_mm": None},
        {},
    ]
    encoded = encode_records(records, FIELDS)
    np.testing.assert_array_equal(encoded.values, np.zeros((3, 3)))
    np.testing.assert_array_equal(encoded.present, [[True] * 3, [False] * 3, [False] * 3])


def test_columns_follow_the_order_of_the_fields_that_were_asked_for() -> None:
    encoded = encode_records([{"size_mm": 8.0, "site": "leg", "grew": True}], (GREW, SIZE))
    np.testing.assert_array_equal(encoded.values, [[1, 2]])


def test_no_fields_give_arrays_without_columns() -> None:
    encoded = encode_records([{}, {}], ())
    assert encoded.values.shape == encoded.present.shape == (2, 0)


def test_a_numeric_field_that_was_never_fitted_is_refused() -> None:
    unfitted = Field(name="size_mm", level="lesion", kind="numeric")
    with pytest.raises(ValueError, match="size_mm: mean and std are not fitted; call fit_fields"):
        encode_records([], [unfitted])


@pytest.mark.parametrize("value", [1e300, -1e300, math.nan, math.inf])
def test_a_number_that_no_encoder_can_read_is_refused(value: float) -> None:
    with pytest.raises(OutOfRange, match="near the training mean 4, got") as caught:
        encode_records([{"size_mm": value}], [SIZE])
    assert caught.value.field == "size_mm"


def test_the_farthest_accepted_number_is_a_million_deviations_away() -> None:
    edge = 4 + 2 * MAX_STANDARDISED
    assert encode_records([{"size_mm": edge}], [SIZE]).values[0, 0] == MAX_STANDARDISED
    with pytest.raises(OutOfRange):
        encode_records([{"size_mm": edge + 1}], [SIZE])


def test_columns_are_encoded_and_fitted_as_the_records_that_they_hold() -> None:
    records: list[dict[str, Value]] = [
        {"size_mm": 0.0, "site": "leg"},
        {"grew": False},
        {"size_mm": 5.0, "site": "back", "grew": True},
    ]
    columns = [
        FieldColumn(np.array(numbers, np.float64), np.array(present))
        for numbers, present in (
            ([0, 0, 5], [True, False, True]),
            ([2, 0, 0], [True, False, True]),
            ([0, 0, 1], [False, True, True]),
        )
    ]
    of_columns, of_records = encode_columns(columns, FIELDS, 3), encode_records(records, FIELDS)
    np.testing.assert_array_equal(of_columns.values, of_records.values)
    np.testing.assert_array_equal(of_columns.present, of_records.present)
    assert fit_columns(FIELDS, columns) == fit_fields(FIELDS, records)
    assert encode_columns([], [], 2).values.shape == (2, 0)


def test_what_stands_in_a_missing_values_place_does_not_matter() -> None:
    column = FieldColumn(np.array([1e300, 6.0]), np.array([False, True]))
    np.testing.assert_array_equal(encode_columns([column], [SIZE], 2).values, [[0], [1]])
    (fitted,) = fit_columns([SIZE], [column])
    assert fitted.mean == 6.0


def test_rows_are_chosen_by_position_or_by_mask() -> None:
    encoded = EncodedRecords(
        np.arange(6, dtype=np.float32).reshape(3, 2), np.arange(6).reshape(3, 2) % 2 == 0
    )
    assert len(encoded) == 3
    chosen = encoded.rows([2, 0])
    np.testing.assert_array_equal(chosen.values, [[4, 5], [0, 1]])
    np.testing.assert_array_equal(chosen.present, [[True, False]] * 2)
    np.testing.assert_array_equal(encoded.rows([False, True, False]).values, [[2, 3]])
    assert len(encoded.rows(np.asarray([], np.int64))) == 0


def test_a_record_holds_something_if_any_of_its_values_is_present() -> None:
    encoded = encode_records([{"grew": False}, {"grew": None}, {"size_mm": 1.0}], FIELDS)
    assert encoded.any_present.dtype == np.bool_
    np.testing.assert_array_equal(encoded.any_present, [True, False, True])
    np.testing.assert_array_equal(encode_records([{}], ()).any_present, [False])


def test_mean_and_std_are_those_of_the_present_values() -> None:
    unfitted = Field(name="size_mm", level="lesion", kind="numeric", minimum=0)
    records: list[dict[str, Value]] = [{"size_mm": 0.0}, {"size_mm": None}, {}, {"size_mm": 6.0}]
    (fitted, site) = fit_fields([unfitted, SITE], records)
    assert (fitted.mean, fitted.std) == (3.0, 3.0)
    assert fitted.minimum == 0
    assert site is SITE
    assert (unfitted.mean, unfitted.std) == (None, None)


def test_every_numeric_field_is_fitted_whatever_stands_before_it() -> None:
    other = Field(name="ratio", level="lesion", kind="numeric")
    records: list[dict[str, Value]] = [{"size_mm": 1.0, "ratio": 0.25}, {"ratio": 0.75}]
    (_, size, _, ratio) = fit_fields([SITE, SIZE, GREW, other], records)
    assert (size.mean, size.std) == (1.0, 1.0)
    assert (ratio.mean, ratio.std) == (0.5, 0.25)


def test_a_refit_replaces_the_former_mean_and_std() -> None:
    (fitted,) = fit_fields([SIZE], [{"size_mm": 10.0}, {"size_mm": 30.0}])
    assert (fitted.mean, fitted.std) == (20.0, 10.0)


@pytest.mark.parametrize("values", [[0.1, 0.1, 0.1], [7.0], [0.0, 1e-200]])
def test_a_constant_field_gets_std_1(values: list[float]) -> None:
    (fitted,) = fit_fields([SIZE], [{"size_mm": v} for v in values])
    assert fitted.std == 1.0
    assert fitted.mean == pytest.approx(values[0])


def test_a_field_without_a_present_value_gets_mean_0_and_std_1() -> None:
    for records in ([], [{"size_mm": None}, {}]):
        (fitted,) = fit_fields([SIZE], records)
        assert (fitted.mean, fitted.std) == (0.0, 1.0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
def test_fitted_values_are_standardised_or_all_equal(numbers: list[float]) -> None:
    records = [{"size_mm": n} for n in numbers]
    (fitted,) = fit_fields([SIZE], records)
    if fitted.std == 1.0 or fitted.std is None or fitted.std < 1e-3:
        return
    column = encode_records(records, [fitted]).values[:, 0].astype(np.float64)
    assert abs(column.mean()) < 1e-3
    assert column.std() == pytest.approx(1, abs=1e-3)
