"""One line of a data set's table to a lesion image: what every reader does alike.

A reader says which column is what; reading cells, labels and images is here.
"""

import csv
import difflib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bundle.errors import CohortError, InvalidRecord
from bundle.fields import Field, FieldSchema, Record, is_missing
from cohort.images import Images
from cohort.rows import DroppedRow, Group, LesionImage, Source, UnreadableValue
from cohort.vocabulary import read_value

# ISIC's words for what is neither.
MALIGNANCY_WORDS: dict[str, bool | None] = {
    "benign": False,
    "malignant": True,
    "indeterminate": None,
    "indeterminate/benign": None,
    "indeterminate/malignant": None,
}


@dataclass(frozen=True)
class Line:
    """One line of the table, its columns told apart but not read yet.

    Attributes:
        number: its line in the file, the header being line 1.
        image_key: under which the image is found.
        image_id: unique within the cohort.
        lesion_id: unique within the cohort.
        patient_id: None where the source or this line has none.
        label: the raw cell, or None where the source has no labels.
        cells: canonical field name to raw cell.
        malignancy: the cell of a column that says benign or malignant; None where the source has
            no such column, so that the label decides.
    """

    number: int
    image_key: str
    image_id: str
    lesion_id: str
    patient_id: str | None
    label: str | None
    cells: Mapping[str, str]
    malignancy: str | None = None

    @property
    def row(self) -> str:
        return f"line {self.number} ({self.image_id})"

    @property
    def group_id(self) -> str:
        return self.lesion_id if self.patient_id is None else self.patient_id


@dataclass(frozen=True)
class DataSet:
    """What a reader knows before it reads a line; as in `Source`."""

    name: str
    schema: FieldSchema
    labels: tuple[str, ...]
    malignant_labels: tuple[str, ...]
    licence: str
    citation: str
    notes: tuple[str, ...] = ()


def source_of_lines(
    data_set: DataSet, lines: Sequence[Line | DroppedRow], images: Images
) -> Source:
    """Return a source over lines held in memory, sorted so that each group's stand together."""
    dropped = [line for line in lines if isinstance(line, DroppedRow)]
    kept = sorted(
        (line for line in lines if isinstance(line, Line)), key=lambda x: (x.group_id, x.number)
    )

    def groups() -> Iterator[Group]:
        for line in kept:
            if images.has(line.image_key):
                yield Group(line.group_id, read_label(line.label, data_set.labels)[0])

    def rows() -> Iterator[LesionImage | DroppedRow]:
        yield from dropped
        for line in kept:
            yield read_line(line, data_set, images)

    return make_source(data_set, groups, rows)


def make_source(
    data_set: DataSet,
    groups: Callable[[], Iterator[Group]],
    rows: Callable[[], Iterator[LesionImage | DroppedRow]],
) -> Source:
    """Return the source that a data set and its two streams make."""
    return Source(
        name=data_set.name,
        schema=data_set.schema,
        labels=data_set.labels,
        malignant_labels=data_set.malignant_labels,
        licence=data_set.licence,
        citation=data_set.citation,
        groups=groups,
        rows=rows,
        notes=data_set.notes,
    )


def read_line(line: Line, data_set: DataSet, images: Images) -> LesionImage | DroppedRow:
    """Return the line with its image read, or why it cannot be used."""
    try:
        image = images.read(line.image_key)
    except FileNotFoundError:
        return DroppedRow(line.row, "no image file")
    except OSError:
        return DroppedRow(line.row, "the image file cannot be read")
    record, errors = read_record(line.cells, data_set.schema.fields)
    label, label_error = read_label(line.label, data_set.labels)
    malignant, malignant_error = read_malignancy(line.malignancy, label, data_set.malignant_labels)
    more_errors = (error for error in (label_error, malignant_error) if error is not None)
    return LesionImage(
        image_id=line.image_id,
        lesion_id=line.lesion_id,
        patient_id=line.patient_id,
        image=image,
        label=label,
        malignant=malignant,
        record=record,
        row=line.row,
        value_errors=(*errors, *more_errors),
    )


def read_record(
    cells: Mapping[str, str], fields: Iterable[Field]
) -> tuple[Record, tuple[UnreadableValue, ...]]:
    """Return the record of the cells that are present and accepted, and the others' errors."""
    record: Record = {}
    errors = []
    for field in fields:
        raw = cells.get(field.name)
        if raw is None:
            continue
        try:
            value = read_value(field, raw)
        except InvalidRecord:
            errors.append(UnreadableValue(field.name, kind_of(raw), expectation(field)))
            continue
        if value is not None:
            record[field.name] = value
    return record, tuple(errors)


