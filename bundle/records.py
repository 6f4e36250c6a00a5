"""Records to arrays: the one place where metadata becomes numbers.

A value and its presence travel apart, so that a real 0 is never taken for a missing one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.errors import OutOfRange
from bundle.fields import Field, Value

# Beyond it an encoder's arithmetic no longer ends in a finite number.
MAX_STANDARDISED = 1e6


@dataclass(frozen=True)
class EncodedRecords:
    """Records as arrays.

    Attributes:
        values: (N, F) float32. Numeric: standardised by the field's mean and std; categorical:
            position in `categories`; boolean: 0 or 1; missing: 0.
        present: (N, F) bool, False where the value is missing.
    """

    values: npt.NDArray[np.float32]
    present: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def any_present(self) -> npt.NDArray[np.bool_]:
        """(N,) bool: whether the record holds any value."""
        return np.asarray(self.present.any(axis=1), np.bool_)

    def rows(self, rows: npt.ArrayLike) -> "EncodedRecords":
        """Return the chosen rows; `rows` is (M,) integer positions or an (N,) bool mask."""
        chosen = np.asarray(rows)
        return EncodedRecords(self.values[chosen], self.present[chosen])


@dataclass(frozen=True)
class FieldColumn:
    """One field of N records.

    Attributes:
        numbers: (N,) float64. Numeric: the value in the field's unit; categorical: position in
            `categories`; boolean: 0 or 1; missing: 0.
        present: (N,) bool, False where the value is missing.
    """

    numbers: npt.NDArray[np.float64]
    present: npt.NDArray[np.bool_]


def encode_records(
    records: Sequence[Mapping[str, Value]], fields: Sequence[Field]
) -> EncodedRecords:
    """Return N checked records as (N, F) float32 values and (N, F) bool presence.

    Args:
        records: canonical records as `FieldSchema.parse` gives them; an absent key is missing.
        fields: the F columns, of one level, in order.

    Raises:
        OutOfRange: a number lies so far from the training values that no encoder can read it.
        ValueError: a numeric field has no fitted mean and std.
    """
    return encode_columns([_column_of(records, field) for field in fields], fields, len(records))


def encode_columns(
    columns: Sequence[FieldColumn], fields: Sequence[Field], count: int
) -> EncodedRecords:
    """Return columns as (N, F) float32 values and (N, F) bool presence.

    Args:
        columns: F of them, one a field.
        fields: the F fields, of one level, in order.
        count: N, which no columns would not tell.

    Raises:
        OutOfRange: a number lies so far from the training values that no encoder can read it.
        ValueError: a numeric field has no fitted mean and std.
    """
    values = np.zeros((count, len(fields)), np.float32)
    present = np.zeros((count, len(fields)), np.bool_)
    for place, (column, field) in enumerate(zip(columns, fields, strict=True)):
        known = column.present
        values[known, place] = _codes(column.numbers[known], field)
        present[:, place] = known
    return EncodedRecords(values, present)


def _codes(numbers: npt.NDArray[np.float64], field: Field) -> npt.NDArray[np.float64]:
    """Return what an encoder reads in the place of these values, none of them missing."""
    if field.kind != "numeric":
        return numbers
    if field.mean is None or field.std is None:
        raise ValueError(f"{field.name}: mean and std are not fitted; call fit_fields first")
    with np.errstate(over="ignore"):
        codes = (numbers - field.mean) / field.std
    if len(far := np.flatnonzero(~(np.abs(codes) <= MAX_STANDARDISED))):
        raise OutOfRange(
            f"{field.name}: expected a number near the training mean {field.mean:g}, got "
            f"{float(numbers[far[0]])!r}",
            field=field.name,
        )
    return codes


def _column_of(records: Sequence[Mapping[str, Value]], field: Field) -> FieldColumn:
    number = _number_of(field)
    values = [record.get(field.name) for record in records]
    return FieldColumn(
        numbers=np.array([0.0 if v is None else number(v) for v in values], np.float64),
        present=np.array([v is not None for v in values], np.bool_),
    )


def _number_of(field: Field) -> Callable[[Any], float]:
    if field.kind == "categorical":
        return {c: float(i) for i, c in enumerate(field.categories)}.__getitem__
    return float


def fit_fields(
    fields: Sequence[Field], records: Sequence[Mapping[str, Value]]
) -> tuple[Field, ...]:
    """Return the fields with each numeric one's mean and std taken from its present values.

    A field without a present value gets mean 0 and std 1; a constant one gets std 1.
    """
    return fit_columns(fields, [_column_of(records, field) for field in fields])


def fit_columns(fields: Sequence[Field], columns: Sequence[FieldColumn]) -> tuple[Field, ...]:
    """Return the fields fitted as `fit_fields` does, on one column a field."""
    return tuple(_fitted(f, column) for f, column in zip(fields, columns, strict=True))


def _fitted(field: Field, column: FieldColumn) -> Field:
    if field.kind != "numeric":
        return field
    known = column.numbers[column.present]
    numbers = known if len(known) else np.zeros(1)
    # The deviation of equal numbers is not always exactly 0: three times 0.1 gives 1e-17.
    spread = float(numbers.std()) if numbers.min() < numbers.max() else 0.0
    update = {"mean": float(numbers.mean()), "std": spread if spread > 0 else 1.0}
    return field.model_copy(update=update)
