"""Who is served now: room, time, and threads that do not come back."""

import asyncio
import contextvars
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pytest
from fastapi import FastAPI
from httpx2 import Client, TransportError
from PIL.Image import Image
from starlette.requests import ClientDisconnect
from starlette.testclient import TestClient

from bundle.calibration import FloatArray
from bundle.errors import Overloaded
from bundle.images import ImageLimits, decode_image
from service.errors import TimedOut
from service.runtime import Runtime
from service.scheduling import Scheduler
from service.server import DrainingServer
from service.settings import Settings
from service.tickets import BULK_TURN, Lane, Ticket, current_ticket
from service.turns import Turns
from tests.fakes import RED, FakeEncoders, draw_image
from tests.service.asking import ask, assert_error


@dataclass(frozen=True)
class Blocked(FakeEncoders):
    """A model that answers only once it may."""

    may: threading.Event = field(default_factory=threading.Event)

    def embed_images(self, pixels: FloatArray) -> FloatArray:
        assert self.may.wait(10)
        return super().embed_images(pixels)


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("the condition did not come true within 5 s")


def test_more_requests_than_may_wait_are_turned_away_and_served_later(
    make_app: Callable[..., FastAPI], make_runtime: Callable[..., Runtime]
) -> None:
    encoders = Blocked()
    app = make_app(make_runtime(encoders=encoders), max_concurrency=1, max_queue=2)
    scheduler = app.state.service.scheduler
    with TestClient(app) as client, ThreadPoolExecutor(3) as callers:
        inside = [callers.submit(ask, client, "/embed", draw_image(RED)) for _ in range(3)]
        wait_for(lambda: scheduler.admitted == 3)
        response = ask(client, "/embed", draw_image(RED))
        assert_error(response, 429, "overloaded", "at most 3 requests")
        assert response.headers["retry-after"] == "2"
        assert client.get("/readyz").status_code == 200
        assert "slimp_requests_admitted 3.0" in client.get("/metrics").text
        encoders.may.set()
        assert [one.result().status_code for one in inside] == [200, 200, 200]
        assert ask(client, "/embed", draw_image(RED)).status_code == 200
        assert scheduler.admitted == 0


def test_a_request_whose_time_is_over_is_answered_and_a_stall_is_said(
    make_app: Callable[..., FastAPI], make_runtime: Callable[..., Runtime]
) -> None:
    encoders = Blocked()
    app = make_app(make_runtime(encoders=encoders), max_concurrency=1, request_timeout_s=0.2)
    with TestClient(app) as client:
        response = ask(client, "/embed", draw_image(RED))
        assert_error(response, 503, "timed_out", "0.2 s")
        assert_error(client.get("/readyz"), 503, "stalled")
        encoders.may.set()
        wait_for(lambda: client.get("/readyz").status_code == 200)
        assert ask(client, "/embed", draw_image(RED)).status_code == 200


@pytest.mark.parametrize("left", [True, False])
def test_no_picture_is_decoded_for_whom_nobody_waits(
    make_runtime: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch, left: bool
) -> None:
    ticket = Ticket(time.monotonic() + 60)
    decoded = []

    def decode(data: bytes, limits: ImageLimits) -> Image:
        decoded.append(data)
        if left:
            ticket.is_left = True
        else:
            ticket.deadline = 0
        return decode_image(data, limits)

    monkeypatch.setattr("service.pictures.decode_image", decode)
    context = contextvars.copy_context()
    context.run(current_ticket.set, ticket)
    with pytest.raises(ClientDisconnect if left else TimedOut):
        context.run(make_runtime().risk, [draw_image(RED, seed=number) for number in range(4)])
    assert len(decoded) == 1


def hold_in_turn(turns: Turns, order: list[str], name: str, times: int, lane: Lane) -> None:
    current_ticket.set(Ticket(time.monotonic() + 60, lane))
    for _ in range(times):
        with turns:
            order.append(name)
            time.sleep(0.002)


@pytest.mark.parametrize("lane", ["interactive", "bulk"])
def test_a_request_of_many_pictures_does_not_keep_one_waiting(lane: Lane) -> None:
    """It gives its place back between them, to whoever waits longest."""
    turns, order = Turns(1), list[str]()
    with ThreadPoolExecutor(3) as callers:
        many = callers.submit(hold_in_turn, turns, order, "many", 60, lane)
        wait_for(lambda: len(order) > 3)
        for number in range(5):
            before = len(order)
            name = f"one {number}"
            callers.submit(hold_in_turn, turns, order, name, 1, "interactive").result()
            # The one that was inside, and the one that might have been handed its place by then.
            assert order.index(name) - before <= 2
        many.result()
    assert order.count("many") == 60


