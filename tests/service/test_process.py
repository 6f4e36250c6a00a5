"""What a served process sets for itself before the first request."""

import gc
import signal
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import SIGNALS

from service import server
from service.server import Supervisor
from service.settings import Settings


@pytest.fixture
def command_line() -> Iterator[None]:
    """The collector as `slimp` leaves it, and as it was once the test is over."""
    before = gc.get_threshold()
    gc.set_threshold(50_000)
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


@pytest.mark.usefixtures("command_line")
def test_a_service_seeks_the_cycles_that_requests_leave_and_leaves_imports_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[tuple[int, int, int], int]] = []

    def run(_: server.DrainingServer) -> None:
        seen.append((gc.get_threshold(), gc.get_freeze_count()))

    monkeypatch.setattr(server.DrainingServer, "run", run)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    server.serve(Settings(auth="off"))
    ((threshold, frozen),) = seen
    assert threshold == server.CYCLES_SOUGHT_AFTER
    assert frozen > 10_000


class Worker:
    """Stands for a process of the supervisor's: how it is, and what became of it."""

    made: ClassVar[list[Any]] = []

    def __init__(self, *_: Any, exitcode: int | None = None) -> None:
        self.exitcode, self.process = exitcode, self
        self.made.append(self)

    def is_alive(self, timeout: float = 0) -> bool:
        return self.exitcode is None

    def is_ready(self, timeout: float = 0) -> bool:
        return self.exitcode is None

    def start(self) -> None: ...

    def kill(self) -> None: ...

    def join(self) -> None: ...


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    """A supervisor whose workers are none, and who tries again at once."""
    monkeypatch.setattr(server, "Process", Worker)
    monkeypatch.setattr(server, "LOAD_AGAIN_S", 0)
    monkeypatch.setattr(Worker, "made", [])
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield Supervisor(uvicorn.Config(lambda: None, workers=2), sockets=[])
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_worker_that_cannot_start_anew_takes_nobody_with_it(supervisor: Supervisor) -> None:
    healthy: Any = Worker()
    dead: Any = Worker(exitcode=STARTUP_FAILURE)
    supervisor.processes = [dead, healthy]
    supervisor.keep_subprocess_alive()
    assert not supervisor.should_exit.is_set()
    assert supervisor.processes[1] is healthy
    # Tried again, and again, until it starts.
    supervisor.keep_subprocess_alive()
    again = Worker.made[-1]
    assert supervisor.processes[0] == again
    again.exitcode = STARTUP_FAILURE
    supervisor.keep_subprocess_alive()
    supervisor.keep_subprocess_alive()
    assert supervisor.processes[0].is_alive()
    assert not supervisor.failed


def test_where_no_worker_can_start_the_service_ends_and_says_so(supervisor: Supervisor) -> None:
    dead: Any = Worker(exitcode=STARTUP_FAILURE)
    supervisor.processes = [dead, dead]
    supervisor.keep_subprocess_alive()
    assert supervisor.should_exit.is_set()
    assert supervisor.failed


def test_one_that_dies_is_replaced_at_once(supervisor: Supervisor) -> None:
    killed: Any = Worker(exitcode=-9)
    healthy: Any = Worker()
    supervisor.processes = [killed, healthy]
    supervisor.keep_subprocess_alive()
    assert supervisor.processes[0] is Worker.made[-1]
