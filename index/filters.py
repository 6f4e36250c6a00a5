"""Which lesions a search may return: a JSON filter, checked against the schema, compiled to SQL."""

import math
import operator
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, select

from bundle.errors import InvalidFilter, InvalidRecord
from bundle.fields import Field, FieldSchema, Kind
from index.tables import FieldValue, Lesion

BOUNDS: dict[str, Callable[[Any, float], Any]] = {
    "gte": operator.ge,
    "gt": operator.gt,
    "lte": operator.le,
    "lt": operator.lt,
}
MALIGNANT = Field(name="malignant", level="lesion", kind="boolean")
# Alternatives that one list may name.
MAX_ALTERNATIVES = 1000


@dataclass(frozen=True)
class OneOf:
    """The field has one of these values; a lesion that lacks it does not match."""

    name: str
    kind: Kind
    values: tuple[float | str | bool, ...]

    def select(self) -> Select[int]:
        """Return a query for the vector ids of the lesions that match."""
        if self.name == "label":
            return select(Lesion.pk).where(Lesion.label.in_(self.values))
        if self.name == "malignant":
            return select(Lesion.pk).where(Lesion.malignant.in_(self.values))
        if self.kind == "categorical":
            has_value = FieldValue.text.in_(self.values)
        else:
            has_value = FieldValue.number.in_([float(value) for value in self.values])
        return select(FieldValue.lesion_pk).where(FieldValue.name == self.name, has_value)


@dataclass(frozen=True)
class Range:
    """The numeric field lies within these bounds; a lesion that lacks it does not match.

    Attributes:
        name: a numeric field.
        bounds: (one of BOUNDS, number) pairs, at most one lower and one upper.
    """

    name: str
    bounds: tuple[tuple[str, float], ...]

    def select(self) -> Select[int]:
        """Return a query for the vector ids of the lesions that match."""
        inside = [BOUNDS[bound](FieldValue.number, limit) for bound, limit in self.bounds]
        return select(FieldValue.lesion_pk).where(FieldValue.name == self.name, *inside)


@dataclass(frozen=True)
class Filter:
    """Conditions that a lesion must meet, all of them; none at all keeps every lesion."""

    conditions: tuple[OneOf | Range, ...] = ()


def parse_filter(raw: Mapping[str, object], schema: FieldSchema, labels: tuple[str, ...]) -> Filter:
    """Return the filter that a caller wrote, with canonical names and checked values.

    Args:
        raw: such as {"sex": "female", "anatom_site": ["back", "scalp"], "age_years": {"gte": 40}};
            keys are fields (name or alias), `label` or `malignant`, and all must hold; of a list
            one value must hold; a numeric field takes an object with gte, gt, lte or lt.
        schema: the catalogue's fields.
        labels: the labels that `label` may name.

    Raises:
        UnknownField: no field has this name; the message names the nearest.
        InvalidFilter: anything else that cannot be read, with what was expected.
    """
    if not isinstance(raw, Mapping):
        raise InvalidFilter(f"filter: expected an object of field to condition, got {_shown(raw)}")
    conditions: dict[str, OneOf | Range] = {}
    for name, wanted in raw.items():
        condition = _named(str(name), wanted, schema, labels)
        if condition.name in conditions:
            raise InvalidFilter(f"{condition.name}: expected one condition, got two")
        conditions[condition.name] = condition
    return Filter(tuple(conditions.values()))


def _named(
    name: str, wanted: object, schema: FieldSchema, labels: tuple[str, ...]
) -> OneOf | Range:
    if _word(name) == "label":
        return _labels(wanted, labels)
    if _word(name) == "malignant":
        return _condition(MALIGNANT, wanted)
    return _condition(schema.resolve(name), wanted)


def _shown(raw: object) -> str:
    """Return what a caller wrote, short whatever it is."""
    return reprlib.repr(raw)


def _word(name: object) -> str:
    return str(name).strip().casefold()


def _labels(wanted: object, labels: tuple[str, ...]) -> OneOf:
    """Return the condition on the label; not by `Field.parse`, for "unknown" may be a label."""
    known = {_word(label): label for label in labels}
    alternatives = _alternatives("label", wanted)
    for raw in alternatives:
        if _word(raw) not in known:
            raise InvalidFilter(
                f"label: expected one of {', '.join(labels) or 'none'}, got {_shown(raw)}"
            )
    return OneOf("label", "categorical", tuple(known[_word(raw)] for raw in alternatives))


def _condition(field: Field, wanted: object) -> OneOf | Range:
    if isinstance(wanted, Mapping):
        return _range(field, wanted)
    values = [_value(field, value) for value in _alternatives(field.name, wanted)]
    return OneOf(field.name, field.kind, tuple(values))


def _alternatives(name: str, wanted: object) -> list[object]:
    alternatives = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
    if not 1 <= len(alternatives) <= MAX_ALTERNATIVES:
        raise InvalidFilter(
            f"{name}: expected 1 to {MAX_ALTERNATIVES} values, got {len(alternatives)}"
        )
    return alternatives


def _range(field: Field, wanted: Mapping[str, object]) -> Range:
    if field.kind != "numeric":
        raise InvalidFilter(
            f"{field.name}: expected a value or a list of values, got a range; "
            f"the field is {field.kind}"
        )
    if not wanted or set(wanted) - BOUNDS.keys():
        raise InvalidFilter(
            f"{field.name}: expected a range with {', '.join(BOUNDS)}, got {_shown(wanted)}"
        )
    bounds = {bound: float(_value(field, limit)) for bound, limit in wanted.items()}
    if {"gte", "gt"} <= bounds.keys() or {"lte", "lt"} <= bounds.keys():
        raise InvalidFilter(f"{field.name}: expected one lower and one upper bound at most")
    low = bounds.get("gte", bounds.get("gt", -math.inf))
    high = bounds.get("lte", bounds.get("lt", math.inf))
    if low > high:
        raise InvalidFilter(
            f"{field.name}: expected the lower bound below the upper, got {low:g} and {high:g}"
        )
    return Range(field.name, tuple(bounds.items()))


def _value(field: Field, raw: object) -> float | str | bool:
    try:
        value = field.parse(raw)
    except InvalidRecord as error:
        raise InvalidFilter(str(error)) from None
    if value is None:
        raise InvalidFilter(
            f"{field.name}: expected a value, got {_shown(raw)}: missing values cannot be asked for"
        )
    return value
