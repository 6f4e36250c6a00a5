"""Load on one server, and what came of it: closed loops, Poisson arrivals, more than it can do.

A client is this process: threads that post one image a request over a connection each. Its own
processor time is part of the answer, since it takes it from the server on the same machine.
"""

import random
import re
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

BOUNDARY = "slimpbench"
TURNED_AWAY = (429, 503)
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


@dataclass
class Outcome:
    """Milliseconds of answered and of turned away requests, statuses, and the client's own cost."""

    answered_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    client_cpu_s: float = 0.0

    def figures(self) -> dict[str, Any]:
        return {
            "per_second": len(self.answered_ms) / self.seconds if self.seconds else 0.0,
            "sent_per_second": self.statuses.total() / self.seconds if self.seconds else 0.0,
            "answered": len(self.answered_ms),
            "median_ms": percentile(self.answered_ms, 50),
            "p99_ms": percentile(self.answered_ms, 99),
            "refused": len(self.refused_ms),
            "refused_p95_ms": percentile(self.refused_ms, 95),
            "statuses": dict(self.statuses),
            "client_cpu_share": self.client_cpu_s / self.seconds if self.seconds else 0.0,
        }


def percentile(values: Sequence[float], share: float) -> float | None:
    return float(np.percentile(values, share)) if len(values) else None


def request_of(image: bytes, host: str, path: str) -> bytes:
    """Return a whole request, head and form, that posts one image."""
    form = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="i.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    body = form.encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    )
    return head.encode() + body


class Connection:
    """Sends requests that are ready and reads no more of the answers than it must.

    A client on the server's own processors takes from it what it uses: http.client takes twice as
    much.
    """

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._socket: socket.socket | None = None

    def ask(self, request: bytes) -> int:
        """Return the answer's status.

        Raises:
            OSError: the connection broke.
            ValueError: the answer does not say how long it is.
        """
        try:
            if self._socket is None:
                self._socket = socket.create_connection(self._address, timeout=60)
            self._socket.sendall(request)
            return self._read(self._socket)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _read(self, opened: socket.socket) -> int:
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += _received(opened)
        head, _, body = answer.partition(b"\r\n\r\n")
        found = LENGTH.search(head)
        if found is None:
            raise ValueError(f"expected an answer with Content-Length, got {head!r}")
        missing = int(found[1]) - len(body)
        while missing > 0:
            missing -= len(_received(opened))
        if b"connection: close" in head.lower():
            self.close()
        return int(head[9:12])


def _received(opened: socket.socket) -> bytes:
    data = opened.recv(65_536)
    if not data:
        raise ConnectionResetError("the connection ended before its answer")
    return data


class Load:
    """Posts images to one address."""

    def __init__(self, url: str, images: Sequence[bytes]) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname or "", parts.port or 80
        self._requests = [request_of(image, parts.netloc, parts.path) for image in images]
        self._local = threading.local()
        self._lock = threading.Lock()

    def post(self, number: int, outcome: Outcome, since: float | None = None) -> None:
        """Send one request and note it; `since` is when it should have been sent."""
        started = time.perf_counter() if since is None else since
        status = self._send(self._requests[number % len(self._requests)])
        took = (time.perf_counter() - started) * 1000
        with self._lock:
            outcome.statuses[str(status)] += 1
            if status == 200:
                outcome.answered_ms.append(took)
            elif status in TURNED_AWAY:
                outcome.refused_ms.append(took)

    def _send(self, request: bytes) -> int | str:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = Connection(*self._address)
        try:
            return int(connection.ask(request))
        except OSError as error:
            return type(error).__name__

    def closed(self, clients: int, seconds: float) -> Outcome:
        """Each client sends its next request when it has the answer to its last."""
        until, outcome = time.perf_counter() + seconds, Outcome()

        def loop(first: int) -> None:
            number = first
            while time.perf_counter() < until:
                self.post(number, outcome)
                number += clients

        return self._run([lambda at=at: loop(at) for at in range(clients)], outcome)

    def poisson(self, rate: float, seconds: float, seed: int, *, threads: int = 64) -> Outcome:
        """Requests come at random moments of this rate, whether or not others were answered."""
        rng = random.Random(seed)
        moments, at = [], rng.expovariate(rate)
        while at < seconds:
            moments.append(at)
            at += rng.expovariate(rate)
        outcome, begin = Outcome(), time.perf_counter() + 0.1
        following = iter(enumerate(moments))

        def loop() -> None:
            while True:
                with self._lock:
                    number, moment = next(following, (0, None))
                if moment is None:
                    return
                due = begin + moment
                time.sleep(max(0.0, due - time.perf_counter()))
                self.post(number, outcome, since=due)

        return self._run([loop] * threads, outcome)

    def _run(self, loops: Sequence[Any], outcome: Outcome) -> Outcome:
        threads = [threading.Thread(target=loop) for loop in loops]
        started, cpu = time.perf_counter(), _cpu_s()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        outcome.seconds = time.perf_counter() - started
        outcome.client_cpu_s = _cpu_s() - cpu
        return outcome


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
