"""Does a service that is asked for long grow: in memory, file handles, threads or latency?

    python -m benchmarks.soak BUNDLE CATALOGUE [--requests 20000]

A copy of the demo's catalogue (`slimp demo`) is served on loopback, with a cache of embeddings that
is soon full, and four callers send it good and bad requests mixed, made of pictures that the demo
can judge: pictures with and without metadata, searches, patients, writes that are erased again,
files that are no picture, cut ones, unknown fields, wrong routes, callers that go away. 120 times
on the way the process is looked at. The first half of the run warms caches and pools. Over the last
half the slope of each figure is fitted, with a 95 % interval by resampling blocks: it is a leak
where the figure grows surely, the interval lying above 0, and by more than `MAY_GROW`. Ends by
itself. `tests/service/test_soak.py` sends a few hundred requests.
"""

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx
import numpy as np

from cohort.rows import LesionImage
from cohort.synthetic import synthetic_source
from tests.ports import free_port

PATIENTS, SEED = 150, 4711
CALLERS = 4
LOOKS = 120
SAMPLES = 2000
BLOCK = 5
AROUND = 5
READY_WITHIN_S = 300
# What may come over the last half before it is called growth. Memory comes in steps: SQLite fills
# 2 MB of pages for each connection that is in use, Python takes 1 MiB at a time. 4 MiB over the
# 10,000 requests of the last half are 420 bytes each.
# What each kind of request may be answered. A cut file may be whole but for its end.
EXPECTED = {
    "classify": {200},
    "metadata": {200},
    "similar": {200},
    "risk": {200},
    # Two callers may add one picture at once, and a few pictures cannot be judged.
    "write": {201, 409, 422},
    # Noise begins like an image now and then; a file may be cut before its first byte.
    "no image": {400, 415},
    "cut": {200, 400, 415, 422},
    "field": {422},
    "route": {404},
}
LEAST_WRITTEN = 0.9
MAY_GROW = {"memory_mib": 4.0, "file_handles": 4.0, "threads": 2.0, "median_ms": 10.0}


@dataclass
class Count:
    """What was answered, and how long it took since the last look."""

    statuses: Counter[str] = field(default_factory=Counter)
    took: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    sent: int = 0


def lesion_pictures() -> list[bytes]:
    """Return files of the demo's kind, of patients that it does not know."""
    rows = synthetic_source(patients=PATIENTS, seed=SEED).rows()
    return [row.image for row in rows if isinstance(row, LesionImage)]


def one_request(
    client: httpx.Client, rng: random.Random, number: int, images: Sequence[bytes]
) -> tuple[str, float]:
    """Send one request of a random kind; return what came and its milliseconds.

    Args:
        client: on the service.
        rng: of what is sent.
        number: of the request.
        images: three different pictures; but for /risk the first alone is sent.
    """
    image = images[0]
    kind = rng.choices(
        ("classify", "metadata", "similar", "risk", "write", "no image", "cut", "field", "route"),
        (30, 15, 15, 8, 6, 10, 8, 5, 3),
    )[0]
    file = {"image": ("i.png", image)}
    started = time.perf_counter()
    if kind == "write":
        answer = client.post("/lesions", files=file, data={"patient_id": f"p{number}"})
        if answer.status_code == 201:
            client.delete(answer.headers["location"]).raise_for_status()
    elif kind == "risk":
        answer = client.post("/risk", files=[("images", ("i.png", one)) for one in images])
    elif kind == "no image":
        answer = client.post("/classify", files={"image": ("i.png", rng.randbytes(2000))})
    elif kind == "cut":
        part = image[: rng.randrange(len(image))]
        answer = client.post("/classify", files={"image": ("i.png", part)})
    elif kind == "route":
        answer = client.get(f"/nowhere/{number}")
    elif kind == "similar":
        answer = client.post("/similar", files=file, data={"k": "20"})
    else:
        record = {"metadata": '{"sex": "female"}', "field": '{"colour": 1}'}.get(kind, "{}")
        answer = client.post("/classify", files=file, data={"metadata": record})
    name = f"{kind} {answer.status_code}"
    return name, (time.perf_counter() - started) * 1000


