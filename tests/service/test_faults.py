"""What breaks under a service is named, harms nobody else, and heals when its cause goes."""

import contextlib
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

import service.checks
import service.state
from bundle.calibration import FloatArray
from index import cache
from service.app import create_app
from service.ledger.database import FILE
from service.runtime import Runtime
from service.settings import Settings
from tests.fakes import RED, FakeEncoders, draw_image, make_lesion, write_bundle, write_catalogue
from tests.ports import free_port
from tests.service.asking import answer, ask, assert_error


@dataclass(frozen=True)
class Sick(FakeEncoders):
    """Encoders that do what they are told to."""

    illness: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def embed_images(self, pixels: FloatArray) -> FloatArray:
        embedded = super().embed_images(pixels)
        if "nan" in self.illness:
            return embedded * np.float32(np.nan)
        if "raise" in self.illness:
            raise RuntimeError("secret")
        if "hang" in self.illness:
            self.released.wait(30)
        return embedded


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks are made anew for every probe."""
    monkeypatch.setattr(service.checks, "AGAIN_S", 0.0)
    monkeypatch.setattr(service.state, "LOAD_AGAIN_S", 0.1)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site's folder: a real bundle and its catalogue."""
    bundle = write_bundle(tmp_path / "bundle")
    lesions = [make_lesion(f"red-{n}", RED, seed=n) for n in range(4)]
    bundle_id = bundle.manifest.bundle_id
    write_catalogue(tmp_path / "catalogue", lesions, bundle_id=bundle_id).close()
    return tmp_path


def settings(site: Path, **changed: Any) -> Settings:
    return Settings(
        bundle=site / "bundle", catalogue=site / "catalogue", log_level="error", **changed
    )


@contextlib.contextmanager
def serving(site: Path, **changed: Any) -> Iterator[TestClient]:
    with TestClient(create_app(settings(site, **changed))) as client:
        yield client


def wait_for(client: TestClient, status: int, *, within: float = 20) -> str:
    until = time.monotonic() + within
    while time.monotonic() < until:
        response = client.get("/readyz")
        if response.status_code == status:
            return response.text
        time.sleep(0.05)
    raise AssertionError(f"expected {status} within {within} s, got {response.text}")


@pytest.mark.parametrize(("illness", "status"), [("nan", 500), ("raise", 500)])
def test_inference_that_fails_is_named_and_heals(
    make_app: Callable[..., FastAPI],
    make_runtime: Callable[..., Runtime],
    eager: None,
    illness: str,
    status: int,
) -> None:
    encoders = Sick()
    with TestClient(make_app(make_runtime(encoders=encoders))) as client:
        answer(client, "/classify", draw_image(RED))
        encoders.illness.append(illness)
        response = ask(client, "/classify", draw_image(RED))
        assert response.status_code == status
        assert "secret" not in response.text
        assert_error(client.get("/readyz"), 503, "unhealthy", "inference")
        encoders.illness.clear()
        answer(client, "/classify", draw_image(RED))
        assert client.get("/readyz").status_code == 200


def test_inference_that_fails_while_a_request_is_inside_is_told_until_it_heals(
    make_app: Callable[..., FastAPI], make_runtime: Callable[..., Runtime], eager: None
) -> None:
    """A busy service is not idle for a moment: whoever is inside stands for its load."""
    encoders = Sick()
    app = make_app(make_runtime(encoders=encoders), max_concurrency=2)
    with TestClient(app) as client, ThreadPoolExecutor(1) as callers:
        encoders.illness.append("hang")
        inside = callers.submit(ask, client, "/embed", draw_image(RED))
        wait_until(lambda: app.state.service.scheduler.admitted == 1, within=10)
        assert client.get("/readyz").status_code == 200
        encoders.illness[:] = ["nan"]
        assert_error(ask(client, "/embed", draw_image(RED)), 500, "inference_error")
        # The second time no other request has failed since.
        for _ in range(2):
            assert_error(client.get("/readyz"), 503, "unhealthy", "inference")
        encoders.illness.clear()
        assert client.get("/readyz").status_code == 200
        assert not inside.done()
        encoders.released.set()
        assert inside.result().status_code == 200


