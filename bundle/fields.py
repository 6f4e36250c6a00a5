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

# No name or category is longer: a longer word is not compared with each of them for a hint.
MAX_WORD_LENGTH = 64
MAX_SHOWN_CATEGORIES = 12


def is_missing(value: object) -> bool:
    """Return whether a raw value says "not known": None, "", "unknown" or "UNK", in any case."""
    return value is None or (isinstance(value, str) and value.strip().casefold() in MISSING_WORDS)


class Field(BaseModel):
    """One metadata column.

    `mean` and `std` standardise a numeric field; training fits them on its own groups, and a
    field that was never fitted has neither.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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
        if self.kind != "numeric" and {self.minimum, self.maximum, self.mean, self.std} != {None}:
            raise ValueError(f"{self.name}: bounds, mean and std belong to numeric fields")
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"{self.name}: mean and std come together")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"{self.name}: minimum exceeds maximum, so no number is accepted")
        return self

    @model_validator(mode="after")
    def _check_categories(self) -> Self:
        if unknown := set(self.category_aliases.values()) - set(self.categories):
            raise ValueError(f"{self.name}: alias of a category not listed: {sorted(unknown)}")
        meaning: dict[str, str] = {}
        for word, category in self._spellings():
            if is_missing(word) or word != word.strip():
                raise ValueError(f"{self.name}: {word!r} cannot be read as a category")
            if meaning.setdefault(word.casefold(), category) != category:
                raise ValueError(f"{self.name}: {word!r} stands for two categories")
        if len({category.casefold() for category in self.categories}) != len(self.categories):
            raise ValueError(f"{self.name}: a category is listed twice")
        return self

    def _spellings(self) -> list[tuple[str, str]]:
        """Return every accepted word with the category that it stands for."""
        return [*((c, c) for c in self.categories), *self.category_aliases.items()]

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
            raise self._refusal("a number", raw)
        if isinstance(raw, str) and "_" in raw:  # Python reads "1_5" as 15.
            raise self._refusal("a number", raw)
        try:
            number = float(raw)
        except ValueError:
            raise self._refusal("a number", raw) from None
        except OverflowError:
            number = math.inf
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        if not math.isfinite(number) or not low <= number <= high:
            unit = f" {self.unit}" if self.unit else ""
            raise OutOfRange(
                f"{self.name}: expected a number from {low:g} to {high:g}{unit}, got {_shown(raw)}",
                field=self.name,
            )
        return number

    def _parse_boolean(self, raw: object) -> bool:
        if isinstance(raw, bool):
            return raw
        word = _word(raw) if isinstance(raw, str | int) else ""
        if word in TRUE_WORDS:
            return True
        if word in FALSE_WORDS:
            return False
        raise self._refusal("true or false", raw)

    def _parse_category(self, raw: object) -> str:
        if isinstance(raw, bool) or not isinstance(raw, str | int | float):
            raise self._refusal("a category", raw)
        if raw in self.categories:
            return str(raw)
        known = {word.casefold(): category for word, category in self._spellings()}
        word = _word(raw)
        if word in known:
            return known[word]
        more = ", ..." if len(self.categories) > MAX_SHOWN_CATEGORIES else ""
        raise UnknownCategory(
            f"{self.name}: unknown category {_shown(raw)}; nearest is "
            f"{known[_nearest(word, known)]!r}; "
            f"accepted: {', '.join(self.categories[:MAX_SHOWN_CATEGORIES])}{more}",
            field=self.name,
        )

    def _refusal(self, expected: str, raw: object) -> InvalidRecord:
        message = f"{self.name}: expected {expected}, got {_shown(raw)}"
        return InvalidRecord(message, field=self.name)


def _word(raw: str | int | float) -> str:
    """Return the value as a word that compares without regard to case and outer spaces."""
    try:
        return str(raw).strip().casefold()
    except ValueError:  # Python writes no integer of more than 4300 digits.
        return ""


def _shown(raw: object) -> str:
    """Return a raw value for a message, short whatever was sent."""
    try:
        text = repr(raw)
    except ValueError:  # Python writes no integer of more than 4300 digits.
        return "a huge integer"
    return text if len(text) <= MAX_WORD_LENGTH else f"{text[:MAX_WORD_LENGTH]}..."


def _nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word that is most alike; `known` is not empty."""
    return difflib.get_close_matches(word[:MAX_WORD_LENGTH], known, n=1, cutoff=0.0)[0]


class FieldSchema(BaseModel):
    """The fields of a cohort, run or bundle, in the order in which encoders read them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fields: tuple[Field, ...]

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        seen: set[str] = set()
        for field in self.fields:
            for name in (field.name, *field.aliases):
                if name != name.strip() or not name:
                    raise ValueError(f"{field.name}: {name!r} cannot be read as a name")
                if name.casefold() in seen:
                    raise ValueError(f"the name {name!r} is used twice")
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
        return _resolve(name, self._by_word())

    def match(self, other: "FieldSchema") -> tuple[dict[str, Field], dict[str, str]]:
        """Return by name which of another schema's fields are read as which, and why not others.

        A field is found by its name or alias; one in another unit is not read.
        """
        read: dict[str, Field] = {}
        left_out: dict[str, str] = {}
        for field in other.fields:
            try:
                known = self.resolve(field.name)
            except UnknownField:
                left_out[field.name] = "the model does not know this field"
                continue
            if known.unit != field.unit:
                left_out[field.name] = f"the model reads it in {known.unit}, it is in {field.unit}"
            elif known in read.values():
                left_out[field.name] = f"the model reads {known.name} from another field"
            else:
                read[field.name] = known
        return read, left_out

    def _by_word(self) -> dict[str, Field]:
        return {word.casefold(): f for f in self.fields for word in (f.name, *f.aliases)}

    def parse(self, raw: Mapping[str, Any]) -> Record:
        """Return the record under canonical names, holding only the fields that were named.

        Args:
            raw: field name or alias to raw value; not changed.

        Raises:
            InvalidRecord: a name or value is not accepted, or two names mean one field. Its
                `field` is the name as it was given.
        """
        record: Record = {}
        by_word = self._by_word()
        for name, value in raw.items():
            field = _resolve(name, by_word)
            if field.name in record:
                raise InvalidRecord(
                    f"{field.name}: given twice, last as {_shown(name)}", field=name
                )
            try:
                record[field.name] = field.parse(value)
            except InvalidRecord as error:
                error.field = name
                raise
        return record

    def fill(self, record: Mapping[str, Value], level: Level | None = None) -> Record:
        """Return the record with every field of the level (or of both) present, None if missing."""
        fields: Iterable[Field] = self.fields if level is None else self.at(level)
        return {field.name: record.get(field.name) for field in fields}


def _resolve(name: str, by_word: Mapping[str, Field]) -> Field:
    word = name.strip().casefold()
    if (found := by_word.get(word)) is not None:
        return found
    hint = f"nearest is {by_word[_nearest(word, by_word)].name!r}" if by_word else "there is none"
    raise UnknownField(f"unknown field {_shown(name)}; {hint}", field=name)
