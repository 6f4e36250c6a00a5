"""Bytes that nobody thought of: connections fed with requests, whole and broken, cut anywhere.

FUZZ_EXAMPLES asks for more than the suite's few.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import h11
import pytest
import uvicorn
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from service.connections import BoundedConnection
from service.shedding import TURNSTILE, Turnstile
from service.unread import UnreadBodies
from tests.fuzzing import EXAMPLES, IS_SUITE

FUZZED = settings(max_examples=10 * EXAMPLES, deadline=None, derandomize=IS_SUITE)
# What must never be heard: it is sent inside of bodies, and behind them, only.
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"
NEXT = b"POST /next HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nab"
TURNS = 20


@dataclass(frozen=True)
class Heard:
    """A request as the app sees it."""

    target: bytes
    body: bytes
    is_hidden: bool


@dataclass
class Site:
    """An app that answers with its request's target, and what it has heard."""

    turnstile: Turnstile
    heard: list[Heard] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        else:
            return
        is_hidden = any(name == b"x-hidden" for name, _ in scope["headers"])
        self.heard.append(Heard(scope["raw_path"], body, is_hidden))
        headers = [(b"content-length", b"%d" % len(scope["raw_path"]))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": scope["raw_path"]})


class Wire(asyncio.Transport):
    """A connection's other end, which keeps what is written until somebody ends it."""

    def __init__(self, connection: BoundedConnection) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written = b""
        self._connection = connection
        self._is_closing = False

    def write(self, data: Any) -> None:
        if not self._is_closing:
            self.written += data

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            asyncio.get_running_loop().call_soon(self._connection.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        return self._is_closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def settle() -> None:
    """Let everything happen that waits for nothing from outside."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def talk(site: Site, pieces: list[bytes]) -> tuple[bytes, bool]:
    """Return what a new connection answers to the pieces, and whether it has ended by itself."""
    config = uvicorn.Config(cast(Any, UnreadBodies(site)), access_log=False, log_config=None)
    state = ServerState()
    connection = BoundedConnection(config, state, {TURNSTILE: site.turnstile})
    wire = Wire(connection)
    connection.connection_made(wire)
    for piece in pieces:
        # As a transport does: what comes after the end is not handed on.
        if not wire.is_closing():
            connection.data_received(piece)
        await asyncio.sleep(0)
    await settle()
    is_ended = wire.is_closing()
    wire.close()
    await settle()
    assert not state.tasks
    return wire.written, is_ended


def ask(site: Site, pieces: list[bytes]) -> tuple[bytes, bool]:
    """Have two connections one after the other; return what the first says of the pieces."""

    async def both() -> tuple[bytes, bool]:
        failures: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, said: failures.append(said))
        answer = await talk(site, pieces)
        heard = list(site.heard)
        following, is_ended = await talk(site, [NEXT])
        assert following.endswith(b"\r\n\r\n/next")
        assert not is_ended
        assert not failures
        site.heard = heard
        return answer

    return asyncio.run(both())


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Return the data in pieces that end at the places, counted around its length."""
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def read_answers(data: bytes) -> list[tuple[int, bytes]]:
    """Return statuses and bodies, as another library's strict parser reads them to the end."""
    client = h11.Connection(h11.CLIENT)
    client.receive_data(data)
    answers: list[tuple[int, bytes]] = []
    while data:
        client.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
        client.send(h11.EndOfMessage())
        event = client.next_event()
        assert isinstance(event, h11.Response)
        body = b""
        while isinstance(part := client.next_event(), h11.Data):
            body += bytes(part.data)
        assert isinstance(part, h11.EndOfMessage)
        answers.append((event.status_code, body))
        if not client.trailing_data[0]:
            break
        client.start_next_cycle()
    return answers


@dataclass(frozen=True)
class Sent:
    """A request as it is sent."""

    method: bytes
    body: bytes
    framing: str
    trailers: bytes
    lines: bytes

    @property
    def ends(self) -> bool:
        return bool(self.lines)

    def data(self, target: bytes) -> bytes:
        head = self.method + b" " + target + b" HTTP/1.1\r\nHost: localhost\r\n" + self.lines
        if self.framing == "length":
            return head + b"Content-Length: %d\r\n\r\n" % len(self.body) + self.body
        if self.framing == "none":
            return head + b"\r\n"
        half = len(self.body) // 2
        chunks = [part for part in (self.body[:half], self.body[half:]) if part]
        framed = b"".join(b"%x;a=b\r\n%b\r\n" % (len(part), part) for part in chunks)
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n" + self.trailers

    def heard(self, target: bytes) -> Heard:
        """Return what the app must see; behind a head with `Upgrade` no body is read."""
        is_without = self.framing == "none" or b"Upgrade" in self.lines
        return Heard(target, b"" if is_without else self.body, is_hidden=False)


BODY = st.binary(max_size=40) | st.just(HIDDEN) | st.just(b"x" * 70_000 + HIDDEN)
TRAILERS = [
    b"\r\n",
    b"X-Hidden: a\r\n\r\n",
    b"X-Hidden: a\r\nX: y\r\n\r\n",
    b"X-Hidden:\r\n" * 500 + b"\r\n",
]
SENT = st.builds(
    Sent,
    method=st.sampled_from([b"GET", b"POST", b"DELETE"]),
    body=BODY,
    framing=st.sampled_from(["none", "length", "chunked"]),
    trailers=st.sampled_from(TRAILERS),
    lines=st.just(b"")
    | st.sampled_from([b"Connection: close\r\n", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"]),
)
PLACES = st.lists(st.integers(0, 200_000), max_size=8)


@pytest.fixture(scope="module")
def turnstile(make_app: Callable[..., FastAPI]) -> Turnstile:
    """Has one place: a request that kept it would leave none for the next connection."""
    found: Turnstile = make_app(max_concurrency=1, max_queue=0).state.turnstile
    return found


@pytest.fixture(autouse=True)
def nothing_fails(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Uvicorn logs what the app raises, and answers."""
    caplog.set_level(logging.ERROR)
    yield
    assert not caplog.get_records("call")


@given(requests=st.lists(SENT, min_size=1, max_size=4), places=PLACES, more=st.booleans())
@FUZZED
def test_what_was_sent_is_answered_in_turn_and_nothing_else(
    turnstile: Turnstile, requests: list[Sent], places: list[int], more: bool
) -> None:
    targets = [b"/%d" % number for number in range(len(requests))]
    last = next((n for n, each in enumerate(requests) if each.ends), len(requests) - 1)
    data = b"".join(each.data(target) for each, target in zip(requests, targets, strict=True))
    site = Site(turnstile)
    answer, is_ended = ask(site, cut(data + HIDDEN * (more and requests[last].ends), places))
    expected = list(zip(requests, targets, strict=True))[: last + 1]
    assert site.heard == [each.heard(target) for each, target in expected]
    assert read_answers(answer) == [(200, target) for _, target in expected]
    assert is_ended == requests[last].ends


def spoil(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """Return the data with, at each place, so many bytes replaced by others."""
    for place, length, new in changes:
        start = place % (len(data) + 1)
        data = data[:start] + new + data[start + length :]
    return data


TOKENS = [
    b"\r\n",
    b"\n",
    b"\0",
    b":",
    b" ",
    b"Host: a\r\n",
    b"Upgrade: x\r\n",
    b"0\r\n\r\n",
    HIDDEN,
]
CHANGE = st.tuples(
    st.integers(0, 100_000), st.integers(0, 6), st.sampled_from(TOKENS) | st.binary(max_size=4)
)


@given(
    requests=st.lists(SENT, max_size=3),
    changes=st.lists(CHANGE, min_size=1, max_size=4),
    start=st.binary(max_size=20),
    places=PLACES,
)
@FUZZED
def test_broken_bytes_are_refused_at_most_once_and_harm_nobody(
    turnstile: Turnstile,
    requests: list[Sent],
    changes: list[tuple[int, int, bytes]],
    start: bytes,
    places: list[int],
) -> None:
    targets = [b"/%d" % number for number in range(len(requests))]
    data = b"".join(each.data(target) for each, target in zip(requests, targets, strict=True))
    data = spoil(start * (len(start) % 2) + data, changes)
    site = Site(turnstile)
    answer, is_ended = ask(site, cut(data, places))
    answers = read_answers(answer)
    answered = [(200, each.target) for each in site.heard]
    assert answers[: len(answered)] == answered
    refused = [status for status, _ in answers[len(answered) :]]
    assert refused in ([], [400])
    assert is_ended or not refused
    for each in site.heard:
        assert re.search(rb"[A-Z] +[^\r\n]*" + re.escape(each.target), data)
