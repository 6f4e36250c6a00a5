"""A service on fakes: three colours, a patient for each, and what is known of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from bundle.calibration import Extrapolation
from index.catalogue import Catalogue
from service.app import create_app
from service.ledger.erasures import Erasures
from service.models import Models
from service.runtime import Runtime
from service.settings import Settings
from tests.fakes import (
    BLUE,
    GREEN,
    RED,
    FakeEncoders,
    make_calibration,
    make_lesion,
    make_manifest,
    make_novelty,
    write_catalogue,
)

# Only lesions of one colour speak for each other; they are one patient's, who has one vote.
SAME_COLOUR = Extrapolation(min_similarity=0.9, min_support=1)
# Lesions of each colour; all of one colour belong to one patient of that colour's name.
EACH = 5
RECORDS: dict[str, dict[str, Any]] = {
    "red": {"anatom_site": "back", "diameter_mm": 4.0, "age_years": 30.0, "sex": "female"},
    "green": {"anatom_site": "scalp", "diameter_mm": 9.0, "age_years": 70.0, "sex": "male"},
    "blue": {"anatom_site": "scalp", "diameter_mm": 6.0, "age_years": 60.0, "sex": "female"},
}


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalogue]:
    """Five lesions of each colour; red-0 to red-4 show `draw_image(RED, seed=100)` and up."""
    lesions = [
        make_lesion(
            f"{name}-{number}",
            colour,
            seed=100 + number,
            patient_id=name,
            record=RECORDS[name],
        )
        for name, colour in (("red", RED), ("green", GREEN), ("blue", BLUE))
        for number in range(EACH)
    ]
    with write_catalogue(tmp_path_factory.mktemp("site") / "catalogue", lesions) as opened:
        yield opened


@pytest.fixture(scope="session")
def make_runtime(catalogue: Catalogue) -> Callable[..., Runtime]:
    """Return a builder of runtimes on fakes; keywords replace parts of the models or runtime."""

    def build(**overrides: Any) -> Runtime:
        parts = {
            "manifest": make_manifest(),
            "calibration": make_calibration(extrapolation=SAME_COLOUR),
            "encoders": FakeEncoders(),
            "novelty": make_novelty(),
            "appearance": None,
        }
        models = Models(**{name: overrides.pop(name, part) for name, part in parts.items()})
        return Runtime(**{"models": models, "catalogue": catalogue, "max_k": 50, **overrides})

    return build


@pytest.fixture(scope="session")
def make_app(make_runtime: Callable[..., Runtime]) -> Callable[..., FastAPI]:
    """Return a builder of apps on fakes; keywords are settings."""

    def build(runtime: Runtime | None = None, **settings: Any) -> FastAPI:
        return create_app(Settings(log_level="error", **settings), runtime or make_runtime())

    return build


@pytest.fixture(scope="session")
def client(make_app: Callable[..., FastAPI]) -> Iterator[TestClient]:
    with TestClient(make_app()) as opened:
        yield opened


@pytest.fixture
def erasures(tmp_path: Path) -> Iterator[Erasures]:
    opened = Erasures(tmp_path / "ledger")
    yield opened
    opened.close()


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Spans that end during the test; the library itself lets a process choose only once."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()
