"""What a site adds to its catalogue, changes in it and erases from it.

A reference lesion speaks for others: what is added must be a picture that can be judged, and its
label must say how it was found out. Erased lesions are gone from rows, vectors, small pictures and
caches when the call returns.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bundle.errors import InvalidRecord
from bundle.images import ImageLimits, decode_image
from index.catalogue import Catalogue
from index.lesions import CatalogueLesion, Edit, RequestKey, StoredLesion
from index.thumbnails import make_thumbnail
from service.errors import InvalidRequest, NotAssessable
from service.models import Models
from service.pictures import look, pool
from service.stages import stage

Confirmation = Literal["histopathology", "confocal", "follow_up", "consensus", "clinical"]
SOURCE = "site"
# What follows a lesion's id in the paths of other routes.
OTHER_ROUTES = ("/similar", "/thumbnail")


@dataclass(frozen=True)
class Diagnosis:
    """What is known of a lesion's nature.

    Attributes:
        label: the diagnosis; one of the bundle's labels or another.
        malignant: needed only where the bundle does not know the label.
        confirmed_by: how it was found out.
    """

    label: str | None = None
    malignant: bool | None = None
    confirmed_by: Confirmation | None = None


@dataclass(frozen=True)
class NewLesion:
    """A lesion to be added.

    Attributes:
        images: one or more images of it, as files.
        record: raw metadata, field or alias to value.
        diagnosis: what is known of its nature.
        lesion_id: None takes a new one.
        patient_id: whose it is.
    """

    images: Sequence[bytes]
    record: Mapping[str, Any]
    diagnosis: Diagnosis
    lesion_id: str | None = None
    patient_id: str | None = None


def add_lesion(
    models: Models,
    catalogue: Catalogue,
    new: NewLesion,
    request: RequestKey | None,
    limits: ImageLimits,
) -> tuple[StoredLesion, bool]:
    """Add a lesion and return it, and whether it was added now or by the same request before.

    Args:
        models: the loaded bundle.
        catalogue: where it goes.
        new: the lesion.
        request: names the request where it may come twice.
        limits: what an image may be.

    Raises:
        InvalidRecord, InvalidRequest, InvalidImage: something about it cannot be accepted.
        NotAssessable: none of its images can be judged.
        LesionExists, DuplicateImage, RequestKeyReused, LesionGone: as `Catalogue.add_once` says.
    """
    check_lesion_id(new.lesion_id)
    check_printable("patient_id", new.patient_id)
    record = models.schema.parse(new.record)
    malignant = _malignant(models, new.diagnosis)
    pictures = pool(look(models, new.images, limits), range(len(new.images)))
    if not pictures.assessable:
        raise NotAssessable(
            "expected an image that can be judged, since a reference lesion speaks for others; got "
            f"{', '.join(pictures.quality.reasons)}: nothing is added",
            field="image",
        )
    # Decoded once more: pictures are not kept at full size while the models look at them.
    with models.decoding, stage("decode"):
        thumbnail = make_thumbnail(decode_image(new.images[0], limits))
    lesion = CatalogueLesion(
        lesion_id=new.lesion_id or uuid.uuid4().hex,
        patient_id=new.patient_id,
        record={name: value for name, value in record.items() if value is not None},
        label=new.diagnosis.label,
        malignant=malignant,
        source=SOURCE,
        embedding=pictures.embedding,
        content_hashes=tuple(sorted(pictures.contents)),
        thumbnail=thumbnail,
        confirmed_by=new.diagnosis.confirmed_by,
    )
    return catalogue.add_once(lesion, request)


def edit_lesion(
    models: Models, catalogue: Catalogue, lesion_id: str, changes: Mapping[str, Any]
) -> StoredLesion:
    """Change what is known of a lesion and return it.

    Args:
        models: the loaded bundle.
        catalogue: where it is.
        lesion_id: which.
        changes: any of `metadata` (raw; null makes a field missing), `patient_id`, `label`,
            `malignant`, `confirmed_by`; what is absent stays as it is when the change is written.

    Raises:
        InvalidRecord, InvalidRequest: a change cannot be accepted.
        UnknownLesion: the catalogue does not hold it.
    """
    check_printable("patient_id", changes.get("patient_id"))
    record = models.schema.parse(changes.get("metadata") or {})
    columns = {name: changes[name] for name in ("patient_id",) if name in changes}
    said = {n: changes[n] for n in ("label", "malignant", "confirmed_by") if n in changes}

    def edit(stored: StoredLesion) -> Edit:
        return Edit(record, {**columns, **(_diagnosis(models, stored, said) if said else {})})

    return catalogue.update(lesion_id, edit)


def _diagnosis(
    models: Models, stored: StoredLesion, said: Mapping[str, Any]
) -> dict[str, str | bool | None]:
    """Return the columns of a stored lesion's diagnosis with what is said of it now.

    Raises:
        InvalidRecord, InvalidRequest: together they cannot be accepted.
    """
    known = stored.malignant if "label" not in said else None
    merged = Diagnosis(
        label=said.get("label", stored.label),
        malignant=said.get("malignant", known),
        confirmed_by=said.get("confirmed_by", stored.confirmed_by),
    )
    return {
        "label": merged.label,
        "malignant": _malignant(models, merged),
        "confirmed_by": merged.confirmed_by,
    }


def _malignant(models: Models, diagnosis: Diagnosis) -> bool | None:
    """Return whether the diagnosis is malignant, None where nobody says.

    Raises:
        InvalidRequest: the label does not say how it was found out, or the two contradict.
    """
    if diagnosis.label is not None and diagnosis.confirmed_by is None:
        raise InvalidRequest(
            "confirmed_by: expected how the label was found out, got none: a reference lesion's "
            "label must be confirmed",
            field="confirmed_by",
        )
    check_printable("label", diagnosis.label)
    if diagnosis.label is None and diagnosis.confirmed_by is not None:
        raise InvalidRequest("label: expected what was confirmed, got none", field="label")
    if diagnosis.label not in models.labels:
        return diagnosis.malignant
    known = diagnosis.label in models.manifest.malignant_labels
    if diagnosis.malignant not in (None, known):
        raise InvalidRequest(
            f"malignant: expected {str(known).lower()}, as this bundle counts "
            f"{diagnosis.label!r}; leave it out",
            field="malignant",
        )
    return known


def check_lesion_id(value: str | None) -> None:
    """Refuse an id that could not be asked for again under /lesions.

    Raises:
        InvalidRecord: a client would shorten its path, or it ends as another route does.
    """
    check_printable("lesion_id", value)
    if value in (".", "..") or (value is not None and value.endswith(OTHER_ROUTES)):
        raise InvalidRecord(
            f"lesion_id: expected an id other than . and .., that does not end in "
            f"{' or '.join(OTHER_ROUTES)}: nobody could ask for it",
            field="lesion_id",
        )


def check_printable(name: str, value: str | None) -> None:
    """Refuse a text that nobody could read.

    Raises:
        InvalidRecord: it is blank or holds a control character.
    """
    if value is not None and (not value.strip() or not value.isprintable()):
        raise InvalidRecord(
            f"{name}: expected printable text, got a blank or a control character", field=name
        )
