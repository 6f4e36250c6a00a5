"""Is an acknowledged write ever lost, or an erased lesion back, when services are killed?

    python -m benchmarks.kill_writes [--kills 300]

Two services share one catalogue and one ledger. Writers add, change and erase lesions through both,
and each sets a field of its own of one lesion that all of them change; at a random moment one of
the two services is killed (SIGKILL) and started again, every fifth time both. After every kill a
service is asked for all lesions. After every tenth nobody writes: similar lesions are asked for,
and one service is ended in order, so that the vectors that it held in memory come to the disk, are
compared with the database (`index/upkeep.py`), and are caught up from at its next start. A write
that was answered must be there; one whose answer never came may be there whole or not at all; a
request that is sent again under its key must not count twice. Prints the counts and how long one
service took to see the other's write; fails at the first fault.
`tests/service/test_kill_writes.py` does a handful.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx

from index.upkeep import verify
from tests.fakes import BLUE, GREEN, RED, draw_image, make_lesion, write_bundle, write_catalogue
from tests.ports import free_port

WRITERS = 3
READY_WITHIN_S = 300
COMPARE_EVERY = 10
BOTH_EVERY = 5
SEEN_WITHIN_S = 2.0
# Lesions of which similar ones are asked for, and how many of those.
LIKENESSES, LIKE = 20, 100
SEEDS = frozenset(f"seed-{n}" for n in range(20))
# The lesion that all writers change, and the field of it that is each one's own.
SHARED = "seed-0"
OWN_FIELDS = ("label", "confirmed_by", "diameter_mm")
CONFIRMATIONS = ("histopathology", "confocal", "follow_up", "consensus", "clinical")


class Fault(Exception):
    """A service did not keep what it promised."""


@dataclass
class Books:
    """What must be there, what must not, and what nobody can say.

    `shared` holds what was last acknowledged of the shared lesion, by field. A fault that a writer
    finds is noted, since an exception would end no more than its thread.
    """

    present: dict[str, str | None] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    shared: dict[str, str | float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    kills: int = 0
    acknowledged: int = 0
    unanswered: int = 0
    repeated: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Site:
    """One catalogue, one ledger, two services on ports of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        bundle = write_bundle(folder / "bundle")
        lesions = [
            make_lesion(name, RED, seed=n, confirmed_by="clinical")
            for n, name in enumerate(sorted(SEEDS))
        ]
        bundle_id = bundle.manifest.bundle_id
        write_catalogue(folder / "catalogue", lesions, bundle_id=bundle_id).close()
        self.ports = [free_port(), free_port()]
        self.services = [self.start(number) for number in (0, 1)]

    def url(self, number: int) -> str:
        return f"http://127.0.0.1:{self.ports[number]}"

    def start(self, number: int) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "slimp", "serve", "bundle", "catalogue"]
        with (self.folder / f"service-{number}.log").open("ab") as log:
            return subprocess.Popen(
                [*command, "--port", str(self.ports[number])],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            )

    def wait(self, number: int) -> None:
        until = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < until:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url(number)}/readyz", timeout=5).status_code == 200:
                    return
            time.sleep(0.05)
        log = (self.folder / f"service-{number}.log").read_text()[-2000:]
        raise Fault(f"service {number} was not ready within {READY_WITHIN_S} s:\n{log}")

    def kill(self, *numbers: int) -> None:
        """Kill services, so that none of them lives when the first is started again."""
        for number in numbers:
            self.services[number].send_signal(signal.SIGKILL)
        for number in numbers:
            self.services[number].wait()
        for number in numbers:
            self.services[number] = self.start(number)

    def end(self, number: int) -> None:
        """Let a service end in order, which writes its vectors."""
        self.services[number].terminate()
        self.services[number].wait(READY_WITHIN_S)

    def stop(self) -> None:
        for service in self.services:
            service.terminate()
        for service in self.services:
            service.wait()


@contextlib.contextmanager
def two_services(folder: Path) -> Iterator[Site]:
    """Yield a site whose services are both ready; they are ended with it."""
    site = Site(folder)
    try:
        for number in (0, 1):
            site.wait(number)
        yield site
    finally:
        site.stop()


