"""Similar lesions of the catalogue, as the answer shows them: never with a patient id."""

from collections.abc import Sequence
from urllib.parse import quote

from index.catalogue import Hit, StoredLesion
from service.schemas import CatalogueEntry, SimilarLesion


def thumbnail_url(lesion_id: str, *, has_thumbnail: bool) -> str | None:
    """Return the path of a lesion's thumbnail on this service, None where there is none."""
    return f"/lesions/{quote(lesion_id, safe='')}/thumbnail" if has_thumbnail else None


def show_hits(hits: Sequence[Hit]) -> tuple[SimilarLesion, ...]:
    """Return the hits in order; float rounding never leaves [-1, 1]."""
    return tuple(
        SimilarLesion(
            lesion_id=hit.lesion_id,
            score=max(-1.0, min(1.0, hit.score)),
            label=hit.label,
            malignant=hit.malignant,
            record=hit.record,
            source=hit.source,
            thumbnail_url=thumbnail_url(hit.lesion_id, has_thumbnail=hit.has_thumbnail),
        )
        for hit in hits
    )


def show_lesion(stored: StoredLesion) -> CatalogueEntry:
    """Return what is shown of a catalogue lesion."""
    return CatalogueEntry(
        lesion_id=stored.lesion_id,
        label=stored.label,
        malignant=stored.malignant,
        confirmed_by=stored.confirmed_by,
        record=stored.record,
        source=stored.source,
        thumbnail_url=thumbnail_url(stored.lesion_id, has_thumbnail=stored.has_thumbnail),
    )