def read_label(
    raw: str | None, labels: tuple[str, ...]
) -> tuple[str | None, UnreadableValue | None]:
    """Return the label that a cell names in any case; None for none or an unknown one."""
    if raw is None or is_missing(raw):
        return None, None
    known = {label.casefold(): label for label in labels}
    label = known.get(raw.strip().casefold())
    if label is not None:
        return label, None
    return None, UnreadableValue("label", kind_of(raw), f"expected one of {', '.join(labels)}")


def read_malignancy(
    raw: str | None, label: str | None, malignant_labels: tuple[str, ...]
) -> tuple[bool | None, UnreadableValue | None]:
    """Return what the source's own cell says; where it says nothing, what the label does."""
    if raw is None or is_missing(raw):
        return None if label is None else label in malignant_labels, None
    word = raw.strip().casefold()
    if word in MALIGNANCY_WORDS:
        return MALIGNANCY_WORDS[word], None
    expected = f"expected {', '.join(MALIGNANCY_WORDS)}"
    return None, UnreadableValue("malignant", kind_of(raw), expected)


def kind_of(raw: str) -> str:
    """Return what a cell holds without repeating it: a misplaced cell may name a person."""
    try:
        float(raw)
    except ValueError:
        return f"text of {len(raw)} characters"
    return "number"


def expectation(field: Field) -> str:
    """Return in words what a field accepts."""
    if field.kind == "categorical":
        return f"expected one of {', '.join(field.categories)}"
    if field.kind == "boolean":
        return "expected true or false"
    unit = "" if field.unit is None else f" {field.unit}"
    bounds = [
        f"{word} {bound:g}{unit}"
        for word, bound in (("from", field.minimum), ("to", field.maximum))
        if bound is not None
    ]
    return " ".join(["expected a number", *bounds])


Cells = dict[str, str]


def read_csv(path: Path, required: Iterable[str]) -> Iterator[tuple[int, Cells] | DroppedRow]:
    """Yield (line number, cells by column) of a comma- or tab-separated file with a header.

    A line with too many or too few cells is yielded as a dropped row.

    Raises:
        CohortError: the file is missing, is not UTF-8 CSV, or lacks a required column.
    """
    header: list[str] = []
    for number, cells in _csv_lines(path):
        if not header:
            header = _clean_header(cells)
            require_columns(path, header, required)
        elif len(cells) == len(header):
            yield number, dict(zip(header, cells, strict=True))
        elif cells:
            yield wrong_length(number, len(header))


def find_table(path: Path, names: Sequence[str]) -> Path:
    """Return the first of the named files that is here.

    Raises:
        CohortError: none is.
    """
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        raise CohortError(f"{path}: expected {' or '.join(names)} here, got no such file")
    return found


def read_header(path: Path) -> list[str]:
    """Return the column names of a comma- or tab-separated file.

    Raises:
        CohortError: the file is missing, empty, or not UTF-8 CSV.
    """
    lines = _csv_lines(path)
    try:
        return _clean_header(next(lines)[1])
    finally:
        lines.close()


def _csv_lines(path: Path) -> Generator[tuple[int, list[str]]]:
    """Yield (line number, cells) of every line, the header first."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            if not first.strip():
                raise CohortError(f"{path}: line 1: expected a header, got an empty line")
            file.seek(0)
            reader = csv.reader(file, delimiter="\t" if "\t" in first else ",", strict=True)
            for cells in reader:
                yield reader.line_num, cells
    except FileNotFoundError:
        raise CohortError(f"{path}: expected the data set's table, got no such file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise CohortError(f"{path}: expected a CSV file in UTF-8: {error}") from None


def _clean_header(cells: list[str]) -> list[str]:
    return [name.strip() for name in cells]


def wrong_length(number: int, expected: int) -> DroppedRow:
    """Return the dropped row for a line whose cells do not fit the header."""
    return DroppedRow(f"line {number}", f"its cells are not as many as the {expected} columns")


def require_columns(path: Path, header: Sequence[str], required: Iterable[str]) -> None:
    """Do nothing if the header names every required column once.

    Raises:
        CohortError: it does not; the message names the nearest.
    """
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise CohortError(f"{path}: line 1: the column {twice[0]!r} stands twice")
    for name in required:
        if name not in header:
            raise CohortError(f"{path}: line 1: no column {name!r}; {nearest(name, header)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the part of an error that names the nearest known word."""
    words = list(known)
    found = difflib.get_close_matches(name, words, n=1, cutoff=0.0)
    return f"nearest is {found[0]!r}" if found else "there is none at all"
