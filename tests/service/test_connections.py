"""Callers that send, read or stay in odd ways: each is answered or let go."""

import http.client
import json
import logging
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from httpx2 import Client
from starlette.testclient import TestClient

from service import connections
from service.logging import JsonHandler, log_libraries
from service.middleware import RAW_HEADERS
from service.server import DrainingServer
from service.settings import Settings
from tests.service.asking import PROBLEM_KEYS, assert_error

HEAD = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
LIST = b"GET /lesions HTTP/1.1\r\nHost: localhost\r\n\r\n"
UNREAD_BODY = b"Content-Length: 9\r\n\r\nx"
CHUNKED = (
    b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
LET_GO_WITHIN_S = 20


@contextmanager
def serving(
    app: FastAPI, *, send_buffer_bytes: int | None = None
) -> Iterator[tuple[DrainingServer, int]]:
    """Yield a server on a thread, and its port."""
    opened = DrainingServer(app, Settings())
    door = socket.create_server(("127.0.0.1", 0))
    if send_buffer_bytes is not None:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    port = door.getsockname()[1]
    thread = threading.Thread(target=opened.run, args=([door],))
    thread.start()
    while not opened.started:
        time.sleep(0.01)
    try:
        yield opened, port
    finally:
        opened.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


@pytest.fixture
def server(make_app: Callable[..., FastAPI]) -> Iterator[tuple[DrainingServer, int]]:
    """A server on a thread, and its port."""
    with serving(make_app()) as opened:
        yield opened


def connect(port: int) -> socket.socket:
    opened = socket.create_connection(("127.0.0.1", port))
    opened.settimeout(LET_GO_WITHIN_S)
    return opened


def read_all(opened: socket.socket) -> bytes:
    """Return what comes until the other side ends the connection."""
    received = b""
    try:
        while part := opened.recv(65_536):
            received += part
    except ConnectionResetError:
        pass
    return received


def send_on(opened: socket.socket, data: bytes, pause_s: float) -> OSError:
    """Send the same again and again until that fails; return how."""
    while True:
        try:
            opened.sendall(data)
        except OSError as error:
            return error
        time.sleep(pause_s)


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /li", HEAD + b"X: y\r\n", HEAD + b"\r\nGET /li", HEAD + UNREAD_BODY],
    ids=["nothing", "half a line", "half a head", "half a second head", "half an unread body"],
)
def test_a_caller_that_does_not_go_on_is_let_go(
    server: tuple[DrainingServer, int], sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_WITHIN_S", 0.3)
    with connect(server[1]) as opened:
        opened.sendall(sent)
        # TimeoutError would end the test: the connection would still be open.
        answer = read_all(opened)
    assert (b"200 OK" in answer) == (HEAD + b"\r\n" in sent or UNREAD_BODY in sent)


def test_bytes_that_trickle_do_not_prolong_the_time_for_a_head(
    server: tuple[DrainingServer, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_WITHIN_S", 0.5)
    with connect(server[1]) as opened:
        opened.sendall(HEAD)
        trickle = threading.Thread(target=send_on, args=(opened, b"X: y\r\n", 0.05))
        trickle.start()
        assert read_all(opened) == b""
        trickle.join()


def test_a_caller_that_does_not_read_its_answers_is_let_go(
    make_app: Callable[..., FastAPI], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "READ_WITHIN_S", 0.3)
    with serving(make_app(), send_buffer_bytes=2048) as (_, port), socket.socket() as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        opened.connect(("127.0.0.1", port))
        opened.settimeout(LET_GO_WITHIN_S)
        # Were it not let go, sending would block and time out in the end.
        assert isinstance(send_on(opened, LIST, 0), ConnectionError)


@pytest.mark.parametrize("path", [b"/lesions", b"/openapi.json"])
def test_a_caller_that_reads_the_rest_in_time_keeps_its_connection(
    make_app: Callable[..., FastAPI], path: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is below what the transport tells of by itself, or above it."""
    monkeypatch.setattr(connections, "READ_WITHIN_S", 0.6)
    asked = b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with serving(make_app(), send_buffer_bytes=2048) as (_, port), socket.socket() as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        opened.connect(("127.0.0.1", port))
        opened.settimeout(LET_GO_WITHIN_S)
        for _ in range(3):
            opened.sendall(asked)
            time.sleep(0.3)
            reader = http.client.HTTPResponse(opened)
            reader.begin()
            assert json.loads(reader.read())
            time.sleep(0.4)


def test_a_keep_alive_caller_is_answered_however_often_it_asks(
    server: tuple[DrainingServer, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_WITHIN_S", 0.2)
    with Client(base_url=f"http://127.0.0.1:{server[1]}") as client:
        for _ in range(8):
            assert client.get("/livez").status_code == 200
            time.sleep(0.1)


def test_a_request_on_an_idle_connection_is_answered_when_the_service_stops(
    server: tuple[DrainingServer, int],
) -> None:
    opened, port = server
    with connect(port) as caller:
        caller.sendall(HEAD + b"\r\n")
        assert b"200 OK" in caller.recv(65_536)
        opened.should_exit = True
        while opened.servers[0].sockets:
            time.sleep(0.01)
        caller.sendall(HEAD + b"\r\n")
        answer = read_all(caller)
    assert b"200 OK" in answer
    assert b"connection: close" in answer.lower()


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answer)]


def assert_malformed(answer: bytes, *said: str) -> None:
    """Check that the last answer is a problem like any other, and ends the connection."""
    head, _, body = answer[answer.rindex(b"HTTP/1.1 400 Bad Request\r\n") :].partition(b"\r\n\r\n")
    headers = dict(line.split(b": ", 1) for line in head.splitlines()[1:])
    content = json.loads(body)
    assert content.keys() == PROBLEM_KEYS
    assert (content["status"], content["code"]) == (400, "bad_request")
    assert content["request_id"].encode() == headers[b"x-request-id"]
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"connection"] == b"close"
    assert dict(RAW_HEADERS).items() <= headers.items()
    for words in said:
        assert words in content["detail"]


@pytest.mark.parametrize(
    "sent",
    [
        b"BAD\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        HEAD + b"X : y\r\n\r\n",
        HEAD + b"Host: evil\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: evil\r\nHost: localhost\r\n\r\n",
        CHUNKED + b"FFFFFFFFFFFFFFFFF\r\n",
    ],
)
def test_what_is_no_request_is_refused_as_everything_is(
    server: tuple[DrainingServer, int], sent: bytes
) -> None:
    with connect(server[1]) as opened:
        opened.sendall(sent)
        answer = read_all(opened)
    assert statuses(answer) == [400]
    assert_malformed(answer, "one Host")


def test_a_request_of_http_1_0_is_judged_without_a_host(
    server: tuple[DrainingServer, int],
) -> None:
    with connect(server[1]) as opened:
        opened.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        # By access control: a service without keys answers to loopback names only.
        assert statuses(read_all(opened)) == [421]


def test_a_request_with_something_else_behind_it_is_answered_alone(
    server: tuple[DrainingServer, int],
) -> None:
    with connect(server[1]) as opened:
        opened.sendall(HEAD + b"\r\n" + HEAD + b"\r\nBAD\r\n\r\n" + HEAD + b"\r\n")
        answer = read_all(opened)
    assert statuses(answer) == [200, 200]
    assert answer.lower().count(b"connection: close") == 1


def test_a_broken_request_is_refused_when_those_before_it_are_answered(
    server: tuple[DrainingServer, int],
) -> None:
    with connect(server[1]) as opened:
        opened.sendall(LIST + CHUNKED + b"x\r\n" + HEAD + b"\r\n")
        answer = read_all(opened)
    assert statuses(answer) == [200, 400]
    assert_malformed(answer)


def test_a_service_that_is_asked_for_another_protocol_answers_once_and_ends(
    server: tuple[DrainingServer, int],
) -> None:
    """The parser takes what comes behind such a head for a request."""
    asked = HEAD + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n"
    posted = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n"
    with connect(server[1]) as opened:
        opened.sendall(asked + posted)
        opened.sendall(LIST)
        answer = read_all(opened)
    assert statuses(answer) == [200]
    assert b"connection: close" in answer.lower()
    assert b"lesion" not in answer


@pytest.mark.parametrize("count", [1, 2])
def test_what_comes_behind_a_body_is_not_a_header(
    server: tuple[DrainingServer, int], count: int
) -> None:
    said = uuid.uuid4().hex.encode()
    trailers = [b"X-Request-ID: " + said + b"\r\n", b"X: y\r\n"][:count]
    with connect(server[1]) as opened:
        opened.sendall(CHUNKED.replace(b"POST", b"GET") + b"0\r\n" + b"".join(trailers) + b"\r\n")
        answer = read_all(opened)
    assert statuses(answer) == [405]
    assert said not in answer


@pytest.mark.parametrize(
    "behind",
    [b"0\r\n" + b"X: y\r\n" * 20_000, b"0\r\nX: " + b"y" * 100_000, b"1;" + b"y" * 100_000],
    ids=["many trailers", "a long trailer", "a long extension"],
)
def test_what_is_neither_a_head_nor_a_body_is_limited(
    server: tuple[DrainingServer, int], behind: bytes
) -> None:
    with connect(server[1]) as opened:
        opened.sendall(CHUNKED + b"1\r\n-\r\n" + behind)
        assert_malformed(read_all(opened), "trailers, of less than 32768 bytes")


@pytest.mark.parametrize("count", [1, 100])
def test_a_long_head_is_refused(server: tuple[DrainingServer, int], count: int) -> None:
    with connect(server[1]) as opened:
        opened.sendall(HEAD + (b"X: " + b"y" * (40_000 // count) + b"\r\n") * count + b"\r\n")
        assert_malformed(read_all(opened), "a head, ")


def test_a_long_head_that_comes_in_small_parts_is_refused(
    server: tuple[DrainingServer, int],
) -> None:
    with connect(server[1]) as opened:
        opened.sendall(HEAD + b"\r\n" + HEAD)
        trickle = threading.Thread(target=send_on, args=(opened, b"X: " + b"y" * 994 + b"\r\n", 0))
        trickle.start()
        answer = read_all(opened)
        trickle.join()
    assert b"200 OK" in answer
    assert b"400 Bad Request" in answer


def test_requests_that_wait_for_one_answer_are_few(server: tuple[DrainingServer, int]) -> None:
    with connect(server[1]) as opened:
        opened.sendall((HEAD + b"\r\n") * 4000)
        answers = read_all(opened)
    assert 1 <= answers.count(b"HTTP/1.1 200 OK") <= connections.MAX_PIPELINED + 2


def test_what_stands_behind_a_request_that_was_turned_away_is_not_done(
    make_app: Callable[..., FastAPI],
) -> None:
    app = make_app()
    app.state.service.scheduler._capacity = 0
    done: list[str] = []
    turnstile = app.state.turnstile
    meet = turnstile.meet

    def meet_noting(app: Any, scope: Any) -> Any:
        done.append(scope["method"])
        return meet(app, scope)

    turnstile.meet = meet_noting
    body = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nabcd"
    with serving(app) as (_, port), connect(port) as opened:
        opened.sendall(body + b"DELETE /patients/p1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = read_all(opened)
    assert b"429" in answer.split(b"\r\n")[0]
    assert done == ["POST"]


def test_requests_that_are_sent_at_once_are_answered_in_turn(
    server: tuple[DrainingServer, int],
) -> None:
    body = b"a" * 100_000
    posted = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n" + body
    with connect(server[1]) as opened:
        opened.sendall(HEAD + b"\r\n" + HEAD + b"\r\n" + posted)
        answer = read_all(opened)
    assert answer.count(b"200 OK") == 2
    assert answer.index(b"404 Not Found") > answer.rindex(b"200 OK")


def test_very_many_headers_are_refused_before_anybody_reads_them(client: TestClient) -> None:
    sent = {f"X-{number}": "y" for number in range(300)}
    assert_error(client.get("/livez", headers=sent), 431, "too_many_headers", "at most 200")


def test_what_libraries_log_is_json_without_what_was_sent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    handler = JsonHandler(logging.WARNING)
    for name in ("python_multipart.multipart", "index.live"):
        record = logging.LogRecord(name, logging.WARNING, "", 1, "got %r", ("canary",), None)
        handler.emit(record)
    theirs, ours = map(json.loads, capsys.readouterr().out.splitlines())
    assert (theirs["library"], theirs["detail"]) == ("python_multipart.multipart", "got %r")
    assert ours["detail"] == "got 'canary'"
    try:
        raise ValueError("canary")
    except ValueError as error:
        failed = (ValueError, error, error.__traceback__)
    handler.emit(logging.LogRecord("uvicorn.error", 40, "", 1, "failed", None, failed))
    line = json.loads(capsys.readouterr().out)
    assert line["exception"] == "ValueError"
    assert "canary" not in json.dumps(line)


def test_libraries_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    log_libraries()
    log_libraries()
    assert [type(handler) for handler in root.handlers] == [JsonHandler]
