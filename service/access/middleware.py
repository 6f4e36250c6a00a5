"""Stands before every route: nobody is answered, and no body is read, before this has agreed."""

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from bundle.errors import LesionError
from service.access.gate import Gate
from service.access.routes import OPEN, UNMATCHED, RouteTable
from service.errors import (
    AccessRefused,
    CredentialsRefused,
    IdentityUnavailable,
    InsufficientScope,
    LedgerError,
    Unauthenticated,
)
from service.problems import answer_error


class AccessControl:
    """Pure ASGI middleware; denies by default."""

    def __init__(self, app: ASGIApp, gate: Gate, table: RouteTable) -> None:
        self.app = app
        self.gate = gate
        self.table = table

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        try:
            await self._judge(request)
        except LesionError as error:
            await answer_error(request, error)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    async def _judge(self, request: Request) -> None:
        request.state.caller = None
        try:
            await self._admit(request)
        except (AccessRefused, IdentityUnavailable):
            if request.state.caller is None:
                self.gate.count_refused(request)
            raise

    async def _admit(self, request: Request) -> None:
        declared = self.table.find(request.scope)
        needed = UNMATCHED if declared is None else declared.needed
        if declared is not None:
            # Metrics and the log name the route of a refused request too.
            request.scope["route"] = declared.route
        try:
            request.state.caller = caller = await self.gate.identify(request)
        except (CredentialsRefused, IdentityUnavailable, LedgerError):
            # A probe with an old key, or one that nobody can look up now, still learns whether the
            # process lives, and nothing more.
            if needed is not OPEN:
                raise
        if needed is OPEN:
            return
        if caller is None:
            raise Unauthenticated(
                "expected a key: send it as Authorization: Bearer KEY or as X-API-Key"
            )
        self.gate.count(caller)
        if caller.scope is None or not caller.scope.covers(needed):
            raise InsufficientScope(needed)
