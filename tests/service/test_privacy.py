"""Nothing of an upload but its pixels is answered, logged, counted, traced or written to disk."""

import asyncio
import io
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from bundle.images import decode_image
from service.ledger.audit import open_audit
from service.ledger.database import FILE
from service.ledger.erasures import Erasures
from service.logging import make_log
from service.runtime import Runtime
from tests.canaries import CANARY, canary_images, holds
from tests.fakes import BLUE, RED, draw_image, make_lesion, write_catalogue

PATHS = (
    ("/classify", "image"),
    ("/similar", "image"),
    ("/embed", "image"),
    ("/risk", "images"),
    ("/lesions", "image"),
)
SOUND = {200, 201}
REFUSED = {400, 415, 422}
# What every request carries beside its form.
MARKED = {
    "User-Agent": CANARY,
    "Cookie": f"name={CANARY}",
    "X-Request-ID": CANARY,
    "Referer": f"http://localhost/{CANARY}",
    "Priority": CANARY,
    "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01",
    "tracestate": f"patient={CANARY}",
    "baggage": f"patient={CANARY}",
}


def forms(name: str, data: bytes, path: str) -> Iterator[tuple[set[int], dict[str, Any]]]:
    """Yield forms with the canary around an image, and the statuses that answer them."""
    marked = {"X-Patient": CANARY}
    part = (f"{CANARY}.png", data, f"image/{CANARY}", marked)
    yield SOUND, {"files": {name: part}}
    yield REFUSED, {"files": {name: (f"{CANARY}.png", data[:150] + CANARY.encode())}}
    if path != "/embed":
        kind = "patient" if path == "/risk" else "metadata"
        yield REFUSED, {"files": {name: part}, "data": {kind: f'{{"{CANARY}": "{CANARY}"}}'}}


def planted() -> Iterator[tuple[str, bytes]]:
    """Yield every slot with a picture of its own: the catalogue takes a picture once."""
    for slot in itertools.count():
        picture = decode_image(draw_image(RED, size=200, seed=1000 + slot))
        found = list(itertools.islice(canary_images(picture), slot, slot + 1))
        if not found:
            return
        yield found[0]


def ask_all(client: TestClient) -> int:
    """Send every slot to every route that takes a picture; return how many requests it took."""
    asked = 0
    for number, (slot, data) in enumerate(planted()):
        for path, name in PATHS:
            for statuses, form in forms(name, data, path):
                key = {"Idempotency-Key": f"{CANARY} {number}"} if path == "/lesions" else {}
                response = client.post(path, headers=key, **form)
                assert response.status_code in statuses, (slot, path, response.text)
                # A field that is unknown is named to who sent it, and to nobody else.
                if "data" not in form:
                    assert not holds(response.content), (slot, path)
                assert not holds(str(response.headers).encode()), (slot, path)
                asked += 1
    client.get(f"/lesions/{CANARY}/similar?filter={CANARY}")
    client.get(f"/{CANARY}?{CANARY}={CANARY}")
    client.patch(f"/lesions/{CANARY}", json={CANARY: CANARY})
    client.patch("/lesions/seed", json={"label": CANARY})
    client.delete(f"/patients/{CANARY}")
    return asked


def holding(folder: Path) -> list[str]:
    """Return the files below a folder that hold the canary."""
    files = [each for each in folder.rglob("*") if each.is_file()]
    return [str(each) for each in files if holds(each.read_bytes())]


def test_a_canary_in_every_slot_is_nowhere_afterwards(
    make_app: Callable[..., FastAPI],
    make_runtime: Callable[..., Runtime],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spans: InMemorySpanExporter,
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    catalogue = write_catalogue(tmp_path / "catalogue", [make_lesion("seed", BLUE)])
    erasures = Erasures(tmp_path / "ledger")
    runtime = make_runtime(catalogue=catalogue, erasures=erasures)
    app = make_app(runtime, ledger=tmp_path / "ledger")
    app.state.service.log = make_log("debug")
    with TestClient(app, headers=MARKED) as client:
        asked = ask_all(client)
        metrics = client.get("/metrics").content
        # Databases are open: what was written last lies in the files beside them.
        assert holding(tmp_path) == []
    slots = len(catalogue) - 1
    runtime.close()
    logged = capsys.readouterr()
    assert asked == slots * sum(2 if path == "/embed" else 3 for path, _ in PATHS)
    assert slots > 40
    with open_audit(tmp_path / "ledger") as audit:
        assert audit.verify().rows > asked
    assert {each.name for each in tmp_path.glob("*/*")} >= {
        "catalogue.sqlite",
        "vectors.faiss",
        FILE,
    }
    assert holding(tmp_path) == []
    assert list(temporary.iterdir()) == []
    assert '"event": "request"' in logged.out
    assert not holds((logged.out + logged.err).encode())
    assert not holds(metrics)
    ended = spans.get_finished_spans()
    assert "POST /lesions" in {span.name for span in ended}
    assert [span.name for span in ended if holds(span.to_json().encode())] == []


def test_log_lines_below_the_level_are_not_written() -> None:
    stream = io.StringIO()
    log = make_log("warning", stream)
    log.info("quiet")
    log.warning("loud", code=7)
    assert "quiet" not in stream.getvalue()
    assert '"event": "loud"' in stream.getvalue()


def test_a_caller_that_goes_away_while_sending_is_counted_and_nothing_else(
    make_app: Callable[..., FastAPI],
) -> None:
    app = make_app()
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/classify",
        "raw_path": b"/classify",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "server": ("test", 80),
        "client": ("test", 1),
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", b"multipart/form-data; boundary=line"),
        ],
    }
    asyncio.run(app(scope, receive, send))
    assert sent == []
    text = app.state.service.metrics.expose().decode()
    assert 'slimp_requests_total{method="POST",route="/classify",status="499"} 1.0' in text
