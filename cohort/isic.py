"""What ISIC's challenges share: blank lesion ids, and one-hot labels in a file of their own."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bundle.errors import CohortError
from bundle.fields import Field, is_missing
from cohort.lines import Cells, Line, read_csv
from cohort.rows import DroppedRow

ONE_HOT_WORDS = {"0": False, "0.0": False, "1": True, "1.0": True}


@dataclass(frozen=True)
class GroundTruth:
    """The labels of a challenge.

    Attributes:
        path: the file.
        key: the column that names what is labelled, an image or a lesion.
        labels: of each key, as text: one class, or what stands there instead.
    """

    path: Path
    key: str
    labels: dict[str, str]


def read_ground_truth(path: Path, key: str, classes: tuple[str, ...]) -> GroundTruth:
    """Return the label that each line's one-hot cells name.

    Raises:
        CohortError: the file is missing, lacks a column, has a broken line or names a key twice.
    """
    labels: dict[str, str] = {}
    for row in read_csv(path, (key, *classes)):
        if isinstance(row, DroppedRow):
            raise CohortError(f"{path}: {row.row}: {row.reason}: download the file again")
        number, cells = row
        if cells[key] in labels:
            raise CohortError(f"{path}: line {number}: {cells[key]} has two labels: keep one")
        hot = [name for name in classes if _is_hot(path, number, name, cells[name])]
        # Several classes, or none, make no label: the value is then listed as unreadable.
        labels[cells[key]] = " and ".join(hot) or "no class"
    return GroundTruth(path, key, labels)


def _is_hot(path: Path, number: int, name: str, cell: str) -> bool:
    hot = ONE_HOT_WORDS.get(cell.strip())
    if hot is None:
        raise CohortError(
            f"{path}: line {number}: expected 0 or 1 under {name!r}, got {cell[:16]!r}: "
            "is this the one-hot ground truth?"
        )
    return hot


def labelled_lines(
    rows: Iterable[tuple[int, Cells] | DroppedRow],
    truth: GroundTruth,
    make_line: Callable[[int, Cells, str | None], Line],
) -> list[Line | DroppedRow]:
    """Return the metadata's lines with their labels, then the labels that no line asked for.

    Args:
        rows: the metadata, which has the truth's key column.
        truth: a line that it does not name stays without a label.
        make_line: called with line number, cells and label.
    """
    lines: list[Line | DroppedRow] = []
    named: set[str] = set()
    for row in rows:
        if isinstance(row, DroppedRow):
            lines.append(row)
            continue
        number, cells = row
        named.add(cells[truth.key])
        lines.append(make_line(number, cells, truth.labels.get(cells[truth.key])))
    lines.extend(
        DroppedRow(f"{truth.path.name} ({key})", "it has a label and no line of metadata")
        for key in truth.labels
        if key not in named
    )
    return lines


def lesion_or_image(lesion_id: str, image_id: str) -> str:
    """Return the lesion's id; an image whose lesion is not known is a lesion of its own."""
    return image_id if is_missing(lesion_id) else lesion_id


def patient_or_none(patient_id: str) -> str | None:
    """Return the patient's id, or None where it is missing."""
    return None if is_missing(patient_id) else patient_id


def cells_by_field(cells: Cells, fields: Mapping[str, Field]) -> dict[str, str]:
    """Return the raw cells under canonical names; `fields` gives the field of each column."""
    return {field.name: cells[column] for column, field in fields.items()}
