"""Runs the app on uvicorn; what `slimp serve` calls."""

import asyncio
import contextlib
import gc
import json
import math
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from service.app import create_app
from service.connections import BoundedConnection
from service.logging import log_libraries
from service.settings import PREFIX, Settings
from service.state import LOAD_AGAIN_S, STALLED_EXIT, Service

POLL_S = 0.05
# How long a thread may keep others from Python, a tenth of the interpreter's default: the event
# loop turns a flood away while other threads prepare pictures.
SWITCH_INTERVAL_S = 0.0005
# New objects, and rounds of each generation, before cycles are sought: the interpreter's default.
CYCLES_SOUGHT_AFTER = (700, 10, 10)
# A worker loads its bundle, and answers its keeper, within this time.
WORKER_ANSWERS_WITHIN_S = 120
DRAIN_SIGNAL = signal.SIGUSR1
# A process that was told to stop and has let go of all its requests has ended within this time: a
# thread that hangs inside a model cannot be stopped, and would keep it, and its keeper, for ever.
ENDED_WITHIN_S = 10.0
NO_SWAP = "a swap without a lost request needs two processes: set SLIMP_WORKERS=2, or start anew"


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then let requests that are inside end.

    With several workers SIGHUP replaces one after the other: each new one has loaded what the
    settings then name before the old one ends, and where it cannot, the old one stays.
    """
    _prepare_process()
    if settings.workers > 1:
        _supervise(settings)
        return
    # Its default would end the process with everybody inside.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    server = DrainingServer(create_app(settings), settings)
    server.service.when_closed = _end_in_time
    with contextlib.suppress(KeyboardInterrupt):
        server.run()


def _prepare_process() -> None:
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # What is imported stays, and is left out of the search for cycles. Those that requests leave
    # are sought often: the command line seeks them so rarely that 10,000 requests hold 5 MiB.
    gc.freeze()
    gc.set_threshold(*CYCLES_SOUGHT_AFTER)
    log_libraries()


def _supervise(settings: Settings) -> None:
    # Workers read the environment, as does whoever is started after a swap.
    for name, value in settings.model_dump(mode="json", exclude_unset=True).items():
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            os.environ[PREFIX + name.upper()] = text
    # What cannot work says so here, once, and not in every worker.
    create_app(settings).state.service.close()
    config = uvicorn.Config(
        "service.server:worker_app",
        factory=True,
        workers=settings.workers,
        timeout_worker_healthcheck=WORKER_ANSWERS_WITHIN_S,
        **_options(settings),
    )
    supervisor = Supervisor(config, sockets=[config.bind_socket()])
    supervisor.run()
    if supervisor.failed:
        raise SystemExit(1)


def worker_app() -> FastAPI:
    """Return the app of one worker, from the environment."""
    _prepare_process()
    app = create_app()
    service = cast(Service, app.state.service)
    service.when_closed = _end_in_time
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(DRAIN_SIGNAL, lambda: loop.create_task(_drain(service)))
    return app


def _end_in_time() -> None:
    timer = threading.Timer(ENDED_WITHIN_S, os._exit, [STALLED_EXIT])
    timer.daemon = True
    timer.start()


async def _drain(service: Service) -> None:
    """Take nothing more, and end this worker once no request waits for its answer."""
    service.is_draining = True
    while not service.scheduler.is_idle:
        await asyncio.sleep(POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)


class Supervisor(Multiprocess):
    """Keeps the workers; tells them apart whether one is followed by another or all are to end.

    Uvicorn alone ends all of them when one that died cannot be started anew, and waits for ever for
    one that does not end.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.failed = False
        # By place, when a worker that could not start is started again.
        self._again_at: dict[int, float] = {}

    def keep_subprocess_alive(self) -> None:
        """Replace who died or hangs; one that cannot start is tried again while others serve."""
        for place, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if process.is_alive(timeout=WORKER_ANSWERS_WITHIN_S):
                if place in self._again_at and process.is_ready():
                    del self._again_at[place]
                continue
            if time.monotonic() < self._again_at.get(place, 0):
                continue
            process.kill()
            process.join()
            if process.exitcode == STARTUP_FAILURE:
                waited_for = place in self._again_at
                self._again_at[place] = time.monotonic() + LOAD_AGAIN_S
                if not self._others_serve():
                    self.failed = True
                    self.should_exit.set()
                    return
                if not waited_for:
                    continue
            self.processes[place] = Process(self.config, self.sockets)
            self.processes[place].start()

    def _others_serve(self) -> bool:
        return any(
            place not in self._again_at and process.process.is_alive()
            for place, process in enumerate(self.processes)
        )

    def terminate_all(self) -> None:
        """Have every worker say at /readyz that it is stopping, and end once nobody is inside."""
        for process in self.processes:
            if process.pid is not None and process.process.is_alive():
                os.kill(process.pid, DRAIN_SIGNAL)
        # A caller that comes when no worker listens is refused at once, not left to wait.
        for door in self.sockets:
            door.close()


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "http": BoundedConnection,
        "host": settings.host,
        "port": settings.port,
        "log_level": "warning",
        # `log_libraries` has said how.
        "log_config": None,
        # The app writes its own line for every request, as JSON and without query strings.
        "access_log": False,
        "timeout_graceful_shutdown": math.ceil(settings.request_timeout_s),
        "server_header": False,
        # Whoever is not named may not say which client it speaks for.
        "proxy_headers": bool(settings.trusted_proxies),
        "forwarded_allow_ips": settings.trusted_proxies,
    }


class DrainingServer(uvicorn.Server):
    """Says at /readyz that it is stopping while requests that are inside end.

    Uvicorn alone would first close its door: a probe would find nobody instead of the reason, and
    a balancer that has not asked yet would lose requests.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self.service = cast(Service, app.state.service)
        super().__init__(uvicorn.Config(app, **_options(settings)))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the door; from then on SIGHUP is answered with what a swap needs."""
        # By the loop, between two steps of it: a handler of Python's own could come while a line
        # is logged, and would wait for ever for the log's lock.
        # Signals reach the main thread alone, where the service runs but for a test.
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(
                signal.SIGHUP, lambda: self.service.log.warning("sighup", detail=NO_SWAP)
            )
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Be told to stop; a second SIGINT does not wait."""
        self.service.is_draining = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the door once no request waits for its answer; each has its own time limit."""
        while not (self.service.scheduler.is_idle or self.force_exit):
            await asyncio.sleep(POLL_S)
        await super().shutdown(sockets)
