"""What goes into a catalogue and what comes out of it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundle.fields import Record

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class CatalogueLesion:
    """A reference lesion to be added.

    Attributes:
        lesion_id: unique within the catalogue.
        patient_id: None where the source has no patient ids.
        record: canonical field name to checked value, of both levels; None or absent is missing.
        label: the diagnosis, or None where it is not known.
        malignant: None where it is not known.
        source: name of the cohort that it comes from.
        embedding: (D,) float32, the image encoder's feature, mean over the lesion's images; not
            normalised.
        content_hashes: `bundle.images.content_hash` of each of the lesion's images.
        thumbnail: JPEG or WebP bytes without any metadata, or None.
        confirmed_by: how the label was found out, such as "histopathology"; None if not known.
    """

    lesion_id: str
    patient_id: str | None
    record: Record
    label: str | None
    malignant: bool | None
    source: str
    embedding: FloatArray
    content_hashes: tuple[str, ...] = ()
    thumbnail: bytes | None = None
    confirmed_by: str | None = None


@dataclass(frozen=True, eq=False)
class StoredLesion:
    """A lesion as the catalogue holds it.

    Attributes:
        lesion_id: unique within the catalogue.
        patient_id: None where the source has no patient ids.
        record: canonical field name to value, in schema order; an absent key is missing.
        label: the diagnosis, or None where it is not known.
        malignant: None where it is not known.
        source: name of the cohort that it comes from.
        embedding: (D,) float32, as it was added; not normalised.
        content_hashes: pixel hash of each of the lesion's images.
        has_thumbnail: whether `Catalogue.thumbnail` has an answer.
        confirmed_by: how the label was found out; None if not known.
    """

    lesion_id: str
    patient_id: str | None
    record: Record
    label: str | None
    malignant: bool | None
    source: str
    embedding: FloatArray
    content_hashes: tuple[str, ...]
    has_thumbnail: bool
    confirmed_by: str | None = None


@dataclass(frozen=True)
class Edit:
    """What is to be changed of a stored lesion; what is absent stays.

    Attributes:
        record: canonical field name to checked value; None makes the field missing.
        columns: `patient_id`, `label`, `malignant`, `confirmed_by`, to their new values.
    """

    record: Record
    columns: dict[str, str | bool | None]


@dataclass(frozen=True)
class RequestKey:
    """Names a request that may be sent twice and must count once.

    Attributes:
        key: hash of the name that the caller gave it, 64 hexadecimal digits.
        content: hash of what it asks.
    """

    key: str
    content: str


@dataclass(frozen=True)
class Receipt:
    """What an erasure removed.

    Attributes:
        lesions: lesion ids.
        images: pictures that were known by their hashes.
        thumbnails: small pictures that were kept.
        revision: the catalogue's, from which on they are gone.
        log_is_empty: whether the database's log is without them too. While another process reads,
            such as a backup, it is not; a later write or probe empties it.
    """

    lesions: tuple[str, ...]
    images: int
    thumbnails: int
    revision: int
    log_is_empty: bool


@dataclass(frozen=True)
class Hit:
    """A catalogue lesion near a query; `score` is their cosine similarity in [-1, 1]."""

    lesion_id: str
    score: float
    label: str | None
    malignant: bool | None
    record: Record
    source: str
    patient_id: str | None
    has_thumbnail: bool


@dataclass(frozen=True)
class Exclusion:
    """Lesions that may not be hits, whatever the filter says; ids that do not exist are no error.

    Attributes:
        lesions: lesion ids.
        patients: patient ids; all their lesions are excluded.
        contents: pixel hashes (`bundle.images.content_hash`); every lesion that holds such an
            image is excluded, so that a picture never finds itself under another name.
        with_kin: whether all lesions of the patients of excluded ones are excluded too.
    """

    lesions: frozenset[str] = frozenset()
    patients: frozenset[str] = frozenset()
    contents: frozenset[str] = frozenset()
    with_kin: bool = False

    @property
    def is_empty(self) -> bool:
        return not (self.lesions or self.patients or self.contents)
