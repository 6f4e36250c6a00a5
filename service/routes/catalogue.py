"""The catalogue's lesions: reading, adding, changing and erasing them. A patient is never shown."""

import hashlib
import json
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Header, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from index.catalogue import Exclusion
from index.lesions import Receipt, RequestKey
from service.access.callers import Caller
from service.errors import InvalidRequest
from service.problems import problems
from service.requests import (
    MAX_ID_LENGTH,
    EditRequest,
    Ids,
    NewLesionRequest,
    parse_edit,
    read_object,
)
from service.retrieval import show_lesion
from service.routes.lesion import form_body
from service.schemas import (
    ErasureResponse,
    LesionResponse,
    LesionsResponse,
    SimilarResponse,
)
from service.state import Service, ServiceDep, caller_of, envelop, request_id_of

router = APIRouter(tags=["catalogue"])
ERRORS = problems(404, 422, 429, 503)
MAX_PAGE = 500
# FORMATS of thumbnails, by how their bytes begin.
WEBP, JPEG = "image/webp", "image/jpeg"

LesionId = Annotated[
    str, Path(min_length=1, max_length=MAX_ID_LENGTH, description="a catalogue lesion's id")
]
PatientId = Annotated[
    str, Path(min_length=1, max_length=MAX_ID_LENGTH, description="a patient's id")
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


class PageQuery(BaseModel):
    """Which page of the catalogue."""

    model_config = ConfigDict(extra="forbid")

    cursor: str = Field(
        default="", pattern="^[0-9]{0,18}$", description="as the page before gave it"
    )
    limit: int = Field(default=50, ge=1, le=MAX_PAGE, description="lesions on a page")


@router.post(
    "/lesions",
    status_code=201,
    responses={
        200: {"model": LesionResponse, "description": "The same request had added it before"},
        **problems(400, 409, 410, 413, 415, 422, 429, 500, 503),
    },
    openapi_extra=form_body(NewLesionRequest),
)
async def add_lesion(
    request: Request,
    response: Response,
    service: ServiceDep,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=MAX_ID_LENGTH,
            description="names this request: sent again, it adds nothing and answers as before",
        ),
    ] = None,
) -> LesionResponse:
    """Add a lesion to the catalogue: from then on it is found, and speaks for others."""
    caller = caller_of(request)
    stored, added = await service.ask(
        request,
        NewLesionRequest,
        lambda runtime, asked: runtime.add_lesion(
            asked.lesion(), request_key(caller, idempotency_key, asked)
        ),
        max_files=service.settings.max_images,
    )
    response.status_code = 201 if added else 200
    response.headers["Location"] = f"/lesions/{quote(stored.lesion_id, safe='')}"
    return envelop(LesionResponse, show_lesion(stored), request)


def request_key(
    caller: Caller | None, key: str | None, asked: NewLesionRequest
) -> RequestKey | None:
    """Return the request's name as the catalogue keeps it: a key is one of its caller's own."""
    if key is None:
        return None
    whole = json.dumps([None if caller is None else caller.name, key])
    return RequestKey(hashlib.sha256(whole.encode()).hexdigest(), asked.digest())


@router.get("/lesions", responses=ERRORS)
async def lesions(
    request: Request, service: ServiceDep, query: Annotated[PageQuery, Query()]
) -> LesionsResponse:
    """List the catalogue's lesions, page by page, in the order they were added."""
    page, following = await service.look_up(
        request, lambda runtime: runtime.lesions(int(query.cursor or 0), query.limit)
    )
    return LesionsResponse(
        request_id=request_id_of(request),
        bundle_id=service.bundle_id,
        lesions=tuple(show_lesion(lesion) for lesion in page),
        cursor=None if following is None else str(following),
    )


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
    return envelop(LesionResponse, show_lesion(stored), request)


@router.patch(
    "/lesions/{lesion_id:path}",
    responses=problems(404, 413, 422, 429, 503),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": EditRequest.model_json_schema()}},
        }
    },
)
async def edit_lesion(request: Request, service: ServiceDep, lesion_id: LesionId) -> LesionResponse:
    """Change what is known of a lesion; its pictures stay."""
    stored = await service.ask_json(
        request,
        parse_edit,
        lambda runtime, asked: runtime.edit_lesion(lesion_id, asked.changes()),
    )
    return envelop(LesionResponse, show_lesion(stored), request)


@router.delete("/lesions/{lesion_id:path}", responses=ERRORS)
async def erase_lesion(
    request: Request, service: ServiceDep, lesion_id: LesionId
) -> ErasureResponse:
    """Erase a lesion; a backup that is put back later forgets it again."""
    receipt = await service.look_up(request, lambda runtime: runtime.erase("lesion", lesion_id))
    return _show_receipt(receipt, request, service)


@router.delete("/patients/{patient_id:path}", responses=ERRORS)
async def erase_patient(
    request: Request, service: ServiceDep, patient_id: PatientId
) -> ErasureResponse:
    """Erase all lesions of a patient; a backup that is put back later forgets them again."""
    receipt = await service.look_up(request, lambda runtime: runtime.erase("patient", patient_id))
    return _show_receipt(receipt, request, service)


def _show_receipt(receipt: Receipt, request: Request, service: Service) -> ErasureResponse:
    return ErasureResponse(
        request_id=request_id_of(request),
        bundle_id=service.bundle_id,
        lesions=len(receipt.lesions),
        images=receipt.images,
        thumbnails=receipt.thumbnails,
        revision=receipt.revision,
        log_is_empty=receipt.log_is_empty,
    )
