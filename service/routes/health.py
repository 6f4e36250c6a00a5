"""The probes and what Prometheus reads; the KServe v2 paths are the same probes.

The probes answer anybody; why the service is not ready, and what it serves, is told to callers.
"""

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.problems import problems
from service.schemas import HealthResponse
from service.state import ServiceDep, bundle_id_for, caller_of, request_id_of

router = APIRouter(tags=["health"])


@router.get("/livez")
@router.get("/v2/health/live", operation_id="livez_kserve")
async def livez(request: Request) -> HealthResponse:
    """Say that the process answers; it says nothing of the models."""
    return HealthResponse(
        request_id=request_id_of(request), bundle_id=bundle_id_for(request), status="alive"
    )


@router.get("/readyz", responses=problems(503))
@router.get("/v2/health/ready", operation_id="readyz_kserve", responses=problems(503))
async def readyz(request: Request, service: ServiceDep) -> HealthResponse:
    """Say whether requests are answered now.

    Golden vectors held at the start, the catalogue is the bundle's; inference answers, databases
    can be written, the disk has room.
    """
    await service.check_ready(told=caller_of(request) is not None)
    return HealthResponse(
        request_id=request_id_of(request), bundle_id=bundle_id_for(request), status="ready"
    )


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: ServiceDep) -> Response:
    """Show counters and durations in Prometheus' text format; it waits for no check."""
    return Response(service.metrics.expose(), media_type=CONTENT_TYPE_LATEST)
