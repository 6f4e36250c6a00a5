"""Turned away before the body is read: what httpx, curl and a plain socket then see."""

import asyncio
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from fastapi import FastAPI
from httpx2 import Client
from starlette.types import Receive, Scope, Send

from service.access.callers import Scope as AccessScope
from service.batching import BatchedEncoders, Batching
from service.ledger.database import open_ledger
from service.ledger.keys import ApiKeys
from service.runtime import Runtime
from service.server import DrainingServer
from service.settings import Settings
from service.shedding import Refusal, Turnstile
from tests.fakes import RED, draw_image
from tests.service.asking import assert_error
from tests.service.test_connections import connect, serving
from tests.service.test_scheduling import Blocked, wait_for

LARGE = b"x" * 6_000_000


@pytest.fixture
def full(make_app: Callable[..., FastAPI], make_runtime: Callable[..., Runtime]) -> Iterator[str]:
    """The address of a service that has room for one request and is at work on it."""
    encoders = Blocked()
    app = make_app(make_runtime(encoders=encoders), max_concurrency=1, max_queue=0)
    server = DrainingServer(app, Settings())
    door = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([door],))
    thread.start()
    address = f"http://127.0.0.1:{door.getsockname()[1]}"
    wait_for(lambda: server.started)
    with Client(base_url=address, timeout=60) as client, ThreadPoolExecutor(1) as callers:
        callers.submit(client.post, "/embed", files={"image": draw_image(RED)})
        wait_for(lambda: app.state.service.scheduler.admitted == 1)
        yield address
        encoders.may.set()
    server.should_exit = True
    thread.join(20)


def test_httpx_gets_the_answer_though_it_sends_a_large_body(full: str) -> None:
    with Client(base_url=full, timeout=60) as client:
        for _ in range(3):
            response = client.post("/embed", files={"image": LARGE})
            assert_error(response, 429, "overloaded")
            assert response.headers["connection"] == "close"
        assert client.get("/livez").status_code == 200


def test_who_is_turned_away_is_answered_as_everybody_is_and_counted(
    full: str,
) -> None:
    with Client(base_url=full, timeout=60) as client:
        request_id = "ab" * 16
        sent = {"X-Request-ID": request_id, "Priority": "u=7"}
        away = client.post("/embed", files={"image": b"x"}, headers=sent)
        other = client.post("/nowhere", files={"image": b"x"})
        refused = client.get("/nowhere", headers={"X-Request-ID": request_id})
        metrics = client.get("/metrics").text
    assert_error(away, 429, "overloaded")
    assert_error(other, 429, "overloaded")
    assert away.json()["request_id"] == away.headers["x-request-id"] == request_id
    assert away.headers["retry-after"] == "2"
    assert away.json().keys() == refused.json().keys()
    assert refused.headers.keys() - away.headers.keys() == set()
    assert 'slimp_problems_total{code="overloaded"} 2.0' in metrics
    assert 'route="/embed",status="429"} 1.0' in metrics


@pytest.mark.parametrize(("priority", "places"), [(b"u=1", 3), (b"u=6", 1)])
def test_of_a_burst_as_many_come_in_as_have_a_place(
    make_app: Callable[..., FastAPI], priority: bytes, places: int
) -> None:
    """Heads of several requests are read before the first of them is admitted."""
    turnstile: Turnstile = make_app(max_concurrency=2, max_queue=1).state.turnstile

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        """Answer nothing."""

    def arriving() -> Scope:
        headers = [(b"priority", priority)]
        return {"method": "POST", "path": "/embed", "headers": headers, "state": {}}

    for _ in range(2):
        inside = []
        while not isinstance(met := turnstile.meet(app, arriving()), Refusal):
            inside.append(met)
        assert len(inside) == places
        for each in inside:
            asyncio.run(each(arriving(), None, None))  # type: ignore[arg-type]


