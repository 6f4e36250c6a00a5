"""Error answers: RFC 9457 problem+json of one shape, for our errors and the framework's."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from bundle.errors import LesionError
from service.errors import PROBLEMS, RETRY, public_message
from service.logging import describe_cause
from service.requests import invalid_request
from service.schemas import ProblemResponse
from service.state import Service, bundle_id_for, get_service, request_id_of

MEDIA_TYPE = "application/problem+json"
INTERNAL = "internal_error"


def problem(
    service: Service,
    request_id: str,
    status: HTTPStatus,
    *,
    code: str,
    detail: str,
    bundle_id: str | None,
    field: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return one error answer and count it."""
    service.metrics.problems.labels(code=code).inc()
    answer = render_problem(
        service, request_id, status, code=code, detail=detail, bundle_id=bundle_id, field=field
    )
    answer.headers.update(headers or {})
    return answer


def render_problem(
    service: Service,
    request_id: str,
    status: HTTPStatus,
    *,
    code: str,
    detail: str,
    bundle_id: str | None,
    field: str | None = None,
) -> Response:
    """Return one error answer; 429 and 503 say when to ask again."""
    body = ProblemResponse(
        request_id=request_id,
        bundle_id=bundle_id,
        type=f"urn:slimp:problem:{code}",
        title=status.phrase,
        status=status,
        code=code,
        detail=detail,
        field=field,
    )
    retry = {"Retry-After": str(service.settings.retry_after_s)} if status in RETRY else {}
    return JSONResponse(
        body.model_dump(mode="json"), status_code=status, headers=retry, media_type=MEDIA_TYPE
    )


def internal_error(service: Service, request_id: str) -> Response:
    """Return the constant answer to what nobody foresaw."""
    return problem(
        service,
        request_id,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        code=INTERNAL,
        detail="the service failed in a way nobody foresaw; tell its operator the request_id",
        bundle_id=service.bundle_id,
    )


def ledger_problem(service: Service, scope: Scope, error: LesionError) -> Response:
    """Return the answer in place of one that could not be written down."""
    service.log.error("audit_failed", code=error.code, detail=str(error), **describe_cause(error))
    return early_problem(service, scope, error)


def early_problem(service: Service, scope: Scope, error: LesionError) -> Response:
    """Return the answer to an error outside the app's routes, where nobody may be known yet."""
    status = PROBLEMS[type(error)].status
    request_id = str(scope["state"]["request_id"])
    return problem(
        service,
        request_id,
        status,
        code=error.code,
        detail=public_message(error),
        bundle_id=None if scope["state"].get("caller") is None else service.bundle_id,
    )


def install_handlers(app: FastAPI) -> None:
    """Answer every foreseen error in the one shape."""
    app.add_exception_handler(LesionError, _answer_lesion_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)


async def _answer_lesion_error(request: Request, error: Exception) -> Response:
    return answer_error(request, cast(LesionError, error))


async def _answer_validation_error(request: Request, error: Exception) -> Response:
    errors = cast(RequestValidationError, error).errors()
    return answer_error(request, invalid_request(errors))


def answer_error(request: Request, error: LesionError) -> Response:
    """Return the answer to an error of ours, and log what is the site's to repair."""
    service = get_service(request)
    status = PROBLEMS[type(error)].status
    if PROBLEMS[type(error)].public is not None or status == HTTPStatus.INTERNAL_SERVER_ERROR:
        service.log.error("request_failed", code=error.code, detail=str(error))
    return problem(
        service,
        request_id_of(request),
        status,
        code=error.code,
        detail=public_message(error),
        bundle_id=bundle_id_for(request),
        field=getattr(error, "field", None),
        headers=getattr(error, "headers", None),
    )


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    known = cast(HTTPException, error)
    status = HTTPStatus(known.status_code)
    answer = problem(
        get_service(request),
        request_id_of(request),
        status,
        code=status.phrase.lower().replace(" ", "_"),
        detail=f"{status.phrase}: /docs lists every path and its methods",
        bundle_id=bundle_id_for(request),
    )
    answer.headers.update(known.headers or {})
    return answer


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of a route's error answers."""
    reference = {"$ref": f"#/components/schemas/{ProblemResponse.__name__}"}
    content = {MEDIA_TYPE: {"schema": reference}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in sorted(statuses)
    }
