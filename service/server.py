"""Runs the app on uvicorn; what `slimp serve` calls."""

import math

import uvicorn

from service.app import create_app
from service.settings import Settings


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then let requests that are inside end."""
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_level="warning",
        # The app writes its own line for every request, as JSON and without query strings.
        access_log=False,
        timeout_graceful_shutdown=math.ceil(settings.request_timeout_s),
        server_header=False,
    )