def test_inference_that_hangs_is_answered_in_time_and_told(
    make_app: Callable[..., FastAPI], make_runtime: Callable[..., Runtime], eager: None
) -> None:
    encoders = Sick()
    app = make_app(make_runtime(encoders=encoders), request_timeout_s=0.3, max_concurrency=1)
    with TestClient(app) as client:
        encoders.illness.append("hang")
        assert_error(ask(client, "/classify", draw_image(RED)), 503, "timed_out")
        assert_error(client.get("/readyz"), 503, "stalled")
        assert client.get("/livez").status_code == 200
        encoders.illness.clear()
        encoders.released.set()
        wait_for(client, 200)
        answer(client, "/classify", draw_image(RED))


def test_a_process_that_stays_stalled_ends_itself(
    make_app: Callable[..., FastAPI],
    make_runtime: Callable[..., Runtime],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(service.state, "WATCH_S", 0.05)
    encoders = Sick(illness=["hang"])
    limits = {"request_timeout_s": 0.2, "max_concurrency": 1, "stall_exit_s": 0.2}
    with TestClient(make_app(make_runtime(encoders=encoders), **limits)) as client:
        ask(client, "/classify", draw_image(RED))
        until = time.monotonic() + 10
        while not ended and time.monotonic() < until:
            time.sleep(0.05)
        encoders.released.set()
    assert ended[0] == 70


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_a_damaged_index_is_named_and_served_when_it_is_mended(
    site: Path, eager: None, damage: str
) -> None:
    vectors = site / "catalogue" / cache.VECTORS
    content = vectors.read_bytes()
    if damage == "missing":
        vectors.unlink()
    else:
        vectors.write_bytes(content[:-9] if damage == "truncated" else content[:-1] + b"x")
    with serving(site) as client:
        said = wait_for(client, 503)
        while "load_failed" not in said:
            said = wait_for(client, 503)
        assert "vectors.faiss" in said
        assert_error(ask(client, "/classify", draw_image(RED)), 503, "load_failed")
        cache.drop_cache(site / "catalogue")
        wait_for(client, 200)
        answer(client, "/classify", draw_image(RED, seed=77))


def test_a_bundle_that_is_not_there_yet_is_served_when_it_comes(site: Path, eager: None) -> None:
    (site / "bundle").rename(site / "later")
    with serving(site) as client:
        while "load_failed" not in wait_for(client, 503):
            pass
        (site / "later").rename(site / "bundle")
        wait_for(client, 200)


def test_a_locked_database_is_waited_for_and_named(site: Path, eager: None) -> None:
    with serving(site, request_timeout_s=1) as client:
        wait_for(client, 200)
        holder = sqlite3.connect(site / "catalogue" / "catalogue.sqlite", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        # Whoever only reads is not held up.
        answer(client, "/similar", draw_image(RED, seed=77))
        files = {"image": ("i.png", draw_image(RED, seed=78))}
        assert_error(client.post("/lesions", files=files), 503, "timed_out")
        holder.execute("ROLLBACK")
        holder.close()
        wait_for(client, 200)
        # Who was told to ask again had changed nothing, nor does later.
        assert client.post("/lesions", files=files).status_code == 201


def test_a_database_that_is_gone_is_named_until_it_is_back(site: Path, eager: None) -> None:
    database = site / "catalogue" / "catalogue.sqlite"
    with serving(site) as client:
        wait_for(client, 200)
        database.rename(site / "elsewhere")
        assert_error(client.get("/readyz"), 503, "unhealthy", "catalogue.sqlite is gone")
        assert "slimp_ready 0.0" in client.get("/metrics").text
        (site / "elsewhere").rename(database)
        wait_for(client, 200)
        assert "slimp_ready 1.0" in client.get("/metrics").text
        answer(client, "/similar", draw_image(RED, seed=77))


@pytest.mark.parametrize(
    ("audit", "read", "added"),
    [("true", 503, "ledger_error"), ("false", 200, "catalogue_error")],
)
def test_a_disk_that_refuses_every_byte_is_told_and_healed(
    site: Path, audit: str, read: int, added: str
) -> None:
    """A file size of 0 stands for a disk that went read-only; its databases are open already."""
    environment = {"SLIMP_AUDIT": audit}
    with running(site, environment, log=Path(os.devnull)) as (client, process):
        files = {"image": ("i.png", draw_image(RED, seed=78))}
        _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        assert client.post("/similar", files=files).status_code == read
        assert_error(client.post("/lesions", files=files), 503, added)
        wait_until(lambda: client.get("/readyz").status_code == 503, within=20)
        # Where the link led when the catalogue was opened.
        folders = ["catalogue"] if audit == "false" else ["ledger", "catalogue"]
        said = assert_error(client.get("/readyz"), 503, "unhealthy", *folders)["detail"]
        assert said.count("cannot be written (File too large)") == len(folders)
        assert client.get("/livez").status_code == 200
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
        wait_until(lambda: client.get("/readyz").status_code == 200, within=20)
        assert client.post("/lesions", files=files).status_code == 201


def test_a_ledger_that_is_full_or_gone_is_named_and_nothing_is_answered(
    site: Path, eager: None
) -> None:
    with serving(site) as client:
        wait_for(client, 200)
        with sqlite3.connect(site / "ledger" / FILE) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(
                "CREATE TRIGGER full BEFORE INSERT ON audit BEGIN "
                "SELECT RAISE(ABORT, 'database or disk is full'); END"
            )
        assert_error(ask(client, "/classify", draw_image(RED)), 503, "ledger_error")
        with sqlite3.connect(site / "ledger" / FILE) as connection:
            connection.execute("DROP TRIGGER full")
        answer(client, "/classify", draw_image(RED))


def test_a_full_disk_is_told_before_it_hurts(
    site: Path,
    eager: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usage = shutil.disk_usage(site)
    with serving(site) as client:
        wait_for(client, 200)
        full = usage._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
        for _ in range(2):
            assert_error(client.get("/readyz"), 503, "unhealthy", "disk", "1000 bytes")
        said = [line for line in capsys.readouterr().out.splitlines() if '"unhealthy"' in line]
        assert len(said) == 1
        assert "1000 bytes" in said[0]
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
        wait_for(client, 200)


def test_a_write_that_the_disk_refuses_changes_nothing(site: Path, eager: None) -> None:
    """SQLite's own page limit stands for a disk that is full."""
    with serving(site) as client:
        wait_for(client, 200)
        with sqlite3.connect(site / "catalogue" / "catalogue.sqlite") as connection:
            connection.execute(
                "CREATE TRIGGER full BEFORE INSERT ON lesion BEGIN "
                "SELECT RAISE(ABORT, 'database or disk is full'); END"
            )
        files = {"image": ("i.png", draw_image(RED, seed=78))}
        content = assert_error(client.post("/lesions", files=files), 503, "catalogue_error")
        assert "sqlite" not in content["detail"]
        with sqlite3.connect(site / "catalogue" / "catalogue.sqlite") as connection:
            connection.execute("DROP TRIGGER full")
        assert len(client.get("/lesions").json()["lesions"]) == 4
        assert client.post("/lesions", files=files).status_code == 201


WORKERS = 2


@contextlib.contextmanager
def running(
    site: Path, settings: dict[str, str], log: Path | None = None
) -> Iterator[tuple[httpx.Client, "subprocess.Popen[bytes]"]]:
    """Yield a client of a service in processes of its own, ready, on links that can be turned.

    Its log goes to the site's folder, or to the file that is named.
    """
    (site / "served").symlink_to("bundle")
    (site / "searched").symlink_to("catalogue")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLIMP_")}
    port = str(free_port())
    with (log or site / "log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "slimp", "serve", "served", "searched", "--port", port],
            cwd=site,
            stdout=output,
            stderr=output,
            env={**environment, **settings, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                until = time.monotonic() + 90
                while time.monotonic() < until and process.poll() is None:
                    with contextlib.suppress(httpx.HTTPError):
                        if client.get("/readyz").status_code == 200:
                            break
                    time.sleep(0.2)
                assert process.poll() is None
                yield client, process
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture
def workers(site: Path) -> Iterator[tuple[httpx.Client, "subprocess.Popen[bytes]"]]:
    """A service of two workers behind one port."""
    # Handed on to the workers as it came: JSON.
    scopes = {"SLIMP_OIDC_SCOPES": '{"dermatology": "read"}'}
    with running(site, {"SLIMP_WORKERS": str(WORKERS), **scopes}) as found:
        yield found


def test_one_process_that_is_told_to_swap_goes_on_and_says_what_is_needed(site: Path) -> None:
    files = {"image": ("i.png", draw_image(RED, seed=79))}
    with running(site, {}) as (client, process):
        # Many times, while lines are logged: the handler must not wait for the log's lock.
        for _ in range(100):
            process.send_signal(signal.SIGHUP)
            assert client.get("/livez").status_code == 200
        wait_until(lambda: b"SLIMP_WORKERS=2" in (site / "log").read_bytes(), within=30)
        assert client.post("/classify", files=files).status_code == 200
        assert process.poll() is None


def children(pid: int) -> list[int]:
    """Return the pids of a process's own workers, by what the kernel says."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    found = [int(child) for task in tasks for child in task.read_text().split()]
    return [
        child
        for child in found
        if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def test_workers_are_replaced_and_bundles_swapped_without_a_lost_request(
    site: Path, workers: tuple[httpx.Client, "subprocess.Popen[bytes]"]
) -> None:
    client, process = workers
    first = client.get("/model").json()["bundle_id"]
    other = write_bundle(site / "other bundle", data=())
    lesions = [make_lesion(f"other-{n}", RED, seed=n) for n in range(2)]
    bundle_id = other.manifest.bundle_id
    assert bundle_id != first
    write_catalogue(site / "other catalogue", lesions, bundle_id=bundle_id).close()
    lost: list[str] = []
    seen: list[str] = []
    stop = threading.Event()

    def ask_on(connection: str) -> None:
        with httpx.Client(base_url=client.base_url, timeout=30) as own:
            while not stop.is_set():
                try:
                    response = own.get("/model", headers={"Connection": connection})
                except httpx.HTTPError as error:
                    lost.append(repr(error))
                    continue
                if response.status_code != 200:
                    lost.append(response.text)
                seen.append(response.json()["bundle_id"])

    callers = [threading.Thread(target=ask_on, args=(c,)) for c in ("close", "keep-alive")]
    for caller in callers:
        caller.start()
    try:
        turn(site, "other bundle", "other catalogue")
        swap(process, seen, bundle_id)
        turn(site, "bundle", "catalogue")
        swap(process, seen, first)
        # A bundle that cannot be served is not swapped in.
        turn(site, "nowhere", "catalogue")
        kept = set(children(process.pid))
        process.send_signal(signal.SIGHUP)
        log = site / "log"
        wait_until(lambda: log.read_bytes().count(b"load_failed") == 1, within=60)
        wait_until(lambda: kept == set(children(process.pid)), within=60)
        assert set(seen[-5:]) == {first}
        turn(site, "bundle", "catalogue")
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert lost == []
    assert len(seen) > 20
    victim = children(process.pid)[0]
    os.kill(victim, 9)
    wait_until(lambda: victim not in children(process.pid), within=60)
    wait_until(lambda: len(children(process.pid)) == WORKERS, within=60)
    assert client.get("/livez").status_code == 200


def test_workers_that_are_told_to_stop_answer_whoever_is_inside(
    workers: tuple[httpx.Client, "subprocess.Popen[bytes]"],
) -> None:
    client, process = workers
    files = {"image": ("i.png", draw_image(RED, seed=79))}
    statuses: list[int] = []
    lost: list[str] = []

    def ask_until_told() -> None:
        with httpx.Client(base_url=client.base_url, timeout=30) as own:
            while True:
                try:
                    statuses.append(own.post("/classify", files=files).status_code)
                except httpx.ConnectError:
                    # The answer before had said that it was the connection's last.
                    return
                except httpx.HTTPError as error:
                    lost.append(repr(error))
                    return
                if statuses[-1] == 503:
                    return

    callers = [threading.Thread(target=ask_until_told) for _ in range(4)]
    for caller in callers:
        caller.start()
    until = time.monotonic() + 30
    while len(statuses) < 20 and time.monotonic() < until:
        time.sleep(0.05)
    process.terminate()
    for caller in callers:
        caller.join(60)
    assert process.wait(60) == 0
    assert lost == []
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= 20


def wait_until(holds: Callable[[], bool], *, within: float) -> None:
    until = time.monotonic() + within
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.1)


def turn(site: Path, bundle: str, catalogue: str) -> None:
    """Turn both links, each in one step."""
    for link, target in (("served", bundle), ("searched", catalogue)):
        (site / "new").symlink_to(target)
        (site / "new").replace(site / link)


def swap(process: "subprocess.Popen[bytes]", seen: list[str], bundle_id: str) -> None:
    """Have all workers replaced, and see that what is answered is the other bundle's."""
    before = set(children(process.pid))
    process.send_signal(signal.SIGHUP)
    wait_until(lambda: before.isdisjoint(children(process.pid)), within=90)
    wait_until(lambda: len(children(process.pid)) == WORKERS, within=90)
    wait_until(lambda: set(seen[-40:]) == {bundle_id}, within=90)
