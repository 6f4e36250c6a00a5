"""Nothing of an upload is logged, counted or written to disk."""

import asyncio
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from PIL import Image, PngImagePlugin
from starlette.testclient import TestClient

from service.logging import make_log
from tests.fakes import RED, draw_image

CANARY = "JaneDoeCanary"


def marked_image() -> bytes:
    """Return a picture with the canary in its text and comment."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", CANARY)
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(draw_image(RED, size=700))) as image:
        image.save(buffer, "PNG", pnginfo=text)
    assert CANARY.encode() in buffer.getvalue()
    return buffer.getvalue()


def test_a_canary_in_every_slot_is_nowhere_afterwards(
    make_app: Callable[..., FastAPI],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    app = make_app()
    app.state.service.log = make_log("debug")
    with TestClient(app) as client:
        for path, name in (("/classify", "image"), ("/similar", "image"), ("/risk", "images")):
            files = {name: (f"{CANARY}.png", marked_image(), f"image/{CANARY}")}
            kind = "patient" if path == "/risk" else "metadata"
            good = client.post(path, files=files, data={kind: '{"sex": "female"}'})
            assert good.status_code == 200
            assert CANARY not in good.text
            bad = client.post(path, files=files, data={kind: f'{{"{CANARY}": "{CANARY}"}}'})
            assert bad.status_code == 422
        client.get(f"/lesions/{CANARY}/similar?filter={CANARY}")
        metrics = client.get("/metrics").text
    logged = capsys.readouterr()
    assert '"event": "request"' in logged.out
    assert CANARY not in logged.out + logged.err + metrics
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
