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
    values = np.zeros((len(records), len(fields)), np.float32)
    present = np.zeros((len(records), len(fields)), np.bool_)
    for column, field in enumerate(fields):
        code = _encoder_of(field)
        for row, record in enumerate(records):
            value = record.get(field.name)
            if value is not None:
                values[row, column] = code(value)
                present[row, column] = True
    return EncodedRecords(values, present)


def _encoder_of(field: Field) -> Callable[[Any], float]:
    if field.kind == "categorical":
        return {c: float(i) for i, c in enumerate(field.categories)}.__getitem__
    if field.kind == "boolean":
        return float
    if field.mean is None or field.std is None:
        raise ValueError(f"{field.name}: mean and std are not fitted; call fit_fields first")
    mean, std = field.mean, field.std

    def standardise(value: float) -> float:
        code = (float(value) - mean) / std
        if not abs(code) <= MAX_STANDARDISED:
            raise OutOfRange(
                f"{field.name}: expected a number near the training mean {mean:g}, got {value!r}",
                field=field.name,
            )
        return code

    return standardise


def fit_fields(
    fields: Sequence[Field], records: Sequence[Mapping[str, Value]]
) -> tuple[Field, ...]:
    """Return the fields with each numeric one's mean and std taken from its present values.

    A field without a present value gets mean 0 and std 1; a constant one gets std 1.
    """
    fitted = []
    for field in fields:
        if field.kind != "numeric":
            fitted.append(field)
            continue
        known = [r[field.name] for r in records if r.get(field.name) is not None]
        numbers = np.asarray(known or [0.0], np.float64)
        # The deviation of equal numbers is not always exactly 0: three times 0.1 gives 1e-17.
        spread = float(numbers.std()) if numbers.min() < numbers.max() else 0.0
        update = {"mean": float(numbers.mean()), "std": spread if spread > 0 else 1.0}
        fitted.append(field.model_copy(update=update))
    return tuple(fitted)
