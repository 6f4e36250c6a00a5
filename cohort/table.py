"""A researcher's own data set: a CSV, a folder of images and a `fields.toml` that describes both.

The format is documented in `docs/cohorts.md`.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic import Field as Setting

from bundle.errors import CohortError
from bundle.fields import Field, FieldSchema, Kind, Level, Name, is_missing
from cohort.images import FolderImages
from cohort.leaks import refuse_leaks
from cohort.lines import (
    DataSet,
    Line,
    nearest,
    read_csv,
    read_header,
    require_columns,
    source_of_lines,
)
from cohort.rows import DroppedRow, Source


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CohortTable(Strict):
    """The `[cohort]` table of `fields.toml`."""

    name: Name
    image_column: str
    lesion_column: str
    patient_column: str | None = None
    label_column: str | None = None
    labels: tuple[str, ...] = ()
    malignant_labels: tuple[str, ...] = ()
    licence: str
    citation: str = ""
    image_folder: str = "."

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        if (self.label_column is None) != (not self.labels):
            raise ValueError("label_column and labels come together")
        if len({label.casefold() for label in self.labels}) != len(self.labels):
            raise ValueError("a label is listed twice")
        if unknown := sorted(set(self.malignant_labels) - set(self.labels)):
            raise ValueError(f"malignant_labels that are not in labels: {unknown}")
        return self

    @property
    def id_columns(self) -> tuple[str, ...]:
        """The columns that say which image, lesion, patient and label a line is about."""
        columns = (self.image_column, self.lesion_column, self.patient_column, self.label_column)
        return tuple(column for column in columns if column is not None)


class FieldTable(Strict):
    """One `[[fields]]` table: a field, and the column that holds it."""

    name: Name
    level: Level
    kind: Kind
    column: str | None = None
    unit: str | None = None
    categories: tuple[str, ...] = ()
    category_aliases: dict[str, str] = Setting(default_factory=dict)
    aliases: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    description: str = ""

    def to_field(self) -> Field:
        """Return the field that the schema holds."""
        return Field(**self.model_dump(exclude={"column"}))

    def find_column(self, header: list[str]) -> str:
        """Return the column that holds the field: the one named, else its name or an alias."""
        if self.column is not None:
            return self.column
        return next((name for name in (self.name, *self.aliases) if name in header), self.name)


class Description(Strict):
    """All of `fields.toml`."""

    cohort: CohortTable
    fields: tuple[FieldTable, ...]


def table_source(path: Path, *, schema: Path) -> Source:
    """Return a data set of one's own.

    Args:
        path: the CSV, or a folder that holds exactly one.
        schema: the `fields.toml`.

    Raises:
        LeakColumn: a field asks for a column that gives the label away.
        CohortError: the description or the table is not as documented; the message names the place.
    """
    description = read_description(schema)
    cohort, fields = description.cohort, _to_schema(schema, description)
    table = _find_table(path)
    header = read_header(table)
    columns = {field.name: field.find_column(header) for field in description.fields}
    _check_columns(schema, description, columns)
    require_columns(table, header, (*cohort.id_columns, *columns.values()))
    images = FolderImages(table.parent / cohort.image_folder)
    if not images.folder.is_dir():
        raise CohortError(f"{schema}: image_folder: {images.folder} is not a folder")
    data_set = DataSet(
        name=cohort.name,
        schema=fields,
        labels=cohort.labels,
        malignant_labels=cohort.malignant_labels,
        licence=cohort.licence,
        citation=cohort.citation,
    )
    lines = [_line(row, cohort, columns) for row in read_csv(table, cohort.id_columns)]
    return source_of_lines(data_set, lines, images)


def read_description(path: Path) -> Description:
    """Return the content of a `fields.toml`.

    Raises:
        CohortError: it is missing, is not TOML, or has a key or value that is not accepted.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except FileNotFoundError:
        raise CohortError(f"{path}: expected the description of the table, no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CohortError(f"{path}: expected TOML: {error}") from None
    try:
        return Description.model_validate(content)
    except ValidationError as error:
        # A misspelled key is also a missing one: say the first.
        problem = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        raise CohortError(f"{path}: {_place(problem['loc'])}: {_explain(problem)}") from None


def _place(location: tuple[int | str, ...]) -> str:
    """Return where in the file a problem is, counting fields from 1 as a reader does."""
    parts = [f"number {part + 1}" if isinstance(part, int) else part for part in location]
    return " ".join(parts) or "the file"


def _explain(problem: Mapping[str, Any]) -> str:
    if problem["type"] != "extra_forbidden":
        return str(problem["msg"])
    tables: dict[str, type[BaseModel]] = {"cohort": CohortTable, "fields": FieldTable}
    place = problem["loc"]
    table = Description if len(place) == 1 else tables[str(place[0])]
    return f"unknown key; {nearest(str(place[-1]), table.model_fields)}"


def _to_schema(path: Path, description: Description) -> FieldSchema:
    fields = []
    for number, table in enumerate(description.fields, start=1):
        try:
            fields.append(table.to_field())
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise CohortError(f"{path}: fields number {number}: {message}") from None
    try:
        return FieldSchema(fields=tuple(fields))
    except ValidationError as error:
        raise CohortError(f"{path}: fields: {error.errors()[0]['msg']}") from None


def _check_columns(path: Path, description: Description, columns: Mapping[str, str]) -> None:
    """Refuse fields that give the label away, or that contradict the rest of the description."""
    for field in description.fields:
        refuse_leaks((field.name, *field.aliases, columns[field.name]))
        if field.level == "patient" and description.cohort.patient_column is None:
            raise CohortError(
                f"{path}: {field.name}: a patient's field needs [cohort] patient_column; "
                'without patient ids its level is "lesion"'
            )
        if columns[field.name] in description.cohort.id_columns:
            raise CohortError(f"{path}: {field.name}: its column is already an id or the label")
    read = list(columns.values())
    if twice := sorted({column for column in read if read.count(column) > 1}):
        raise CohortError(f"{path}: two fields read the column {twice[0]!r}")


def _find_table(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("*.csv"))
    if len(found) != 1:
        raise CohortError(
            f"{path}: expected exactly one CSV file, found {len(found)}: name the file itself"
        )
    return found[0]


def _line(
    row: tuple[int, dict[str, str]] | DroppedRow, cohort: CohortTable, columns: Mapping[str, str]
) -> Line | DroppedRow:
    if isinstance(row, DroppedRow):
        return row
    number, cells = row
    image, lesion = cells[cohort.image_column].strip(), cells[cohort.lesion_column].strip()
    if is_missing(lesion):
        return DroppedRow(f"line {number} ({image})", "no lesion id")
    patient = None if cohort.patient_column is None else cells[cohort.patient_column].strip()
    return Line(
        number=number,
        image_key=image,
        image_id=image,
        lesion_id=lesion,
        patient_id=None if is_missing(patient) else patient,
        label=None if cohort.label_column is None else cells[cohort.label_column],
        cells={name: cells[column] for name, column in columns.items()},
    )
