"""Nothing of an upload is logged, counted or written to disk."""

import asyncio
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from bundle.images import decode_image
from service.logging import make_log
from tests.canaries import CANARY, canary_images, holds
from tests.fakes import RED, draw_image

PATHS = (("/classify", "image"), ("/similar", "image"), ("/embed", "image"), ("/risk", "images"))
SOUND = {200}
REFUSED = {400, 415, 422}


def forms(name: str, data: bytes, path: str) -> Iterator[tuple[set[int], dict[str, Any]]]:
    """Yield forms with the canary around an image, and the statuses that answer them."""
    marked = {"X-Patient": CANARY}
    part = (f"{CANARY}.png", data, f"image/{CANARY}", marked)
    yield SOUND, {"files": {name: part}}
    yield REFUSED, {"files": {name: (f"{CANARY}.png", data[:150] + CANARY.encode())}}
    if path != "/embed":
        kind = "patient" if path == "/risk" else "metadata"
        yield REFUSED, {"files": {name: part}, "data": {kind: f'{{"{CANARY}": "{CANARY}"}}'}}


def test_a_canary_in_every_slot_is_nowhere_afterwards(
    make_app: Callable[..., FastAPI],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    app = make_app()
    app.state.service.log = make_log("debug")
    picture = decode_image(draw_image(RED, size=200))
    asked = 0
    with TestClient(app, headers={"User-Agent": CANARY, "Cookie": f"name={CANARY}"}) as client:
        for slot, data in canary_images(picture):
            for path, name in PATHS:
                for statuses, form in forms(name, data, path):
                    response = client.post(path, **form)
                    assert response.status_code in statuses, (slot, path, response.text)
                    # A field that is unknown is named to who sent it, and to nobody else.
                    if "data" not in form:
                        assert not holds(response.content), (slot, path)
                    assert not holds(str(response.headers).encode()), (slot, path)
                    asked += 1
        client.get(f"/lesions/{CANARY}/similar?filter={CANARY}")
        client.get(f"/{CANARY}?{CANARY}={CANARY}")
        metrics = client.get("/metrics").content
    logged = capsys.readouterr()
    assert asked > 400
    assert '"event": "request"' in logged.out
    assert not holds((logged.out + logged.err).encode())
    assert not holds(metrics)
    assert list(tmp_path.iterdir()) == []


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
