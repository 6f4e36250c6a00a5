"""What an erasure drops from the disk comes back while the service runs."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from index.catalogue import Catalogue
from service import keeping
from service.ledger.erasures import Erasures
from service.runtime import Runtime
from tests.fakes import GREEN, RED, make_lesion, write_catalogue

SOON_S = 10.0


def until(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + SOON_S
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    return holds()


@pytest.fixture
def own(tmp_path: Path) -> Catalogue:
    lesions = [make_lesion(f"lesion-{n}", (RED, GREEN)[n % 2], seed=n) for n in range(6)]
    catalogue = write_catalogue(tmp_path / "catalogue", lesions)
    catalogue.save()
    return catalogue


@pytest.fixture
def erasures(tmp_path: Path) -> Iterator[Erasures]:
    opened = Erasures(tmp_path / "ledger")
    yield opened
    opened.close()


def test_the_vectors_are_on_disk_again_after_an_erasure(
    own: Catalogue,
    erasures: Erasures,
    make_runtime: Callable[..., Runtime],
    make_app: Callable[..., FastAPI],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeping, "LOOK_S", 0.02)
    saved: list[int] = []
    save = own.save

    def noted() -> None:
        saved.append(own.revision)
        save()

    monkeypatch.setattr(own, "save", noted)
    with own, TestClient(make_app(make_runtime(catalogue=own, erasures=erasures))) as client:
        assert own.is_kept
        assert client.delete("/lesions/lesion-1").status_code == 200
        assert until(lambda: own.is_kept)
        # Not again and again: a file that is there is left alone.
        time.sleep(0.2)
        assert saved == [own.revision]
        copy = Catalogue.open(own.path, bundle_id=own.bundle_id, variant=own.variant)
        assert len(copy) == 5
        copy.close()


def test_a_disk_that_is_full_is_logged_and_tried_again(
    own: Catalogue,
    erasures: Erasures,
    make_runtime: Callable[..., Runtime],
    make_app: Callable[..., FastAPI],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeping, "LOOK_S", 0.02)
    save, tried = own.save, []

    def full() -> Any:
        tried.append(1)
        if len(tried) < 3:
            raise OSError(28, "No space left on device")
        save()

    monkeypatch.setattr(own, "save", full)
    with own, TestClient(make_app(make_runtime(catalogue=own, erasures=erasures))) as client:
        assert client.delete("/lesions/lesion-1").status_code == 200
        assert until(lambda: own.is_kept)
        assert len(tried) == 3
        assert client.get("/readyz").status_code == 200
