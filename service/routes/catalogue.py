"""The catalogue's lesions: /lesions/{id}, its thumbnail and its neighbours.

Writing (POST, PATCH, DELETE) is reserved. A patient id is never shown.
"""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from index.catalogue import Exclusion
from service.errors import InvalidRequest
from service.problems import problems
from service.requests import MAX_ID_LENGTH, Ids, read_object
from service.retrieval import thumbnail_url
from service.schemas import LesionResponse, SimilarResponse
from service.state import ServiceDep, envelop, request_id_of

router = APIRouter(tags=["catalogue"])
ERRORS = problems(404, 422, 429, 503)
# FORMATS of thumbnails, by how their bytes begin.
WEBP, JPEG = "image/webp", "image/jpeg"

LesionId = Annotated[
    str, Path(min_length=1, max_length=MAX_ID_LENGTH, description="a catalogue lesion's id")
]


class SimilarQuery(BaseModel):
    """Which catalogue lesions may be hits."""

    model_config = ConfigDict(extra="forbid")

    k: int = Field(default=10, ge=1, description="hits wanted, at most SLIMP_MAX_K")
    filter: str = Field(
        default="",
        max_length=65_536,
        description="JSON: fields, label and malignant are AND, lists are OR",
        examples=['{"sex": "female"}'],
    )
    exclude_lesion: Ids = Field(default=[], description="lesions left out; may be repeated")
    exclude_patient: Ids = Field(default=[], description="patients left out; may be repeated")


@router.get("/lesions/{lesion_id:path}/similar", responses=ERRORS)
async def similar_to(
    request: Request,
    service: ServiceDep,
    lesion_id: LesionId,
    query: Annotated[SimilarQuery, Query()],
) -> SimilarResponse:
    """Find the catalogue lesions that look most like one of them, itself left out."""
    try:
        where = read_object(query.filter)
    except ValueError as error:
        raise InvalidRequest(f"filter: {error}", field="filter") from None
    exclude = Exclusion(frozenset(query.exclude_lesion), frozenset(query.exclude_patient))
    answer = await service.look_up(
        request,
        lambda runtime: runtime.similar_to(lesion_id, k=query.k, where=where, exclude=exclude),
    )
    return envelop(SimilarResponse, answer, request)


@router.get(
    "/lesions/{lesion_id:path}/thumbnail",
    responses={200: {"content": {WEBP: {}, JPEG: {}}}, **ERRORS},
    response_class=Response,
)
async def thumbnail(request: Request, service: ServiceDep, lesion_id: LesionId) -> Response:
    """Show the small picture of a catalogue lesion."""
    image = await service.look_up(request, lambda runtime: runtime.thumbnail(lesion_id))
    return Response(image, media_type=WEBP if image[:4] == b"RIFF" else JPEG)


@router.get("/lesions/{lesion_id:path}", responses=ERRORS)
async def lesion(request: Request, service: ServiceDep, lesion_id: LesionId) -> LesionResponse:
    """Show what the catalogue knows of a lesion, but for its patient."""
    stored = await service.look_up(request, lambda runtime: runtime.lesion(lesion_id))
    return LesionResponse(
        request_id=request_id_of(request),
        bundle_id=service.bundle_id,
        lesion_id=stored.lesion_id,
        label=stored.label,
        malignant=stored.malignant,
        record=stored.record,
        source=stored.source,
        thumbnail_url=thumbnail_url(stored.lesion_id, has_thumbnail=stored.has_thumbnail),
    )
