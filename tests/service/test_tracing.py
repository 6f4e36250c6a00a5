"""Spans of requests and stages; in a process of its own, for a tracer is set once a process."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from bundle.errors import InvalidSettings
from service.settings import Settings
from service.tracing import start_tracing

SCRIPT = """
import json, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pathlib import Path
from starlette.testclient import TestClient
from service.app import create_app
from service.models import Models
from service.runtime import Runtime
from service.settings import Settings
from tests.fakes import (RED, FakeEncoders, draw_image, make_calibration, make_lesion,
    make_manifest, make_novelty, write_catalogue)
spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)
catalogue = write_catalogue(Path(sys.argv[1]), [make_lesion("a", RED)])
models = Models(make_manifest(), make_calibration(), FakeEncoders(), make_novelty())
with TestClient(create_app(Settings(log_level="error"), Runtime(models, catalogue))) as client:
    parent = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    client.post(
        "/similar",
        files={"image": ("canary.png", draw_image(RED, seed=3))},
        data={"metadata": '{"sex": "female"}'},
        headers={"traceparent": parent, "Host": "localhost"},
    )
    client.delete("/patients/canary-patient", headers={"Host": "localhost"})
print(json.dumps([
    {
        "name": span.name,
        "trace": format(span.context.trace_id, "032x"),
        "parent": None if span.parent is None else format(span.parent.span_id, "016x"),
        "span": format(span.context.span_id, "016x"),
        "attributes": {k: str(v) for k, v in span.attributes.items()},
    }
    for span in spans.get_finished_spans()
]))
"""


def test_a_request_is_a_span_with_one_a_stage_and_nothing_that_was_sent(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "catalogue")],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    spans = json.loads(done.stdout.splitlines()[-1])
    (request,) = (span for span in spans if span["name"] == "POST /similar")
    assert request["trace"] == "ab" * 16
    assert request["parent"] == "cd" * 8
    assert request["attributes"]["http.response.status_code"] == "200"
    stages = [span for span in spans if span["trace"] == "ab" * 16 and span is not request]
    assert "DELETE /patients/{patient_id:path}" in [span["name"] for span in spans]
    assert {span["name"] for span in stages} == {"decode", "infer", "search"}
    assert {span["parent"] for span in stages} == {request["span"]}
    for word in ("canary", "female"):
        assert word not in done.stdout


def test_spans_reach_the_collector_that_is_named(tmp_path: Path) -> None:
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            received.append((self.path, self.rfile.read(size)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        code = (
            "from service.settings import Settings\n"
            "from service.tracing import start_tracing\n"
            "from opentelemetry import trace\n"
            f"start_tracing(Settings(otlp_endpoint='http://127.0.0.1:{server.server_port}/v1/traces'))\n"
            "with trace.get_tracer('slimp').start_as_current_span('a span'):\n    pass\n"
            "trace.get_tracer_provider().shutdown()\n"
        )
        subprocess.run(
            [sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=60
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert [path for path, _ in received] == ["/v1/traces"]
    assert b"a span" in gunzip(received[0][1])


def gunzip(body: bytes) -> bytes:
    import gzip

    return gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body


def test_traces_without_their_extra_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(InvalidSettings, match=r"slimp\[otel\]"):
        start_tracing(Settings(otlp_endpoint="http://127.0.0.1:9/v1/traces"))
    start_tracing(Settings())
