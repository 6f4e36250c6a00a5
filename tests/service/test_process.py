"""What a served process sets for itself before the first request."""

import gc
import signal
from collections.abc import Iterator

import pytest

from service import server
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
