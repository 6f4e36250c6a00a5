"""Writes every request that asks the models or the catalogue into the audit, before its answer.

An answer that cannot be written down is not given: the caller gets 503, and asks again. Whoever is
turned away because too many ask was neither heard nor told anything: metrics and the log count
those, as a row each, synced to disk, would let a flood of them slow everybody. So it is with a
caller whom nobody can name, as the identity provider does not answer.
"""

import asyncio
from http import HTTPStatus

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import LedgerError
from service.ledger.audit import AuditLog, Event
from service.logging import describe_cause
from service.middleware import method_of
from service.problems import ledger_problem
from service.state import Service, route_of

REFUSED = frozenset({401, 403})
TURNED_AWAY, UNAVAILABLE = 429, 503
CHANGING = frozenset({"PATCH", "DELETE"})
# Files and descriptions that say nothing of anybody; refusals at their door are written down.
UNAUDITED = frozenset(
    {
        "/",
        "/page",
        "/docs",
        "/openapi.json",
        "/model",
        "/fields",
        "/metrics",
        "/livez",
        "/readyz",
        "/v2/health/live",
        "/v2/health/ready",
        "unmatched",
    }
)


def _may_change(scope: Scope) -> bool:
    """Return whether a request may change the catalogue, before its route is known."""
    method = method_of(scope)
    return method in CHANGING or (method == "POST" and scope["path"] == "/lesions")


class AuditTrail:
    """Pure ASGI middleware: one row a request, written when its status is known."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        audit = self.service.audit
        if scope["type"] != "http" or audit is None:
            await self.app(scope, receive, send)
            return
        refusal = await self._refuse_change(audit, scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        await self._follow(audit, scope, receive, send)

    async def _follow(self, audit: AuditLog, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request be answered, its row before its answer."""
        is_begun = is_replaced = False

        async def send_written(message: Message) -> None:
            nonlocal is_begun, is_replaced
            if is_replaced:
                return
            if message["type"] == "http.response.start":
                is_begun = True
                event = self._event(scope, message["status"])
                if event is not None:
                    try:
                        await asyncio.wrap_future(audit.submit(event))
                    except LedgerError as error:
                        is_replaced = True
                        answer = ledger_problem(self.service, scope, error)
                        await answer(scope, receive, send)
                        return
            await send(message)

        try:
            await self.app(scope, receive, send_written)
        except ClientDisconnect:
            raise
        except Exception:
            # What nobody foresaw is answered further out, with 500; it may have changed something.
            if not is_begun:
                await self._note_failure(audit, scope)
            raise

    async def _refuse_change(self, audit: AuditLog, scope: Scope) -> ASGIApp | None:
        """Return the answer to a change that could not be written down, so is not begun.

        A ledger that fails between this and the answer lets a change stand without its row.
        """
        if not _may_change(scope):
            return None
        try:
            await asyncio.to_thread(audit.check)
        except LedgerError as error:
            return ledger_problem(self.service, scope, error)
        return None

    async def _note_failure(self, audit: AuditLog, scope: Scope) -> None:
        event = self._event(scope, HTTPStatus.INTERNAL_SERVER_ERROR)
        if event is None:
            return
        try:
            await asyncio.wrap_future(audit.submit(event))
        except LedgerError as error:
            self.service.log.error("audit_row_lost", detail=str(error), **describe_cause(error))

    def _event(self, scope: Scope, status: int) -> Event | None:
        route, state = route_of(scope), scope["state"]
        caller = state.get("caller")
        if status == TURNED_AWAY or (caller is None and status == UNAVAILABLE):
            return None
        if status not in REFUSED and (route in UNAUDITED or route.startswith("/page")):
            return None
        return Event(
            request_id=state["request_id"],
            caller=None if caller is None else caller.name,
            action=f"{method_of(scope)} {route}",
            status=status,
            bundle_id=self.service.bundle_id,
            catalogue_revision=self.service.catalogue_revision,
            input_sha256=state.get("audit_input"),
            output=state.get("audit_output"),
        )
