"""What is asked about one lesion: /classify, /similar and /embed."""

from typing import Any

from fastapi import APIRouter, Request

from index.catalogue import Exclusion
from service.problems import problems
from service.requests import ClassifyRequest, EmbedRequest, FormRequest, SimilarRequest
from service.schemas import ClassifyResponse, EmbedResponse, SimilarResponse
from service.state import ServiceDep, envelop

router = APIRouter(tags=["one lesion"])
ERRORS = problems(400, 413, 415, 422, 429, 500, 503)


def form_body(model: type[FormRequest]) -> dict[str, Any]:
    """Return the OpenAPI request body of a form."""
    schema = model.model_json_schema()
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    }


def excluded(asked: ClassifyRequest | SimilarRequest) -> Exclusion:
    """Return whom the caller leaves out."""
    return Exclusion(frozenset(asked.exclude_lesion), frozenset(asked.exclude_patient))


@router.post("/classify", responses=ERRORS, openapi_extra=form_body(ClassifyRequest))
async def classify(request: Request, service: ServiceDep) -> ClassifyResponse:
    """Say what one lesion may be: calibrated probabilities, or that it cannot be assessed."""
    answer = await service.ask(
        request,
        ClassifyRequest,
        lambda runtime, asked: runtime.classify(
            asked.image,
            asked.metadata,
            extrapolate=asked.extrapolate,
            exclude=excluded(asked),
        ),
        max_files=service.settings.max_images,
    )
    service.count_quality(answer.quality)
    service.count_metadata(answer.metadata)
    return envelop(ClassifyResponse, answer, request)


@router.post("/similar", responses=ERRORS, openapi_extra=form_body(SimilarRequest))
async def similar(request: Request, service: ServiceDep) -> SimilarResponse:
    """Find the catalogue lesions that look most like one lesion; never the image itself."""
    answer = await service.ask(
        request,
        SimilarRequest,
        lambda runtime, asked: runtime.similar(
            asked.image,
            asked.metadata,
            k=asked.k,
            where=asked.filter,
            exclude=excluded(asked),
        ),
        max_files=service.settings.max_images,
    )
    return envelop(SimilarResponse, answer, request)


@router.post("/embed", responses=ERRORS, openapi_extra=form_body(EmbedRequest))
async def embed(request: Request, service: ServiceDep) -> EmbedResponse:
    """Give the image encoder's feature of one lesion."""
    answer = await service.ask(
        request,
        EmbedRequest,
        lambda runtime, asked: runtime.embed(asked.image),
        max_files=service.settings.max_images,
    )
    return envelop(EmbedResponse, answer, request)
