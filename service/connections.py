"""How long a connection may keep the service waiting, what it may send, and how it ends.

Uvicorn waits without limit for a request's head, for a body that nobody reads and for a caller that
does not read its answer: each would hold a file handle for as long as a stranger likes. Nor does
its parser in C, which halves what it costs to turn a request away, limit how long a head may be,
or the trailers of a body in chunks. Uvicorn adds those to the headers of a request that is judged
by what its head says, and parses what comes behind a head that asks for another protocol.
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
# A head that has not ended after this many bytes is refused, as are as many that are neither a
# head's nor a body's: trailers. What comes is parsed in parts of half of it.
HEAD_BYTES = 32_768
TOO_LONG = f"expected a head, and trailers, of less than {HEAD_BYTES} bytes each"
# Requests of one connection that wait for those before them.
MAX_PIPELINED = 16
TOO_MANY = f"expected at most {MAX_PIPELINED} requests to wait for one answer"
MALFORMED = "expected a request of HTTP/1.1 with one Host header and a body as its head says"


class BoundedConnection(HttpToolsProtocol):
    """One connection; `config.http` of the servers in `service/server.py`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        # Waits for the rest of a body that nobody reads.
        self._rest: asyncio.TimerHandle | None = None
        self._is_last = False
        # Nothing that still comes is parsed.
        self._is_over = False
        # That came since a head or a body ended, or a piece of a body came.
        self._unended_bytes = 0
        self._turnstile: Turnstile = self.app_state[TURNSTILE]

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # So that it is told whenever something is unread, and when nothing is any more.
        transport.set_write_buffer_limits(0)
        self._await_head(HEAD_WITHIN_S)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head, self._unread, self._rest):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), HEAD_BYTES // 2):
            if self._is_over or self.transport.is_closing():
                break
            self._parse(data[start : start + HEAD_BYTES // 2])
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

    def _parse(self, part: bytes) -> None:
        super().data_received(part)
        self._unended_bytes += len(part)
        if self._unended_bytes >= HEAD_BYTES and not self.transport.is_closing():
            self._refuse(TOO_LONG)

    def on_headers_complete(self) -> None:
        self._unended_bytes = 0
        hosts = [name for name, _ in self.headers].count(b"host")
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            # The parser gives up, and uvicorn sends a 400 (RFC 9112, 3.2).
            raise ValueError(MALFORMED)
        if len(self.pipeline) >= MAX_PIPELINED:
            # Reading is paused by then, but all that came before the pause would become requests.
            raise ValueError(TOO_MANY)
        super().on_headers_complete()
        # Trailers are added to this list, which nobody reads.
        self.headers = []

    def on_body(self, body: bytes) -> None:
        self._unended_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unended_bytes = 0
        super().on_message_complete()
        if self._rest is not None:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Be told that what came cannot be parsed."""
        self._refuse(MALFORMED)

    def _refuse(self, detail: str) -> None:
        """End the connection over what cannot be parsed.

        Requests that came whole before it are answered first: the refusal would be read as the
        answer to one of them, or, where a broken request's own answer has begun, as a part of it.
        """
        cycle = self.cycle
        is_whole = cycle is not None and not cycle.more_body
        if self.pipeline or (is_whole and not cycle.response_complete):
            self._pass_over_the_rest()
            return
        if cycle is None or is_whole or not cycle.response_started:
            self._send(self._turnstile.reject(detail))
        self.transport.close()

    def _should_upgrade(self) -> bool:
        return False

    def _unsupported_upgrade_warning(self) -> None:
        # Behind a head that asks for another protocol the parser takes a body for a request.
        self._pass_over_the_rest()

    def _pass_over_the_rest(self) -> None:
        self._is_over = True
        self._end_after_answer()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._rest is not None or self.transport.is_closing():
            # The caller was told that nothing more is answered here: nothing more is done.
            return
        if self._is_over and cycle.more_body:
            # Its body is broken, and its turn has come.
            self._refuse(MALFORMED)
            return
        # Uvicorn and Starlette have each their own types for what ASGI defines.
        met = self._turnstile.meet(app, cast(Scope, cycle.scope))
        if isinstance(met, Refusal):
            self._turn_away(cycle, met)
        else:
            super()._start_asgi_task(cycle, cast(Any, met))

    def _turn_away(self, cycle: RequestResponseCycle, refusal: Refusal) -> None:
        """Answer before the body is read, and end the connection once nothing more of it comes."""
        # Uvicorn then drops what comes of the body.
        cycle.response_started = cycle.response_complete = True
        self._send(refusal)
        if cycle.waiting_for_100_continue:
            self.transport.close()
        else:
            self._rest = self.loop.call_later(UNREAD_LINGER_S, self.transport.close)

    def _send(self, refusal: Refusal) -> None:
        named = [b"%s: %s\r\n" % pair for pair in self.server_state.default_headers]
        lines = [STATUS_LINE[refusal.status], *named, refusal.headers, b"\r\n", refusal.body]
        self.transport.write(b"".join(lines))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(READ_WITHIN_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

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

    def _end_after_answer(self) -> None:
        # Uvicorn then says so in the answer.
        self.cycle.keep_alive = False
