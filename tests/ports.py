"""Where a server of a test or a benchmark may listen."""

import socket


def free_port() -> int:
    """Return a port of the loopback address that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
