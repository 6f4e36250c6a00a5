"""/model, /fields, /metrics, the page, the OpenAPI document, and what importing does."""

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from bundle.manifest import RESEARCH_USE
from service.app import create_app
from service.middleware import SECURITY_HEADERS
from service.openapi import openapi_text
from service.routes.page import FOLDER
from service.runtime import Runtime
from service.settings import Settings
from tests.fakes import LABELS, RED, SCHEMA, draw_image
from tests.service.asking import ask

SNAPSHOT = Path(__file__).parent / "openapi.json"


def test_the_model_says_what_it_is_for_and_on_what_evidence(client: TestClient) -> None:
    said = client.get("/model").json()
    assert said["intended_use"] == RESEARCH_USE
    assert tuple(said["labels"]) == LABELS
    assert said["training_prevalence"] == pytest.approx(0.2)
    assert list(said["prevalence"]) == list(LABELS)
    assert sum(said["prevalence"].values()) == pytest.approx(1)
    assert said["site_prevalence"] is None
    assert said["calibration"]["missing"]["coverage"] == pytest.approx(0.9)
    assert said["operating_points"][0]["sensitivity"] == 0.95
    assert said["data"][0]["licence"] == "CC0-1.0"
    assert said["catalogue"]["lesions"] == 15
    assert said["has_context"] is said["has_novelty_check"] is True


def test_a_model_without_a_catalogue_says_so(
    make_app: Callable[..., FastAPI], make_runtime: Callable[..., Runtime]
) -> None:
    with TestClient(make_app(make_runtime(catalogue=None))) as client:
        assert client.get("/model").json()["catalogue"] == {"lesions": 0, "revision": 0}


def test_fields_are_those_of_the_schema(client: TestClient) -> None:
    said = client.get("/fields").json()
    assert [field["name"] for field in said["fields"]] == list(SCHEMA.names)
    age = next(field for field in said["fields"] if field["name"] == "age_years")
    assert age["unit"] == "years"
    assert (age["minimum"], age["maximum"]) == (0, 120)
    assert age["aliases"] == ["age", "age_approx"]
    assert said["missing_words"] == ["", "unk", "unknown"]


def test_metrics_count_requests_by_route_and_lesions_by_reason(client: TestClient) -> None:
    ask(client, "/classify", draw_image(RED, grain=0))
    ask(client, "/risk", draw_image(RED, grain=0))
    client.get("/nowhere/at/all")
    client.request("BREW", "/livez")
    text = client.get("/metrics").text
    assert 'slimp_requests_total{method="POST",route="/classify",status="200"}' in text
    assert 'slimp_requests_total{method="GET",route="unmatched",status="404"}' in text
    assert 'method="OTHER"' in text
    assert "BREW" not in text
    assert "nowhere" not in text
    assert 'slimp_not_assessable_total{reason="blurred"}' in text
    assert "slimp_ready 1.0" in text
    assert "slimp_catalogue_lesions 15.0" in text
    assert 'slimp_work_seconds_count{route="/classify"}' in text


# the page


@pytest.mark.parametrize("path", ["/", "/docs", *(f"/page/{f.name}" for f in FOLDER.iterdir())])
def test_every_answer_forbids_what_the_page_does_not_need(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    assert SECURITY_HEADERS.items() <= dict(response.headers).items() or all(
        response.headers[name] == value for name, value in SECURITY_HEADERS.items()
    )
    assert "unsafe" not in response.headers["content-security-policy"]
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("file", sorted(FOLDER.iterdir()), ids=lambda file: file.name)
def test_the_page_has_nothing_inline_and_nothing_from_another_host(file: Path) -> None:
    text = file.read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|//cdn|@import", text)
    if file.suffix == ".html":
        assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*src=)", text)
        assert "Research use only" in text
    if file.suffix == ".js":
        assert "innerHTML" not in text


# the contract


def test_the_interface_is_the_committed_one() -> None:
    assert openapi_text() == SNAPSHOT.read_text(), (
        "the interface changed: answers may grow, nothing may go; then run "
        "python -m service.openapi > tests/service/openapi.json"
    )


def test_the_document_is_served_and_made_once(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert client.get("/openapi.json").json() == document
    assert document["components"]["schemas"]["ProblemResponse"]["properties"]["code"]
    for verbs in document["paths"].values():
        for verb, operation in verbs.items():
            assert operation["description"]
            errors = operation["responses"].keys() - {"200", "201"}
            for status in errors:
                assert "application/problem+json" in operation["responses"][status]["content"]
            if verb == "post":
                assert {"400", "413", "415", "422", "429", "500", "503"} <= errors


def run_python(code: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return finished.stdout.strip()


def test_the_service_starts_without_training_software() -> None:
    heavy = ("torch", "transformers", "sklearn", "accelerate", "kornia", "matplotlib", "onnx")
    code = "import service.app, service.server, sys; print(*sys.modules)"
    assert not set(heavy) & set(run_python(code).split())


def test_serving_hands_the_settings_to_uvicorn(monkeypatch: pytest.MonkeyPatch) -> None:
    from service import server

    run: list[server.DrainingServer] = []
    monkeypatch.setattr(server.DrainingServer, "run", lambda self: run.append(self))
    server.serve(Settings(host="127.0.0.2", port=9999, request_timeout_s=1.5))
    (told,) = (one.config for one in run)
    assert (told.host, told.port) == ("127.0.0.2", 9999)
    assert told.timeout_graceful_shutdown == 2
    assert told.access_log is False
    assert isinstance(told.app, FastAPI)


def test_the_version_is_known_without_an_installed_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("service.app.version", missing)
    assert create_app(Settings()).version == "0.0.0"
