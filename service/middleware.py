"""Around every request: its id, security headers, one log line, metrics, and the last resort.

The last resort is the only place that catches what nobody foresaw: it logs the exception under the
request id and answers with a constant body.
"""

import re
import time
import uuid
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from service.errors import TooManyHeaders
from service.logging import describe_exception
from service.problems import early_problem, internal_error
from service.state import Service, route_of

# A UUID, with or without hyphens, as proxies and tracers make them. A word that a caller may choose
# would carry a name into the log and the audit.
REQUEST_ID = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# The status that proxies log for a caller that went away.
CLIENT_CLOSED = 499
# Browsers and proxies send about thirty.
MAX_HEADERS = 200
METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PATCH", "DELETE"})
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}
RAW_HEADERS = [(name.lower().encode(), text.encode()) for name, text in SECURITY_HEADERS.items()]


class RequestContext:
    """Pure ASGI middleware; the outermost of the app's own layers but for `UnreadBodies`."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = choose_request_id(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        statuses: list[int] = []

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
                given = message["headers"]
                names = {name for name, _ in given}
                message["headers"] = [
                    *given,
                    (b"x-request-id", request_id.encode()),
                    *(header for header in RAW_HEADERS if header[0] not in names),
                ]
            await send(message)

        with bound_contextvars(request_id=request_id):
            await self._guard(scope, receive, send_marked, statuses, request_id)
            status = statuses[0] if statuses else int(HTTPStatus.INTERNAL_SERVER_ERROR)
            note_request(self.service, scope, status, time.perf_counter() - started)

    async def _guard(
        self, scope: Scope, receive: Receive, send: Send, statuses: list[int], request_id: str
    ) -> None:
        try:
            if len(scope["headers"]) > MAX_HEADERS:
                error = TooManyHeaders(f"expected at most {MAX_HEADERS} headers a request")
                await early_problem(self.service, scope, error)(scope, receive, send)
                return
            await self.app(scope, receive, send)
        except ClientDisconnect:
            statuses.append(CLIENT_CLOSED)
        except Exception as error:
            self.service.log.error("unforeseen", **describe_exception(error))
            if not statuses:
                await internal_error(self.service, request_id)(scope, receive, send)


def note_request(service: Service, scope: Scope, status: int, seconds: float) -> None:
    """Count an answered request and write its line into the log."""
    route = route_of(scope)
    caller = scope["state"].get("caller")
    metrics = service.metrics
    metrics.requests.labels(route=route, method=method_of(scope), status=status).inc()
    metrics.request_seconds.labels(route=route).observe(seconds)
    service.failed += status == HTTPStatus.INTERNAL_SERVER_ERROR
    service.log.info(
        "request",
        route=route,
        method=method_of(scope),
        status=status,
        seconds=round(seconds, 4),
        caller=None if caller is None else caller.name,
    )


def choose_request_id(sent: str | None) -> str:
    """Return the caller's id where it is a UUID, else a new one."""
    if sent is not None and REQUEST_ID.fullmatch(sent):
        return sent
    return uuid.uuid4().hex


def method_of(scope: Scope) -> str:
    """Return the method; one that no route has becomes OTHER, so that labels stay few."""
    method = str(scope["method"])
    return method if method in METHODS else "OTHER"