def test_strangers_who_send_no_body_take_nobodys_place(
    tmp_path: Path, make_app: Callable[..., FastAPI]
) -> None:
    engine = open_ledger(tmp_path)
    key, _ = ApiKeys(engine).create(label="a", scope=AccessScope.READ)
    engine.dispose()
    app = make_app(auth="on", ledger=tmp_path, max_concurrency=1, max_queue=0)
    head = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    with serving(app) as (_, port), ExitStack() as lingering:
        for _ in range(3):
            stranger = lingering.enter_context(connect(port))
            stranger.sendall(head)
            assert b"401 Unauthorized" in stranger.recv(65_536)
        with Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            headers = {"Authorization": f"Bearer {key}"}
            files = {"image": draw_image(RED)}
            assert client.post("/embed", files=files, headers=headers).status_code == 200


def test_a_request_without_a_body_keeps_its_connection(full: str) -> None:
    with Client(base_url=full, timeout=60) as client:
        response = client.get("/lesions/ref-0/similar")
        assert_error(response, 429, "overloaded")
        assert "connection" not in response.headers


def curl(address: str, tmp_path: Path, *options: str) -> str:
    image = tmp_path / "large.jpg"
    image.write_bytes(LARGE)
    program = shutil.which("curl")
    assert program is not None
    command = [program, "-sv", "-F", f"image=@{image}", *options, f"{address}/embed"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stderr + done.stdout


def test_curl_that_expects_to_be_told_sends_no_body(full: str, tmp_path: Path) -> None:
    said = curl(full, tmp_path, "-H", "Expect: 100-continue")
    assert "429 Too Many Requests" in said
    assert "100 Continue" not in said
    assert '"code":"overloaded"' in said


def test_curl_that_sends_at_once_gets_the_answer(full: str, tmp_path: Path) -> None:
    said = curl(full, tmp_path, "-H", "Expect:")
    assert "429 Too Many Requests" in said
    assert '"code":"overloaded"' in said


def keep_sending(connection: socket.socket) -> None:
    for _ in range(6000):
        connection.sendall(b"x" * 1000)
        time.sleep(0.01)


def test_a_client_that_never_stops_sending_is_let_go(full: str) -> None:
    host, port = full.removeprefix("http://").split(":")
    head = "POST /embed HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(f"{head}Content-Length: 90000000\r\n\r\n".encode())
        assert b"429 Too Many Requests" in connection.recv(100)
        with pytest.raises(ConnectionError):
            keep_sending(connection)


def test_a_client_that_leaves_gives_its_place_back(
    make_app: Callable[..., FastAPI], make_runtime: Callable[..., Runtime]
) -> None:
    """Its pictures wait for an encoder that is busy: nobody looks at them any more."""
    blocked = Blocked()
    batched = BatchedEncoders(blocked, Batching(1))
    app = make_app(make_runtime(encoders=batched), max_concurrency=4, max_queue=0)
    server = DrainingServer(app, Settings())
    door = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([door],))
    thread.start()
    wait_for(lambda: server.started)
    address = f"http://127.0.0.1:{door.getsockname()[1]}"
    scheduler = app.state.service.scheduler
    image = {"image": draw_image(RED)}
    with Client(base_url=address, timeout=60) as client, ThreadPoolExecutor(1) as callers:
        first = callers.submit(client.post, "/embed", files=image)
        wait_for(lambda: batched.busy_s > 0 and batched.waiting == 0)
        host, port = address.removeprefix("http://").split(":")
        body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        body += image["image"] + b"\r\n--b--\r\n"
        head = f"POST /embed HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        head += "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        with socket.create_connection((host, int(port))) as leaving:
            leaving.sendall(head.encode() + body)
            wait_for(lambda: batched.waiting == 1)
        # While the encoder is busy with another.
        wait_for(lambda: scheduler.admitted == 1)
        blocked.may.set()
        assert first.result().status_code == 200
        wait_for(lambda: scheduler.admitted == 0)
        wait_for(lambda: 'status="499"' in client.get("/metrics").text)
    server.should_exit = True
    thread.join(20)
