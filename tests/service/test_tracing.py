"""Spans of requests and stages: what they say, and what they do not."""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import BoundedSemaphore

import pytest
from fastapi import FastAPI
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from starlette.testclient import TestClient

from bundle.calibration import FloatArray
from bundle.errors import InferenceError, InvalidSettings
from service.runtime import Runtime
from service.settings import Settings
from service.tracing import start_tracing
from tests.fakes import RED, FakeEncoders, draw_image
from tests.service.asking import ask
from tests.service.test_scheduling import wait_for

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
    assert {span["name"] for span in stages} == {"wait", "decode", "infer", "search"}
    assert {span["parent"] for span in stages} == {request["span"]}
    for word in ("canary", "female"):
        assert word not in done.stdout


@dataclass(frozen=True)
class Broken(FakeEncoders):
    """A model that fails and repeats what it was shown."""

    error: Exception = field(default_factory=lambda: RuntimeError("Jane Doe"))

    def embed_images(self, pixels: FloatArray) -> FloatArray:
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("Jane Doe"), InferenceError("Jane Doe")])
def test_a_span_says_of_an_exception_its_type_alone(
    make_app: Callable[..., FastAPI],
    make_runtime: Callable[..., Runtime],
    spans: InMemorySpanExporter,
    error: Exception,
) -> None:
    """One error that nobody foresaw, and one that is answered by its own name."""
    with TestClient(make_app(make_runtime(encoders=Broken(error=error)))) as client:
        assert ask(client, "/classify", draw_image(RED)).status_code == 500
    ended = {span.name: span for span in spans.get_finished_spans()}
    assert ended.keys() == {"wait", "decode", "infer", "POST /classify"}
    infer, request = ended["infer"], ended["POST /classify"]
    assert dict(infer.attributes or {}) == {"error.type": type(error).__qualname__}
    assert {name: span.status.status_code for name, span in ended.items()} == {
        "wait": StatusCode.UNSET,
        "decode": StatusCode.UNSET,
        "infer": StatusCode.ERROR,
        "POST /classify": StatusCode.ERROR,
    }
    assert [each.status.description for each in (infer, request)] == [None, None]
    assert [event for span in ended.values() for event in span.events] == []
    assert "Jane" not in "".join(span.to_json() for span in ended.values())


def test_of_the_callers_trace_the_ids_are_taken_and_no_word(
    client: TestClient, spans: InMemorySpanExporter
) -> None:
    words = {"tracestate": "jane=doe", "baggage": "jane=doe"}
    client.get("/livez", headers={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", **words})
    (span,) = spans.get_finished_spans()
    assert span.context is not None
    assert format(span.context.trace_id, "032x") == "ab" * 16
    assert dict(span.context.trace_state) == {}
    assert "jane" not in span.to_json()


def test_waiting_to_decode_is_a_stage_of_its_own(
    make_app: Callable[..., FastAPI], make_runtime: Callable[..., Runtime]
) -> None:
    turns = BoundedSemaphore(1)
    runtime = make_runtime()
    runtime = replace(runtime, models=replace(runtime.models, decoding=turns))
    app = make_app(runtime)
    with TestClient(app) as client, ThreadPoolExecutor(1) as callers:
        with turns:
            waiting = callers.submit(ask, client, "/embed", draw_image(RED))
            wait_for(lambda: app.state.service.scheduler.admitted == 1)
            time.sleep(0.3)
            assert not waiting.done()
        assert waiting.result().status_code == 200
        metrics = client.get("/metrics").text
    spent = re.findall(r'^slimp_stage_seconds_sum{stage="(\w+)"} (\S+)$', metrics, re.MULTILINE)
    seconds = {name: float(text) for name, text in spent}
    assert seconds.keys() == {"wait", "decode", "infer"}
    assert seconds["wait"] > 0.25


def test_similar_lesions_of_one_of_the_catalogue_are_a_search(
    client: TestClient, spans: InMemorySpanExporter
) -> None:
    assert client.get("/lesions/red-0/similar").status_code == 200
    assert "search" in [span.name for span in spans.get_finished_spans()]


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
