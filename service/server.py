"""Runs the app on uvicorn; what `slimp serve` calls."""

import asyncio
import contextlib
import math
import os
import socket
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from service.app import create_app
from service.settings import PREFIX, Settings
from service.state import Service

POLL_S = 0.05
# A worker loads its bundle, and answers its keeper, within this time.
WORKER_ANSWERS_WITHIN_S = 120


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then let requests that are inside end.

    With several workers SIGHUP replaces one after the other: each new one has loaded what the
    settings then name before the old one ends, and where it cannot, the old one stays.
    """
    if settings.workers > 1:
        _supervise(settings)
        return
    server = DrainingServer(create_app(settings), settings)
    with contextlib.suppress(KeyboardInterrupt):
        server.run()


def _supervise(settings: Settings) -> None:
    # Workers read the environment, as does whoever is started after a swap.
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if value is not None:
            os.environ[PREFIX + name.upper()] = str(value)
    # What cannot work says so here, once, and not in every worker.
    create_app(settings).state.service.close()
    config = uvicorn.Config(
        "service.server:worker_app",
        factory=True,
        workers=settings.workers,
        timeout_worker_healthcheck=WORKER_ANSWERS_WITHIN_S,
        **_options(settings),
    )
    Multiprocess(config, sockets=[config.bind_socket()]).run()


def worker_app() -> FastAPI:
    """Return the app of one worker, from the environment."""
    return create_app()


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "host": settings.host,
        "port": settings.port,
        "log_level": "warning",
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
        self._service = cast(Service, app.state.service)
        super().__init__(uvicorn.Config(app, **_options(settings)))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Be told to stop; a second SIGINT does not wait."""
        self._service.is_draining = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the door once no request waits for its answer; each has its own time limit."""
        while not (self._service.scheduler.is_idle or self.force_exit):
            await asyncio.sleep(POLL_S)
        await super().shutdown(sockets)
