"""Runs the app on uvicorn; what `slimp serve` calls."""

import asyncio
import contextlib
import math
import socket
from types import FrameType
from typing import cast

import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.settings import Settings
from service.state import Service

POLL_S = 0.05


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then let requests that are inside end."""
    server = DrainingServer(create_app(settings), settings)
    with contextlib.suppress(KeyboardInterrupt):
        server.run()


class DrainingServer(uvicorn.Server):
    """Says at /readyz that it is stopping while requests that are inside end.

    Uvicorn alone would first close its door: a probe would find nobody instead of the reason, and
    a balancer that has not asked yet would lose requests.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self._service = cast(Service, app.state.service)
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                log_level="warning",
                # The app writes its own line for every request, as JSON and without query strings.
                access_log=False,
                timeout_graceful_shutdown=math.ceil(settings.request_timeout_s),
                server_header=False,
                # Whoever is not named may not say which client it speaks for.
                proxy_headers=bool(settings.trusted_proxies),
                forwarded_allow_ips=settings.trusted_proxies,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Be told to stop; a second SIGINT does not wait."""
        self._service.is_draining = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the door once no request waits for its answer; each has its own time limit."""
        while not (self._service.scheduler.is_idle or self.force_exit):
            await asyncio.sleep(POLL_S)
        await super().shutdown(sockets)