@pytest.mark.parametrize("left", [True, False])
def test_whoever_nobody_waits_for_gives_up_the_wait_for_a_place(left: bool) -> None:
    turns, ticket = Turns(1), Ticket(time.monotonic() + (60 if left else 0.05))

    def enter() -> None:
        current_ticket.set(ticket)
        with turns:
            raise AssertionError("the place was taken")

    with ThreadPoolExecutor(1) as callers:
        with turns:
            waiting = callers.submit(enter)
            wait_for(lambda: turns.asked == 2)
            if left:
                ticket.leave()
            with pytest.raises(ClientDisconnect if left else TimedOut):
                waiting.result()
            assert turns.asked == 1
        assert turns.asked == 0


def test_work_of_a_client_that_left_is_never_begun() -> None:
    scheduler, may = Scheduler(max_concurrency=1, max_queue=4, timeout_s=60), threading.Event()
    begun: list[int] = []
    tickets: list[Ticket] = []

    def work(number: int) -> None:
        begun.append(number)
        may.wait(10)

    async def request(number: int) -> None:
        async with scheduler.admit() as ticket:
            tickets.append(ticket)
            await scheduler.run(lambda: work(number))

    async def two() -> None:
        first = asyncio.create_task(request(0))
        while not begun:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(request(1))
        while len(tickets) < 2:
            await asyncio.sleep(0.001)
        tickets[1].leave()
        with pytest.raises(ClientDisconnect):
            await second
        assert scheduler.admitted == 1
        may.set()
        await first

    asyncio.run(two())
    assert begun == [0]
    scheduler.close()


def test_bulk_pictures_wait_for_interactive_ones_and_not_for_ever() -> None:
    turns, order = Turns(1), list[str]()
    with ThreadPoolExecutor(30) as callers, turns:
        asked = [callers.submit(hold_in_turn, turns, order, "bulk", 1, "bulk")]
        wait_for(lambda: len(turns._waiting["bulk"]) == 1)
        asked += [
            callers.submit(hold_in_turn, turns, order, "interactive", 1, "interactive")
            for _ in range(2 * BULK_TURN)
        ]
        wait_for(lambda: len(turns._waiting["interactive"]) == 2 * BULK_TURN)
    for call in asked:
        call.result()
    assert order.index("bulk") == BULK_TURN - 1
    assert len(order) == 2 * BULK_TURN + 1
    assert turns._free == 1


class Counted:
    """A place for decoding that counts how often it is taken."""

    def __init__(self) -> None:
        self.taken, self.is_held = 0, False

    def __enter__(self) -> None:
        self.taken += 1
        self.is_held = True

    def __exit__(self, *_: object) -> None:
        self.is_held = False


def test_others_are_let_in_between_the_pictures_of_a_request(
    make_runtime: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, runtime = Counted(), make_runtime()
    runtime = replace(runtime, models=replace(runtime.models, decoding=turns))

    def decode(data: bytes, limits: ImageLimits) -> Image:
        assert turns.is_held
        return decode_image(data, limits)

    monkeypatch.setattr("service.pictures.decode_image", decode)
    runtime.risk([draw_image(RED, seed=number) for number in range(3)])
    assert turns.taken == 3
    assert not turns.is_held


def test_a_bulk_request_that_was_given_up_keeps_its_place_until_its_work_ends() -> None:
    async def flood() -> None:
        scheduler = Scheduler(max_concurrency=2, max_queue=4, timeout_s=0.05)
        may = threading.Event()
        with pytest.raises(TimedOut):
            async with scheduler.admit("bulk"):
                await scheduler.run(lambda: may.wait(60))
        with pytest.raises(Overloaded, match="bulk"):
            scheduler.check_room("bulk")
        scheduler.check_room("interactive")
        may.set()
        while scheduler.admitted:
            await asyncio.sleep(0.01)
        scheduler.check_room("bulk")
        scheduler.close()

    asyncio.run(flood())


def test_every_request_may_ask_for_the_bulk_lane(
    make_app: Callable[..., FastAPI], make_runtime: Callable[..., Runtime]
) -> None:
    app = make_app(make_runtime(), max_concurrency=2)
    with TestClient(app) as client:
        app.state.service.scheduler._abandoned["bulk"] += 1
        bulk = {"Priority": "u=7"}
        assert_error(client.get("/lesions", headers=bulk), 429, "overloaded", "bulk")
        assert client.get("/lesions").status_code == 200


@pytest.fixture
def blocked() -> Iterator[Blocked]:
    """Let a model go on at the end, so that a failed test does not hang."""
    encoders = Blocked()
    yield encoders
    encoders.may.set()


@pytest.fixture
def server(
    make_app: Callable[..., FastAPI], make_runtime: Callable[..., Runtime], blocked: Blocked
) -> Iterator[DrainingServer]:
    """A server on a thread, told to stop by the call that a signal makes."""
    opened = DrainingServer(make_app(make_runtime(encoders=blocked)), Settings())
    door = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=opened.run, args=([door],))
    thread.start()
    wait_for(lambda: opened.started)
    yield opened
    opened.handle_exit(signal.SIGTERM, None)
    blocked.may.set()
    thread.join(10)
    assert not thread.is_alive()


