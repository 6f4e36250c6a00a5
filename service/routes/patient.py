"""What is asked about one patient: /risk."""

from fastapi import APIRouter, Request

from service.problems import problems
from service.requests import RiskRequest
from service.routes.lesion import form_body
from service.runtime import Runtime
from service.schemas import RiskAnswer, RiskResponse
from service.state import ServiceDep, envelop

router = APIRouter(tags=["one patient"])
ERRORS = problems(400, 404, 413, 415, 422, 429, 500, 503)


@router.post("/risk", responses=ERRORS, openapi_extra=form_body(RiskRequest))
async def risk(request: Request, service: ServiceDep) -> RiskResponse:
    """Say how a patient's lesions stand beside each other, and the patient's risk."""
    answer = await service.ask(
        request, RiskRequest, _answer, max_files=service.settings.max_images_risk
    )
    for lesion in answer.lesions:
        service.count_quality(lesion.quality)
    return envelop(RiskResponse, answer, request)


def _answer(runtime: Runtime, asked: RiskRequest) -> RiskAnswer:
    lesions = asked.lesions
    return runtime.risk(
        asked.images,
        None if lesions is None else [lesion.submitted() for lesion in lesions],
        asked.patient,
        patient_id=asked.patient_id,
        extrapolate=asked.extrapolate,
    )
