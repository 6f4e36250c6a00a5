"""Traces, where a site has a collector for them: a span a request, and within it one a stage.

A span holds the route, the status, the request's id and the bundle's, and of an exception its type:
nothing that was sent. Of the caller's trace it takes the ids alone: `tracestate` and `baggage` are
free words. Without `SLIMP_OTLP_ENDPOINT` the library's own no-operation tracer is all there is.
"""

from http import HTTPStatus

from opentelemetry import trace
from opentelemetry.propagate import extract
from opentelemetry.trace import SpanKind, StatusCode
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bundle.errors import InvalidSettings
from service.middleware import method_of
from service.settings import Settings
from service.stages import TRACER, span_of
from service.state import Service, route_of

PARENT = "traceparent"


def start_tracing(settings: Settings) -> None:
    """Send this process's spans to the settings' collector, if they name one.

    Raises:
        InvalidSettings: they do, and the extra `otel` is not installed.
    """
    if settings.otlp_endpoint is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError:
        raise InvalidSettings(
            "SLIMP_OTLP_ENDPOINT: traces need the extra otel: install slimp[otel], or unset it"
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": TRACER}))
    exporter = OTLPSpanExporter(endpoint=settings.otlp_endpoint)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


class Tracing:
    """Pure ASGI middleware: one span a request, continuing its caller's trace."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_traced():
            await self.app(scope, receive, send)
            return
        parent = extract({PARENT: Headers(scope=scope).get(PARENT, "")})
        method = method_of(scope)
        with span_of(method, context=parent, kind=SpanKind.SERVER) as span:

            async def send_marked(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= HTTPStatus.INTERNAL_SERVER_ERROR:
                        span.set_status(StatusCode.ERROR)
                await send(message)

            try:
                await self.app(scope, receive, send_marked)
            finally:
                route = route_of(scope)
                span.update_name(f"{method} {route}")
                span.set_attribute("http.route", route)
                span.set_attribute("slimp.request_id", scope["state"]["request_id"])
                span.set_attribute("slimp.bundle_id", self.service.bundle_id or "")


def _is_traced() -> bool:
    """Return whether anything is done with spans: a proxy stands where nobody set a provider."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