def test_told_to_stop_the_service_says_so_and_ends_what_is_inside(
    server: DrainingServer, blocked: Blocked
) -> None:
    port = server.servers[0].sockets[0].getsockname()[1]
    image = {"image": draw_image(RED)}
    with Client(base_url=f"http://127.0.0.1:{port}") as client, ThreadPoolExecutor(1) as caller:
        assert client.get("/livez").status_code == 200
        inside = caller.submit(client.post, "/embed", files=image)
        wait_for(lambda: "slimp_requests_admitted 1.0" in client.get("/metrics").text)
        server.handle_exit(signal.SIGTERM, None)
        time.sleep(0.3)  # uvicorn looks for the signal ten times a second
        with Client(base_url=client.base_url) as probe:
            assert_error(probe.get("/readyz"), 503, "draining", "stopping")
            assert probe.get("/livez").status_code == 200
            assert "slimp_ready 0.0" in probe.get("/metrics").text
            assert_error(probe.post("/embed", files=image), 503, "draining", "again later")
        assert not inside.done()
        blocked.may.set()
        assert inside.result().status_code == 200
        wait_for(lambda: not server.servers[0].sockets)
        with Client(base_url=client.base_url) as late, pytest.raises(TransportError):
            late.get("/readyz")


def test_a_second_interrupt_does_not_wait_for_what_is_inside(
    server: DrainingServer, blocked: Blocked
) -> None:
    port = server.servers[0].sockets[0].getsockname()[1]
    with Client(base_url=f"http://127.0.0.1:{port}") as client, ThreadPoolExecutor(1) as caller:
        caller.submit(client.post, "/embed", files={"image": draw_image(RED)})
        wait_for(lambda: "slimp_requests_admitted 1.0" in client.get("/metrics").text)
        for _ in range(2):
            server.handle_exit(signal.SIGINT, None)
        wait_for(lambda: not server.servers[0].sockets)
        assert not blocked.may.is_set()
        blocked.may.set()


def test_work_that_waits_when_its_time_is_over_is_never_done() -> None:
    done = []

    async def run() -> None:
        scheduler = Scheduler(max_concurrency=1, max_queue=5, timeout_s=0.1)
        free = threading.Event()

        async def ask_for(work: Callable[[], object]) -> None:
            with pytest.raises(TimedOut):
                async with scheduler.admit():
                    await scheduler.run(work)

        await asyncio.gather(ask_for(lambda: free.wait(5)), ask_for(lambda: done.append(1)))
        assert scheduler.admitted == 1
        assert scheduler.is_stalled
        free.set()
        while scheduler.admitted:
            await asyncio.sleep(0.01)
        assert not scheduler.is_stalled
        scheduler.close()

    asyncio.run(run())
    assert done == []


def test_a_place_is_given_back_whatever_happens_inside() -> None:
    async def run() -> None:
        scheduler = Scheduler(max_concurrency=1, max_queue=0, timeout_s=5)
        with pytest.raises(ValueError, match="inside"):
            async with scheduler.admit():
                raise ValueError("inside")
        async with scheduler.admit():
            with pytest.raises(Overloaded):
                async with scheduler.admit():
                    pass
        assert scheduler.admitted == 0
        scheduler.close()

    asyncio.run(run())


def test_errors_of_the_work_reach_its_caller() -> None:
    def fail() -> None:
        raise KeyError("work")

    async def run() -> None:
        scheduler = Scheduler(max_concurrency=1, max_queue=0, timeout_s=5)
        with pytest.raises(KeyError):
            await scheduler.run(fail)
        scheduler.close()

    asyncio.run(run())