def look(pid: int) -> dict[str, float]:
    """Return the process's memory in MiB, file handles and threads, as the kernel counts them."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return {
        "memory_mib": int(status["VmRSS"].split()[0]) / 1024,
        "file_handles": float(len(os.listdir(f"/proc/{pid}/fd"))),  # noqa: PTH208
        "threads": float(status["Threads"]),
    }


@dataclass(frozen=True)
class Growth:
    """How one figure went: at the quarter, half and end of the run, and over the last half.

    `slope` is what it grew over the last half by a fitted line, `low` and `high` the 95 % interval.
    """

    quarter: float
    half: float
    end: float
    slope: float
    low: float
    high: float

    def exceeds(self, allowed: float) -> bool:
        return self.low > 0 and self.slope > allowed


def growth(values: list[float]) -> Growth:
    """Return how a figure went that was looked at so often, at even distances."""
    own = np.array(values[len(values) // 2 :])
    place = np.linspace(0, 1, len(own))
    rng = np.random.default_rng(0)
    starts = np.arange(0, len(own), BLOCK)
    slopes = []
    for _ in range(SAMPLES):
        chosen = rng.choice(starts, len(starts))
        rows = np.concatenate([np.arange(s, min(s + BLOCK, len(own))) for s in chosen])
        slopes.append(np.polyfit(place[rows], own[rows], 1)[0])
    low, high = np.quantile(slopes, [0.025, 0.975])
    # One look may fall into a large upload: the median of some says where the figure is.
    quarter, half, end = (
        float(np.median(values[max(0, place - AROUND) : place]))
        for place in (len(values) // 4, len(values) // 2, len(values))
    )
    return Growth(quarter, half, end, float(np.polyfit(place, own, 1)[0]), float(low), float(high))


class Caller(threading.Thread):
    """Sends requests until all are sent or one finds nobody."""

    def __init__(
        self, url: str, seed: int, count: Count, total: int, pictures: list[bytes]
    ) -> None:
        super().__init__(daemon=True)
        self.pictures = pictures
        self.url, self.rng, self.count, self.total = url, random.Random(seed), count, total
        self.client = httpx.Client(base_url=url, timeout=60)

    def run(self) -> None:
        while not self.count.failures and (number := self.next()) <= self.total:
            try:
                pictures = [self.pictures[(number + n) % len(self.pictures)] for n in range(3)]
                name, took = one_request(self.client, self.rng, number, pictures)
            except httpx.HTTPError as error:
                self.count.failures.append(repr(error))
                return
            with self.count.lock:
                self.count.statuses[name] += 1
                self.count.took.append(took)
            if self.rng.random() < 0.01:
                self.leave()
        self.client.close()

    def next(self) -> int:
        with self.count.lock:
            self.count.sent += 1
            return self.count.sent

    def leave(self) -> None:
        """Go away while sending; the next request comes on a new connection."""
        big = {"image": ("i.png", self.rng.randbytes(10**6))}
        with contextlib.suppress(httpx.HTTPError), httpx.Client(base_url=self.url) as rude:
            rude.post("/classify", files=big, timeout=0.01)
        self.client.close()
        self.client = httpx.Client(base_url=self.url, timeout=60)


def run(
    url: str, pid: int, total: int, pictures: list[bytes], looks: int = LOOKS
) -> tuple[dict[str, list[float]], Count]:
    """Send so many requests; return what each figure was at every look, and what was answered.

    Raises:
        SystemExit: a caller found nobody.
    """
    count, seen = Count(), list[dict[str, float]]()
    callers = [Caller(url, seed, count, total, pictures) for seed in range(CALLERS)]
    for caller in callers:
        caller.start()
    for number in range(1, looks + 1):
        while count.sent < number * total / looks and not count.failures:
            time.sleep(0.02)
        with count.lock:
            took, count.took = count.took, []
        seen.append({**look(pid), "median_ms": float(np.median(took or [0]))})
    for caller in callers:
        caller.join()
    if count.failures:
        raise SystemExit(count.failures[0])
    return {name: [one[name] for one in seen] for name in MAY_GROW}, count


def faults_of(count: Count) -> list[str]:
    """Return what should not have been answered, or should have been and was not."""
    faults = []
    for name, times in count.statuses.items():
        kind, _, status = name.rpartition(" ")
        if int(status) not in EXPECTED[kind]:
            faults.append(f"{name}, {times} times")
    asked = sum(times for name, times in count.statuses.items() if name.startswith("write "))
    if count.statuses["write 201"] < max(1, LEAST_WRITTEN * asked):
        faults.append(f"{count.statuses['write 201']} of {asked} lesions were added")
    return faults


@contextlib.contextmanager
def served(bundle: Path, catalogue: Path, folder: Path) -> Iterator[tuple[str, int]]:
    """Serve a catalogue, which is written to, and yield the service's URL and process id."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "slimp", "serve", str(bundle.resolve()), str(catalogue)]
    with (folder / "log").open("wb") as log:
        service = subprocess.Popen(
            [*command, "--port", str(port)],
            stdout=log,
            stderr=log,
            env={
                **os.environ,
                "MALLOC_MMAP_THRESHOLD_": "1048576",
                "SLIMP_EMBEDDING_CACHE_MIB": "1",
            },
        )
    try:
        until = time.monotonic() + READY_WITHIN_S
        while not is_ready(url):
            if time.monotonic() > until or service.poll() is not None:
                raise SystemExit(f"the service was not ready:\n{(folder / 'log').read_text()}")
            time.sleep(0.2)
        yield url, service.pid
    finally:
        service.terminate()
        service.wait(60)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=30).status_code == 200
    except httpx.HTTPError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("catalogue", type=Path)
    parser.add_argument("--requests", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy = folder / "catalogue"
        shutil.copytree(options.catalogue, copy)
        with served(options.bundle, copy, folder) as (url, pid):
            figures, count = run(url, pid, options.requests, lesion_pictures())
            ready = is_ready(url)
    print("| | a quarter | half | the end | growth over the last half (95 %) |")
    print("| --- | ---: | ---: | ---: | ---: |")
    leaks = []
    for name, allowed in MAY_GROW.items():
        grown = growth(figures[name])
        print(
            f"| {name.replace('_', ' ')} | {grown.quarter:.1f} | {grown.half:.1f} "
            f"| {grown.end:.1f} | {grown.slope:+.1f} ({grown.low:+.1f} to {grown.high:+.1f}) |"
        )
        if grown.exceeds(allowed):
            leaks.append(name)
    print(", ".join(f"{name}: {number}" for name, number in sorted(count.statuses.items())))
    if leaks or faults_of(count) or not ready:
        raise SystemExit(f"growth: {leaks}; failed: {faults_of(count)}; ready: {ready}")


if __name__ == "__main__":
    main()
