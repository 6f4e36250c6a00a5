"""The metadata contract: which fields a record may hold, and how a record is checked.

Owns the field schema and the reading of one record. Turning checked records into arrays is
`bundle/records.py`. Nothing here tests missingness by truthiness: 0 mm and False are data.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic import Field as Setting

from bundle.errors import InvalidRecord, OutOfRange, UnknownCategory, UnknownField

Level = Literal["lesion", "patient"]
Kind = Literal["numeric", "categorical", "boolean"]
Value = float | str | bool | None
Record = dict[str, Value]

Name = Annotated[str, Setting(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]

MISSING_WORDS = frozenset({"", "unknown", "unk"})
TRUE_WORDS = frozenset({"true", "yes", "1"})
FALSE_WORDS = frozenset({"false", "no", "0"})


def is_missing(value: object) -> bool:
    """Return whether a raw value says "not known": None, "", "unknown" or "UNK", in any case."""
    return value is None or (isinstance(value, str) and value.strip().casefold() in MISSING_WORDS)


class Field(BaseModel):
    """One metadata column.

    `mean` and `std` standardise a numeric field; training fits them on its own groups, and a
    field that was never fitted has neither.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    level: Level
    kind: Kind
    unit: str | None = None
    categories: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    category_aliases: dict[str, str] = Setting(default_factory=dict)
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    std: float | None = Setting(default=None, gt=0)
    description: str = ""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if (self.kind == "categorical") != bool(self.categories):
            raise ValueError(f"{self.name}: categories belong to categorical fields, at least one")
        if len(set(self.categories)) != len(self.categories):
            raise ValueError(f"{self.name}: a category is listed twice")
        if self.kind != "numeric" and {self.minimum, self.maximum, self.mean, self.std} != {None}:
            raise ValueError(f"{self.name}: bounds, mean and std belong to numeric fields")
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"{self.name}: mean and std come together")
        if unknown := set(self.category_aliases.values()) - set(self.categories):
            raise ValueError(f"{self.name}: alias of a category not listed: {sorted(unknown)}")
        return self

    def parse(self, raw: object) -> Value:
        """Return the checked value, or None when the raw value says missing.

        Raises:
            InvalidRecord: the value is of the wrong type.
            OutOfRange: a number is outside the bounds or not finite.
            UnknownCategory: the category is not listed; the message names the nearest.
        """
        if is_missing(raw):
            return None
        if self.kind == "numeric":
            return self._parse_number(raw)
        if self.kind == "boolean":
            return self._parse_boolean(raw)
        return self._parse_category(raw)

    def _parse_number(self, raw: object) -> float:
        if isinstance(raw, bool) or not isinstance(raw, int | float | str):
            raise InvalidRecord(f"{self.name}: expected a number, got {raw!r}", field=self.name)
        try:
            number = float(raw)
        except (ValueError, OverflowError):
            raise InvalidRecord(
                f"{self.name}: expected a number, got {raw!r}", field=self.name
            ) from None
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        if not math.isfinite(number) or not low <= number <= high:
            unit = f" {self.unit}" if self.unit else ""
            raise OutOfRange(
                f"{self.name}: expected a number from {low:g} to {high:g}{unit}, got {raw!r}",
                field=self.name,
            )
        return number

    def _parse_boolean(self, raw: object) -> bool:
        if isinstance(raw, bool):
            return raw
        word = str(raw).strip().casefold() if isinstance(raw, str | int) else ""
        if word in TRUE_WORDS:
            return True
        if word in FALSE_WORDS:
            return False
        raise InvalidRecord(f"{self.name}: expected true or false, got {raw!r}", field=self.name)

    def _parse_category(self, raw: object) -> str:
        known = {c.casefold(): c for c in self.categories}
        known |= {a.casefold(): c for a, c in self.category_aliases.items()}
        if isinstance(raw, bool) or not isinstance(raw, str | int | float):
            raise InvalidRecord(f"{self.name}: expected a category, got {raw!r}", field=self.name)
        word = str(raw).strip().casefold()
        if word in known:
            return known[word]
        nearest = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
        listed = ", ".join(self.categories[:12]) + (", ..." if len(self.categories) > 12 else "")
        raise UnknownCategory(
            f"{self.name}: unknown category {raw!r}; nearest is {known[nearest[0]]!r}; "
            f"accepted: {listed}",
            field=self.name,
        )


class FieldSchema(BaseModel):
    """The fields of a cohort, run or bundle, in the order in which encoders read them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fields: tuple[Field, ...]

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        seen: set[str] = set()
        for field in self.fields:
            for name in (field.name, *field.aliases):
                if name.casefold() in seen:
                    raise ValueError(f"the name {name!r} belongs to two fields")
                seen.add(name.casefold())
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields)

    def at(self, level: Level) -> tuple[Field, ...]:
        """Return the fields of one level, in schema order."""
        return tuple(field for field in self.fields if field.level == level)

    def resolve(self, name: str) -> Field:
        """Return the field that carries this name or alias, whatever its case.

        Raises:
            UnknownField: none does; the message names the nearest.
        """
        known = {n.casefold(): f for f in self.fields for n in (f.name, *f.aliases)}
        if (found := known.get(name.strip().casefold())) is not None:
            return found
        nearest = difflib.get_close_matches(name.strip().casefold(), known, n=1, cutoff=0.0)
        hint = f"nearest is {known[nearest[0]].name!r}" if nearest else "this schema has no fields"
        raise UnknownField(f"unknown field {name!r}; {hint}", field=name)

    def parse(self, raw: Mapping[str, Any]) -> Record:
        """Return the record under canonical names, holding only the fields that were named.

        Args:
            raw: field name or alias to raw value; not changed.

        Raises:
            InvalidRecord: a name or value is not accepted, or two names mean one field.
        """
        record: Record = {}
        for name, value in raw.items():
            field = self.resolve(str(name))
            if field.name in record:
                raise InvalidRecord(f"{field.name}: given twice, last as {name!r}", field=name)
            record[field.name] = field.parse(value)
        return record

    def fill(self, record: Mapping[str, Value], level: Level | None = None) -> Record:
        """Return the record with every field of the level (or of both) present, None if missing."""
        fields: Iterable[Field] = self.fields if level is None else self.at(level)
        return {field.name: record.get(field.name) for field in fields}
