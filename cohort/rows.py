"""What a reader yields: one image of one lesion, or the reason why a row was left out."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace

from bundle.errors import CohortError
from bundle.fields import FieldSchema, Record


@dataclass(frozen=True)
class UnreadableValue:
    """A metadata value that was not accepted, so that its field is missing.

    Attributes:
        field: canonical field name, or "label" or "malignant".
        kind: what came, in words that do not repeat it ("number", "text of 7 characters").
        reason: what was expected.
    """

    field: str
    kind: str
    reason: str


@dataclass(frozen=True)
class LesionImage:
    """One image of one lesion, with what is known of the lesion and of the patient.

    Attributes:
        image_id: unique within the cohort.
        lesion_id: unique within the cohort (a source that reuses ids across patients is prefixed).
        patient_id: None where the source has no patient ids.
        image: the file's bytes as they came.
        label: one of the source's labels, or None.
        malignant: None where neither the source nor the label tells.
        record: canonical field name to checked value, of both levels; an absent key is missing.
        row: where the source holds it ("line 12 (ISIC_0024306)"); "" if that says no more than
            the image id.
        value_errors: the values that were not accepted; their fields are absent from the record.
    """

    image_id: str
    lesion_id: str
    patient_id: str | None
    image: bytes
    label: str | None
    malignant: bool | None
    record: Record
    row: str = ""
    value_errors: tuple[UnreadableValue, ...] = ()

    @property
    def group_id(self) -> str:
        """The patient where there is one, else the lesion: what a split may not cut."""
        return self.lesion_id if self.patient_id is None else self.patient_id


@dataclass(frozen=True)
class DroppedRow:
    """A row of the source that did not become a lesion image, and why."""

    row: str
    reason: str


@dataclass(frozen=True)
class Group:
    """What a split needs to know of a patient (or lesion): its id and its rarest label."""

    group_id: str
    label: str | None


@dataclass(frozen=True)
class Source:
    """A published data set, opened for reading.

    Attributes:
        name: the data set's name as the command line knows it.
        schema: its fields, never fitted.
        labels: all labels, in a fixed order; empty for a source without labels.
        malignant_labels: those that count as malignant.
        licence: short name of the licence.
        citation: DOI or reference.
        groups: yields every group once per usable row, without reading images.
        rows: yields every row of the source once, as an image or as a dropped row, all rows of
            one patient together; reads images as it goes and holds none.
    """

    name: str
    schema: FieldSchema
    labels: tuple[str, ...]
    malignant_labels: tuple[str, ...]
    licence: str
    citation: str
    groups: Callable[[], Iterator[Group]]
    rows: Callable[[], Iterator[LesionImage | DroppedRow]]
    notes: tuple[str, ...] = field(default=())


def without_labels(source: Source, names: Collection[str]) -> Source:
    """Return the source with some labels taken away: their rows stay, unlabelled.

    Whether they are malignant stays known. Of a label with a handful of lesions nothing can be
    learnt, let alone calibrated; as unlabelled rows they still teach pre-training.

    Raises:
        CohortError: the source has no such label.
    """
    if unknown := sorted(set(names) - set(source.labels)):
        raise CohortError(
            f"{source.name}: expected one of its labels, {', '.join(source.labels)}, got "
            f"{unknown[0]!r}"
        )

    def groups() -> Iterator[Group]:
        for group in source.groups():
            yield replace(group, label=None) if group.label in names else group

    def rows() -> Iterator[LesionImage | DroppedRow]:
        for row in source.rows():
            if isinstance(row, LesionImage) and row.label in names:
                yield replace(row, label=None)
            else:
                yield row

    return replace(
        source,
        labels=tuple(label for label in source.labels if label not in names),
        malignant_labels=tuple(x for x in source.malignant_labels if x not in names),
        groups=groups,
        rows=rows,
        notes=(*source.notes, *(f"the label {name} was taken away" for name in sorted(names))),
    )
