"""Turns away what would find no place, when its head is read and before anything else is done.

Whoever is turned away is neither heard nor told anything, so that no key, route or body is looked
at and nothing is audited: a flood takes from the requests that are inside as little as may be. The
answer is that of any other error, made once for each of its texts but for the request's id.
"""

import time
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from bundle.errors import Overloaded
from service.access.routes import RouteTable
from service.errors import PROBLEMS
from service.middleware import RAW_HEADERS, choose_request_id, note_request
from service.problems import render_problem
from service.state import Service
from service.tickets import Lane, lane_of

# Where the lifespan's state, and so each connection, has the app's turnstile.
TURNSTILE = "turnstile"
STATUS = PROBLEMS[Overloaded].status
BAD_REQUEST = "bad_request"
# In the place of a request's id while the answer is made.
ID = "{request_id}"


@dataclass(frozen=True)
class Refusal:
    """A whole answer but for its status line and `Date`: lines of headers, and the body."""

    status: HTTPStatus
    headers: bytes
    body: bytes


class Turnstile:
    """Stands before the app, one for all connections."""

    def __init__(self, service: Service, table: RouteTable) -> None:
        self._service = service
        # Metrics and the log name the route; one with an id in its path takes no upload.
        self._routes = {each.path: each.route for each in table.declared if each.method == "POST"}
        self._made: dict[str, tuple[bytes, list[bytes]]] = {}
        # Let in and not answered: a burst is here before the first of it is admitted.
        self._inside: Counter[Lane] = Counter()

    def meet(self, app: ASGIApp, scope: Scope) -> ASGIApp | Refusal:
        """Return the app, where the request then has a place, or the answer if none is free."""
        if scope["method"] != "POST":
            return app
        began = time.perf_counter()
        lane = lane_of(Headers(scope=scope).get("priority"))
        try:
            self._service.scheduler.check_room(lane, self._inside)
        except Overloaded as error:
            return self._refuse(scope, error, began)
        self._inside[lane] += 1

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            is_inside = True

            def leave() -> None:
                nonlocal is_inside
                self._inside[lane] -= is_inside
                is_inside = False

            async def send_leaving(message: Message) -> None:
                # Who is answered has no place any more, however long its body may still come.
                leave()
                await send(message)

            try:
                await app(scope, receive, send_leaving)
            finally:
                leave()

        return counted

    def reject(self, detail: str) -> Refusal:
        """Return the answer to bytes that are no request; the log has its id."""
        request_id = choose_request_id(None)
        self._service.log.info("malformed", request_id=request_id, detail=detail)
        return self._refusal(HTTPStatus.BAD_REQUEST, BAD_REQUEST, detail, request_id)

    def _refuse(self, scope: Scope, error: Overloaded, began: float) -> Refusal:
        request_id = choose_request_id(Headers(scope=scope).get("x-request-id"))
        scope["route"] = self._routes.get(scope["path"])
        with bound_contextvars(request_id=request_id):
            note_request(self._service, scope, STATUS, time.perf_counter() - began)
        return self._refusal(STATUS, error.code, str(error), request_id)

    def _refusal(self, status: HTTPStatus, code: str, detail: str, request_id: str) -> Refusal:
        self._service.metrics.problems.labels(code=code).inc()
        headers, body = self._texts(status, code, detail)
        content = request_id.encode().join(body)
        length = b"content-length: %d\r\n" % len(content)
        named = b"x-request-id: %s\r\n" % request_id.encode()
        return Refusal(status, headers + named + length, content)

    def _texts(self, status: HTTPStatus, code: str, detail: str) -> tuple[bytes, list[bytes]]:
        """Return lines of headers that are always the same, and the body around the id."""
        made = self._made.get(detail)
        if made is None:
            answer = render_problem(
                self._service, ID, status, code=code, detail=detail, bundle_id=None
            )
            own = [pair for pair in answer.raw_headers if pair[0] != b"content-length"]
            pairs = [*own, *RAW_HEADERS, (b"connection", b"close")]
            lines = b"".join(b"%s: %s\r\n" % pair for pair in pairs)
            made = lines, bytes(answer.body).split(ID.encode())
            self._made[detail] = made
        return made
