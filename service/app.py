"""The FastAPI app. Nothing happens at import; models load after start, while /livez answers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import cast

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from bundle.manifest import RESEARCH_USE
from service.access.document import document_access
from service.access.middleware import AccessControl
from service.access.mode import OFF_BANNER, Mode
from service.access.routes import RouteTable
from service.auditing import AuditTrail
from service.keeping import keep_vectors
from service.logging import make_log
from service.middleware import RequestContext
from service.problems import install_handlers
from service.routes import about, catalogue, health, lesion, patient
from service.routes.page import mount_page
from service.runtime import Runtime
from service.schemas import ProblemResponse
from service.settings import Settings, read_settings
from service.shedding import TURNSTILE, Turnstile
from service.state import Service
from service.tracing import Tracing, start_tracing
from service.unread import UnreadBodies

DESCRIPTION = f"""Skin lesion images and metadata: classification, similar lesions, a patient's
lesions in context.

**{RESEARCH_USE}**

Errors are RFC 9457 problem details with a stable `code`."""


def create_app(settings: Settings | None = None, runtime: Runtime | None = None) -> FastAPI:
    """Return the service.

    Args:
        settings: None reads the environment.
        runtime: answers at once instead of what the settings name; for tests.

    Raises:
        InvalidSettings: a setting is unknown or out of bounds, or other machines would reach a
            service that knows no key.
        LedgerError: the site's keys cannot be read.
    """
    settings = read_settings() if settings is None else settings
    service = Service(settings, runtime, make_log(settings.log_level))
    app = FastAPI(
        title="SLIMP",
        version=_version(),
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # FastAPI's own spans hold the path, and so the id of a patient: ours hold the route.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        lifespan=_lifespan,
    )
    app.state.service = service
    install_handlers(app)
    for routes in (lesion, patient, catalogue, about, health):
        app.include_router(routes.router)
    mount_page(app)
    table = RouteTable(app)
    app.state.turnstile = Turnstile(service, table)
    app.add_middleware(AccessControl, gate=service.gate, table=table)
    app.add_middleware(AuditTrail, service=service)
    app.add_middleware(Tracing, service=service)
    app.add_middleware(RequestContext, service=service)
    app.add_middleware(UnreadBodies)
    _complete_document(app, table)
    if service.gate.mode is Mode.OFF:
        service.log.warning("access_control_off", detail=OFF_BANNER)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[dict[str, Turnstile]]:
    service = cast(Service, app.state.service)
    start_tracing(service.settings)
    if service.settings.workers > 1:
        # A worker that cannot load does not start: a swap keeps the one that it was to follow.
        if not await service.load():
            raise RuntimeError(service.failure)
        loading = None
    else:
        loading = asyncio.create_task(service.keep_trying())
    watching = [asyncio.create_task(work) for work in (service.watch(), keep_vectors(service))]
    try:
        yield {TURNSTILE: app.state.turnstile}
    finally:
        for task in watching:
            task.cancel()
        if loading is not None:
            service.stopping.set()
            await loading
        service.close()


def _complete_document(app: FastAPI, table: RouteTable) -> None:
    """Add to the OpenAPI document what no route says by itself: the error answer, and access."""
    make = app.openapi

    def openapi() -> dict[str, object]:
        if app.openapi_schema is None:
            document = make()
            _, defined = models_json_schema(
                [(ProblemResponse, "serialization")], ref_template="#/components/schemas/{model}"
            )
            document["components"]["schemas"].update(defined["$defs"])
            document_access(document, table)
        return make()

    app.openapi = openapi  # type: ignore[method-assign]


def _version() -> str:
    try:
        return version("slimp")
    except PackageNotFoundError:
        return "0.0.0"
