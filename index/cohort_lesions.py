"""A cohort's images, one row each, gathered into lesions."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bundle.errors import CatalogueError, InvalidRecord
from bundle.fields import Field, Record
from cohort.cohort import Cohort
from cohort.splits import SPLITS


@dataclass(frozen=True)
class CohortImage:
    """One image of a lesion: its row in the cohort and what stands there of the lesion."""

    row: int
    image_id: str
    label: str | None
    malignant: bool | None


@dataclass(frozen=True)
class CohortLesion:
    """A lesion with all its images, in the cohort's order."""

    lesion_id: str
    patient_id: str | None
    images: tuple[CohortImage, ...]


@dataclass(frozen=True)
class RejectedValue:
    """A cohort's value that the bundle's schema does not accept; it is missing in the catalogue."""

    lesion_id: str
    field: str
    reason: str


@dataclass(frozen=True)
class Disagreement:
    """A lesion whose images carry different values of one column; the first is kept."""

    lesion_id: str
    column: str
    values: tuple[Any, ...]


def cohort_lesions(cohort: Cohort, splits: Collection[str]) -> list[CohortLesion]:
    """Return the lesions of these splits, in the order of their first images.

    Raises:
        CatalogueError: there is no such split, or the splits hold no lesion.
    """
    if unknown := sorted(set(splits) - set(SPLITS)):
        raise CatalogueError(f"expected splits among {', '.join(SPLITS)}, got {unknown[0]!r}")
    names = ["split", "row", "lesion_id", "patient_id", "image_id", "label", "malignant"]
    columns = [cohort.table()[name].to_pylist() for name in names]
    gathered: dict[str, tuple[str | None, list[CohortImage]]] = {}
    for split, row, lesion_id, patient_id, *rest in zip(*columns, strict=True):
        if split in splits:
            gathered.setdefault(lesion_id, (patient_id, []))[1].append(CohortImage(row, *rest))
    if not gathered:
        raise CatalogueError(
            f"{cohort.info.name}: expected lesions in {', '.join(splits) or 'no split'}, got none: "
            "name other splits"
        )
    return [
        CohortLesion(lesion_id, patient_id, tuple(images))
        for lesion_id, (patient_id, images) in gathered.items()
    ]


def chunks(lesions: Sequence[CohortLesion], images: int) -> Iterator[list[CohortLesion]]:
    """Yield the lesions in order, in chunks of at least so many images but for the last."""
    chunk: list[CohortLesion] = []
    held = 0
    for lesion in lesions:
        chunk.append(lesion)
        held += len(lesion.images)
        if held >= images:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def accepted_values(
    raw: Record, read: Mapping[str, Field], lesion_id: str
) -> tuple[Record, list[RejectedValue]]:
    """Return the part of a record that the fields accept, and what they do not.

    Args:
        raw: a cohort's record.
        read: by the cohort's name of a field, the bundle's that reads it; others are left out.
        lesion_id: whose record it is.
    """
    record: Record = {}
    rejected = []
    for name, field in read.items():
        try:
            value = field.parse(raw.get(name))
        except InvalidRecord as error:
            rejected.append(RejectedValue(lesion_id, field.name, str(error)))
            continue
        if value is not None:
            record[field.name] = value
    return record, rejected


def first_of(lesion_id: str, records: Sequence[Record]) -> tuple[Record, list[Disagreement]]:
    """Return each key's first present value, and the keys on which the records differ."""
    merged: dict[str, list[Any]] = {}
    for record in records:
        for name, value in record.items():
            known = merged.setdefault(name, [])
            if value is not None and value not in known:
                known.append(value)
    differing = [
        Disagreement(lesion_id, name, tuple(values))
        for name, values in merged.items()
        if len(values) > 1
    ]
    return {name: values[0] for name, values in merged.items() if values}, differing
