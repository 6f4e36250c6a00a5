"""How long a connection may keep the service waiting, and how it ends when the service stops.

Uvicorn waits without limit for a request's head, for a body that nobody reads and for a caller that
does not read its answer: each would hold a file handle for as long as a stranger likes. Nor does
its parser in C, which halves what it costs to turn a request away, limit how long a head may be.
"""

import asyncio
from typing import Any, cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from service.shedding import TURNSTILE, Refusal, Turnstile
from service.unread import UNREAD_LINGER_S

# A head arrives within this time, counted from its first byte or from the connection's opening.
HEAD_WITHIN_S = 15.0
# An answer is read within this time.
READ_WITHIN_S = 60.0
# Told to stop, an idle connection is kept open this long for a request that is on its way.
LINGER_S = 1.0
# A head that has not ended after this many bytes is refused; it is parsed in parts of half of it.
HEAD_BYTES = 32_768


class BoundedConnection(HttpToolsProtocol):
    """One connection; `config.http` of the servers in `service/server.py`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        # Waits for the rest of a body that nobody reads.
        self._rest: asyncio.TimerHandle | None = None
        self._is_last = False
        # Of the head that is awaited; None from its end to that of its body.
        self._head_bytes: int | None = 0

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head(HEAD_WITHIN_S)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head, self._unread, self._rest):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        while data and not self.transport.is_closing():
            data = self._parse(data)
        if self.transport.is_closing():
            return
        if self._is_idle:
            if self._head is None:
                self._await_head(HEAD_WITHIN_S)
            return
        if self._head is not None:
            self._head.cancel()
            self._head = None
        if self._is_last:
            self._end_after_answer()

    def _parse(self, data: bytes) -> bytes:
        """Parse what comes next, a part of it while a head is awaited; return the rest."""
        if self._head_bytes is None:
            super().data_received(data)
            return b""
        part = data[: HEAD_BYTES // 2]
        super().data_received(part)
        if self._head_bytes is not None:
            self._head_bytes += len(part)
            if self._head_bytes >= HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response(f"expected a head of less than {HEAD_BYTES} bytes")
        return data[len(part) :]

    def on_headers_complete(self) -> None:
        self._head_bytes = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        super().on_message_complete()
        if self._rest is not None:
            self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        turnstile: Turnstile = self.app_state[TURNSTILE]
        # Uvicorn and Starlette have each their own types for what ASGI defines.
        met = turnstile.meet(app, cast(Scope, cycle.scope))
        if isinstance(met, Refusal):
            self._turn_away(cycle, met)
        else:
            super()._start_asgi_task(cycle, cast(Any, met))

    def _turn_away(self, cycle: RequestResponseCycle, refusal: Refusal) -> None:
        """Answer before the body is read, and end the connection once nothing more of it comes."""
        # Uvicorn then drops what comes of the body.
        cycle.response_started = cycle.response_complete = True
        named = [b"%s: %s\r\n" % pair for pair in self.server_state.default_headers]
        lines = [STATUS_LINE[refusal.status], *named, refusal.headers, b"\r\n", refusal.body]
        self.transport.write(b"".join(lines))
        if cycle.waiting_for_100_continue:
            self.transport.close()
        else:
            self._rest = self.loop.call_later(UNREAD_LINGER_S, self.transport.close)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_waiting()

    def on_response_complete(self) -> None:
        self._stop_waiting()
        if self.transport.get_write_buffer_size():
            self._await_reader()
        super().on_response_complete()

    def shutdown(self) -> None:
        """Be told that the service stops: the request that is inside, or on its way, is the last.

        Uvicorn would close an idle connection at once, and lose a request that its caller has just
        sent.
        """
        self._is_last = True
        if self._is_idle:
            self._await_head(LINGER_S)
        else:
            self._end_after_answer()

    def _await_head(self, seconds: float) -> None:
        if self._head is not None:
            self._head.cancel()
        self._head = self.loop.call_later(seconds, self._let_go)

    def _let_go(self) -> None:
        self._head = None
        if self._is_idle:
            self.transport.close()

    def _await_reader(self) -> None:
        self._unread = self.loop.call_later(READ_WITHIN_S, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _end_after_answer(self) -> None:
        # Uvicorn then says so in the answer.
        self.cycle.keep_alive = False
