"""`slimp serve`: the HTTP service."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def serve(
    bundle: Annotated[Path | None, Argument(help="else SLIMP_BUNDLE")] = None,
    catalogue: Annotated[Path | None, Argument(help="else SLIMP_CATALOGUE")] = None,
    host: Annotated[str | None, Option(help="else SLIMP_HOST, else 127.0.0.1")] = None,
    port: Annotated[int | None, Option(help="else SLIMP_PORT, else 8000")] = None,
) -> None:
    """Answer over HTTP; every other setting comes from the environment (docs/settings.md)."""
    from service.server import serve as run_server
    from service.settings import read_settings

    given = {"bundle": bundle, "catalogue": catalogue, "host": host, "port": port}
    run_server(read_settings(given))
