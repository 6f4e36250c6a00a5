"""Who a patient is: the lesions that were sent, the record, and the catalogue's lesions.

Reading and checking only; what is said of them is `service/context.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bundle.errors import InvalidRecord
from bundle.fields import Record, Value
from index.catalogue import Catalogue, StoredLesion
from service.errors import InvalidRequest
from service.models import Models
from service.schemas import AnswerWarning


@dataclass(frozen=True)
class SubmittedLesion:
    """One lesion of a request.

    Attributes:
        id: the caller's name for it.
        images: positions among the request's images, at least one.
        record: raw metadata, field or alias to value.
    """

    id: str
    images: tuple[int, ...]
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Patient:
    """What is known of the patient beside the images.

    Attributes:
        record: canonical values that hold for all submitted lesions.
        facts: those of them at patient level, the caller's first, then the catalogue's.
        from_catalogue: fields of the record that the catalogue gave, not the caller.
        stored: the patient's catalogue lesions.
        warnings: what the caller must know of the record.
    """

    record: Record
    facts: Record
    from_catalogue: frozenset[str]
    stored: tuple[StoredLesion, ...]
    warnings: tuple[AnswerWarning, ...]


def one_lesion_an_image(num_images: int) -> list[SubmittedLesion]:
    """Return a lesion for each image, named by its position."""
    return [SubmittedLesion(str(position), (position,), {}) for position in range(num_images)]


def check_lesions(lesions: Sequence[SubmittedLesion], num_images: int) -> None:
    """Refuse lesions that do not share out the images: each image belongs to exactly one.

    Raises:
        InvalidRequest: an id or an image is used twice, does not exist, or belongs to no lesion.
    """
    names = [lesion.id for lesion in lesions]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InvalidRequest(f"lesions: the id {twice[0]!r} is used twice", field="lesions")
    positions = [position for lesion in lesions for position in lesion.images]
    for position in positions:
        if not 0 <= position < num_images:
            raise InvalidRequest(
                f"lesions: expected image positions from 0 to {num_images - 1}, got {position}",
                field="lesions",
            )
        if positions.count(position) > 1:
            raise InvalidRequest(
                f"lesions: image {position} is listed twice; an image shows one lesion",
                field="lesions",
            )
    if unused := sorted(set(range(num_images)) - set(positions)):
        raise InvalidRequest(
            f"lesions: image {unused[0]} belongs to no lesion; list it or leave it out",
            field="lesions",
        )


def check_contents(lesions: Sequence[SubmittedLesion], contents: Sequence[str]) -> None:
    """Refuse one picture in the place of several lesions: it would count as often as it was sent.

    Args:
        lesions: that share out the images.
        contents: pixel hash of each image.

    Raises:
        InvalidRequest: two lesions hold the same picture.
    """
    first: dict[str, SubmittedLesion] = {}
    for lesion in lesions:
        for position in lesion.images:
            other = first.setdefault(contents[position], lesion)
            if other is not lesion:
                raise InvalidRequest(
                    f"lesions: {other.id!r} and {lesion.id!r} hold the same picture; an image "
                    "shows one lesion: leave one of them out",
                    field="lesions",
                )


def read_lesion_record(models: Models, lesion: SubmittedLesion) -> Record:
    """Return a submitted lesion's checked record.

    Raises:
        InvalidRecord: a name or value is not accepted, or a field belongs to the patient.
    """
    try:
        record = models.schema.parse(lesion.record)
    except InvalidRecord as error:
        raise type(error)(f"lesion {lesion.id!r}: {error}", field=error.field) from None
    for field in models.fields("patient"):
        if field.name in record:
            raise InvalidRecord(
                f"{field.name}: belongs to the patient, got it in lesion {lesion.id!r}; "
                "send it in the part 'patient'",
                field=field.name,
            )
    return record


def read_patient(
    models: Models,
    catalogue: Catalogue | None,
    raw: Mapping[str, Any],
    *,
    patient_id: str | None,
    contents: frozenset[str],
) -> Patient:
    """Return what is known of the patient.

    A field of lesion level in `raw` holds for every submitted lesion that does not give its own.

    Args:
        models: the loaded bundle.
        catalogue: where the patient's other lesions are.
        raw: the patient's metadata from the caller.
        patient_id: adds the patient's catalogue lesions; None adds none.
        contents: hashes of the submitted images; a catalogue lesion that holds one is left out.

    Raises:
        InvalidRecord: a name or value is not accepted.
        UnknownLesion: the catalogue has no such patient.
    """
    given: Record = {name: v for name, v in models.schema.parse(raw).items() if v is not None}
    stored: tuple[StoredLesion, ...] = ()
    if patient_id is not None and catalogue is not None:
        lesions = catalogue.lesions_of_patient(patient_id)
        stored = tuple(one for one in lesions if not contents & set(one.content_hashes))
    known, warnings = _catalogue_facts(models, stored)
    names = {field.name for field in models.fields("patient")}
    facts = {**known, **{name: value for name, value in given.items() if name in names}}
    told = [warning for warning in warnings if warning.field not in given]
    told += _contradictions(models, given, known)
    from_catalogue = frozenset(known) - frozenset(given)
    return Patient({**known, **given}, facts, from_catalogue, stored, tuple(told))


def _contradictions(models: Models, given: Record, known: Record) -> list[AnswerWarning]:
    """Return where the caller says otherwise than all the patient's catalogue lesions.

    Numbers, such as the age, change with time.
    """
    return [
        AnswerWarning(
            field=field.name,
            code="conflicting_record",
            message=f"{field.name}: expected {known[field.name]}, as the catalogue's lesions of "
            f"this patient say, got {given[field.name]}: is the patient's id right?",
        )
        for field in models.fields("patient")
        if field.kind != "numeric"
        and field.name in known
        and given.get(field.name, known[field.name]) != known[field.name]
    ]


def _catalogue_facts(
    models: Models, stored: Sequence[StoredLesion]
) -> tuple[Record, list[AnswerWarning]]:
    """Return the patient fields on which the catalogue's lesions agree; others stay missing."""
    facts: Record = {}
    warnings = []
    for field in models.fields("patient"):
        values: set[Value] = {one.record.get(field.name) for one in stored} - {None}
        if len(values) == 1:
            (facts[field.name],) = values
        elif values:
            message = f"the catalogue's lesions disagree on {field.name}; send it in 'patient'"
            warnings.append(
                AnswerWarning(field=field.name, code="conflicting_record", message=message)
            )
    return facts, warnings
