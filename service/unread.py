"""Answers that come before their request's body has been read: refused, too large.

The connection ends with such an answer, as what comes next on it is the rest of a body. A client
that is still sending would see a reset connection instead of the answer, so that what it sends is
dropped for a moment after the answer is out. One that waits to be told to send (`Expect:
100-continue`) is never told.
"""

import asyncio

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

UNREAD_LINGER_S = 2.0


class UnreadBodies:
    """Pure ASGI middleware; outside of all that measures a request's time."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
            await self.app(scope, receive, send)
            return
        is_read = is_early = False

        async def receive_noting() -> Message:
            nonlocal is_read
            message = await receive()
            is_read = is_read or not message.get("more_body", False)
            return message

        async def send_noting(message: Message) -> None:
            nonlocal is_early
            if message["type"] == "http.response.start" and not is_read:
                is_early = True
                MutableHeaders(scope=message)["Connection"] = "close"
            if not is_early or message.get("more_body") or message["type"].endswith("start"):
                await send(message)
                return
            await send({**message, "more_body": True})
            if headers.get("expect", "").casefold() != "100-continue":
                await _drop(receive)
            await send({"type": "http.response.body", "body": b""})

        await self.app(scope, receive_noting, send_noting)


async def _drop(receive: Receive) -> None:
    """Read and forget until the body ends, the client goes away or the moment is over."""
    try:
        async with asyncio.timeout(UNREAD_LINGER_S):
            while (await receive()).get("more_body", False):
                pass
    except TimeoutError:
        pass