class Writer(threading.Thread):
    """Adds, changes and erases until it is told to stop; keeps the books."""

    def __init__(self, number: int, site: Site, books: Books, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.number, self.site, self.books, self.stopping = number, site, books, stop
        self.rng = random.Random(number)
        self.own: list[str] = []
        self.count = 0

    def run(self) -> None:
        try:
            while not self.stopping.is_set():
                self.write()
        except Fault as fault:
            self.books.faults.append(str(fault))

    def write(self) -> None:
        chosen = self.rng.random()
        if not self.own or chosen < 0.5:
            self.add()
        elif chosen < 0.65:
            self.change(self.rng.choice(self.own))
        elif chosen < 0.8:
            self.change_shared(OWN_FIELDS[self.number % WRITERS])
        else:
            self.erase(self.own.pop(self.rng.randrange(len(self.own))))

    def send(self, method: str, path: str, **content: Any) -> httpx.Response | None:
        """Return the answer of either service; None where the connection broke."""
        url = self.site.url(self.rng.randrange(2))
        try:
            answer = httpx.request(method, url + path, timeout=30, **content)
        except httpx.HTTPError:
            time.sleep(0.05)
            return None
        if answer.status_code in (429, 503):
            time.sleep(0.05)
            return None
        return answer

    def add(self) -> None:
        self.count += 1
        name = f"w{self.number}-{self.count}"
        seed = self.number * 1_000_000 + self.count
        image = draw_image((GREEN, BLUE)[seed % 2], seed=seed)
        content = {
            "files": [("image", ("i.png", image))],
            "data": {"lesion_id": name, "patient_id": f"patient {name}"},
            "headers": {"Idempotency-Key": f"key {name}"},
        }
        answer = self.insist("POST", "/lesions", **content)
        if answer.status_code not in (200, 201):
            raise Fault(f"{name}: {answer.status_code} {answer.text}")
        with self.books.lock:
            self.books.acknowledged += 1
            self.books.repeated += answer.status_code == 200
            self.books.present[name] = None
        self.own.append(name)

    def change(self, name: str) -> None:
        label = f"label {self.rng.randrange(10**6)}"
        self.patch(name, {"label": label, "confirmed_by": "clinical"})
        with self.books.lock:
            self.books.acknowledged += 1
            self.books.present[name] = label

    def change_shared(self, name: str) -> None:
        """Set this writer's own field of the shared lesion, where nobody may have undone it."""
        before = self.insist("GET", f"/lesions/{SHARED}").json()
        if name in self.books.shared and shared_value(before, name) != self.books.shared[name]:
            raise Fault(
                f"{SHARED}: expected {name} {self.books.shared[name]!r}, as acknowledged, got "
                f"{shared_value(before, name)!r}: the change of another field undid it"
            )
        new: dict[str, str | float] = {
            "label": f"label {self.rng.randrange(10**6)}",
            "confirmed_by": self.rng.choice(CONFIRMATIONS),
            "diameter_mm": float(self.rng.randrange(100)),
        }
        value = new[name]
        self.patch(SHARED, {"metadata": {name: value}} if name == "diameter_mm" else {name: value})
        with self.books.lock:
            self.books.acknowledged += 1
            self.books.shared[name] = value

    def patch(self, name: str, body: dict[str, Any]) -> None:
        answer = self.insist("PATCH", f"/lesions/{name}", json=body)
        if answer.status_code != 200:
            raise Fault(f"{name}: {answer.status_code} {answer.text}")

    def insist(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Ask again, as a caller does that got no answer, as often as it takes."""
        for _ in range(200):
            answer = self.send(method, path, **content)
            if answer is not None:
                return answer
            self.books.unanswered += 1
        raise Fault(f"{method} {path}: never answered")

    def erase(self, name: str) -> None:
        with self.books.lock:
            del self.books.present[name]
            self.books.unknown.add(name)
        path = f"/lesions/{name}" if self.rng.random() < 0.5 else f"/patients/patient%20{name}"
        tries = 0
        while (answer := self.send("DELETE", path)) is None and tries < 200:
            tries += 1
            self.books.unanswered += 1
        if answer is None:
            raise Fault(f"{name}: never answered")
        # After a broken connection the first try may have done it.
        if answer.status_code != 200 and not (answer.status_code == 404 and tries):
            raise Fault(f"{name}: {answer.status_code} {answer.text}")
        with self.books.lock:
            self.books.acknowledged += 1
            self.books.unknown.discard(name)
            self.books.gone.add(name)


def shared_value(lesion: dict[str, Any], name: str) -> Any:
    """Return one of `OWN_FIELDS` as a service shows it."""
    return lesion["record"].get(name) if name == "diameter_mm" else lesion[name]


def listed(url: str) -> dict[str, dict[str, Any]]:
    """Return every lesion as it is shown, by id."""
    found: dict[str, dict[str, Any]] = {}
    cursor = ""
    while True:
        page = httpx.get(f"{url}/lesions", params={"cursor": cursor, "limit": 500}, timeout=60)
        page.raise_for_status()
        content = page.json()
        found |= {lesion["lesion_id"]: lesion for lesion in content["lesions"]}
        if content["cursor"] is None:
            return found
        cursor = content["cursor"]


def compare(site: Site, books: Books, number: int) -> None:
    """Ask one service for everything while writers go on: what was settled before must hold."""
    with books.lock:
        present, gone = dict(books.present), set(books.gone)
    found = listed(site.url(number))
    with books.lock:
        still = {name for name in present if name in books.present}
    if lost := still - found.keys():
        raise Fault(f"acknowledged and not there: {sorted(lost)[:5]}")
    if back := gone & found.keys():
        raise Fault(f"erased and back: {sorted(back)[:5]}")


def settle(site: Site, books: Books) -> None:
    """With nobody writing: both services, rows and vectors say the same.

    Raises:
        Fault: they do not.
    """
    for number in (0, 1):
        found = listed(site.url(number))
        labels = {name: lesion["label"] for name, lesion in found.items()}
        wrong = {n for n, label in books.present.items() if labels.get(n, "?") != label}
        if wrong or (books.gone & found.keys()):
            raise Fault(f"service {number}: {sorted(wrong)[:5]} {books.gone & found.keys()}")
        for name, value in books.shared.items():
            if shared_value(found[SHARED], name) != value:
                raise Fault(f"service {number}: {SHARED} lost its {name} {value!r}")
        if extra := found.keys() - books.present.keys() - SEEDS:
            raise Fault(f"service {number} holds what nobody wrote: {sorted(extra)[:5]}")
        for name in sorted(found)[:: max(1, len(found) // LIKENESSES)]:
            compare_similar(site.url(number), name, found.keys())
    ended = books.kills // COMPARE_EVERY % 2
    site.end(ended)
    state = verify(site.folder / "catalogue")
    if state.faults or (state.vectors, state.cache_revision) != (
        state.lesions,
        state.identity.revision,
    ):
        raise Fault(
            f"rows and vectors differ: {state.lesions} and {state.vectors}, revisions "
            f"{state.identity.revision} and {state.cache_revision}, {state.faults[:3]}"
        )
    site.services[ended] = site.start(ended)
    site.wait(ended)


def compare_similar(url: str, name: str, held: Collection[str]) -> None:
    """Ask what is like a lesion: as many as there are, of those that are there, each once."""
    answer = httpx.get(f"{url}/lesions/{name}/similar", params={"k": LIKE}, timeout=60)
    answer.raise_for_status()
    hits = [hit["lesion_id"] for hit in answer.json()["hits"]]
    if len(hits) != min(LIKE, len(held) - 1) or len(set(hits)) != len(hits):
        raise Fault(f"{url}: {len(hits)} lesions like {name}, {len(set(hits))} of them different")
    if strange := set(hits) - set(held):
        raise Fault(f"{url}: like {name} are some that are not there: {sorted(strange)[:5]}")


def kill_under_writes(
    site: Site, books: Books, rng: random.Random, kills: int, both_every: int = BOTH_EVERY
) -> None:
    """Kill so many times while writers write, compare after each, and settle at the end.

    Raises:
        Fault: something acknowledged is not there, something erased is, or a writer met a fault.
    """
    stop = threading.Event()
    writers = [Writer(books.kills * WRITERS + n, site, books, stop) for n in range(WRITERS)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(kills):
            time.sleep(rng.uniform(0, 1.0))
            books.kills += 1
            number = rng.randrange(2)
            if books.kills % both_every == 0:
                site.kill(0, 1)
                # Nobody is left who remembers: what is there comes from the disk.
                site.wait(number)
                compare(site, books, number)
                site.wait(1 - number)
            else:
                site.kill(number)
                compare(site, books, 1 - number)
                site.wait(number)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    if books.faults:
        raise Fault(books.faults[0])
    settle(site, books)


def seen_after(site: Site) -> float:
    """Return the seconds until one service shows what the other has acknowledged."""
    image = draw_image(GREEN, seed=random.randrange(10**9, 2 * 10**9))
    files = [("image", ("i.png", image))]
    answer = httpx.post(f"{site.url(0)}/lesions", files=files, timeout=30)
    answer.raise_for_status()
    started, path = time.perf_counter(), f"/lesions/{answer.json()['lesion_id']}"
    while httpx.get(site.url(1) + path, timeout=30).status_code != 200:
        time.sleep(0.001)
    waited = time.perf_counter() - started
    httpx.delete(site.url(1) + path, timeout=30).raise_for_status()
    return waited


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=300)
    options = parser.parse_args()
    rng, books = random.Random(0), Books()
    with tempfile.TemporaryDirectory() as folder, two_services(Path(folder)) as site:
        while books.kills < options.kills:
            kill_under_writes(site, books, rng, min(COMPARE_EVERY, options.kills - books.kills))
            print(
                f"{books.kills} kills, {books.kills // BOTH_EVERY} of both  {books.acknowledged} "
                f"acknowledged  {books.unanswered} unanswered and sent again, {books.repeated} of "
                "them had counted",
                flush=True,
            )
        waits = sorted(seen_after(site) for _ in range(50))
    print(f"seen by the other service after {waits[25] * 1000:.0f} ms (median of 50)", end=", ")
    print(f"{waits[-1] * 1000:.0f} ms at most")
    if waits[-1] > SEEN_WITHIN_S:
        raise SystemExit(f"expected within {SEEN_WITHIN_S} s")
    print(
        f"no acknowledged write lost, none back: {len(books.present)} there, "
        f"{len(books.gone)} erased"
    )


if __name__ == "__main__":
    main()
