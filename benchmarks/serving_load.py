"""Load on one server, and what came of it: closed loops, Poisson arrivals, more than it can do.

A client is this process: threads that post one image a request over a connection each. Its own
processor time is part of the answer, since it takes it from the server on the same machine.
"""

import http.client
import random
import resource
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


def body_of(image: bytes) -> bytes:
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="i.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    return head.encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()


class Load:
    """Posts images to one address."""

    def __init__(self, url: str, images: Sequence[bytes]) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._path = parts.hostname or "", parts.port, parts.path
        self._bodies = [body_of(image) for image in images]
        self._headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        self._local = threading.local()
        self._lock = threading.Lock()

    def post(self, number: int, outcome: Outcome, since: float | None = None) -> None:
        """Send one request and note it; `since` is when it should have been sent."""
        started = time.perf_counter() if since is None else since
        status = self._send(self._bodies[number % len(self._bodies)])
        took = (time.perf_counter() - started) * 1000
        with self._lock:
            outcome.statuses[str(status)] += 1
            if status == 200:
                outcome.answered_ms.append(took)
            elif status in TURNED_AWAY:
                outcome.refused_ms.append(took)

    def _send(self, body: bytes) -> int | str:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=60)
            self._local.connection = connection
        try:
            connection.request("POST", self._path, body, self._headers)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return type(error).__name__
        return int(answer.status)

    def closed(self, clients: int, seconds: float) -> Outcome:
        """Each client sends its next request when it has the answer to its last."""
        until, outcome = time.perf_counter() + seconds, Outcome()

        def loop(first: int) -> None:
            number = first
            while time.perf_counter() < until:
                self.post(number, outcome)
                number += clients

        return self._run([lambda at=at: loop(at) for at in range(clients)], outcome)  # type: ignore[misc]

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
