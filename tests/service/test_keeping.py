"""What an erasure drops from the disk comes back while the service runs."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from index.catalogue import Catalogue
from service import keeping
from service.ledger.erasures import Erasures
from service.runtime import Runtime
from tests.fakes import GREEN, RED, make_lesion, write_catalogue
from tests.service.test_scheduling import wait_for


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Catalogue]:
    lesions = [make_lesion(f"lesion-{n}", (RED, GREEN)[n % 2], seed=n) for n in range(6)]
    with write_catalogue(tmp_path / "catalogue", lesions) as catalogue:
        catalogue.save()
        yield catalogue


@pytest.fixture
def client(
    own: Catalogue,
    erasures: Erasures,
    make_runtime: Callable[..., Runtime],
    make_app: Callable[..., FastAPI],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[TestClient]:
    """A service of that catalogue that looks after its vectors all the time."""
    monkeypatch.setattr(keeping, "LOOK_S", 0.02)
    with TestClient(make_app(make_runtime(catalogue=own, erasures=erasures))) as opened:
        yield opened


def test_the_vectors_are_on_disk_again_after_an_erasure(
    own: Catalogue, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = own.save

    def noted() -> None:
        save()
        # Known afterwards only: a look may fall between the file's leaving and the commit, for
        # which saving then waits.
        saved.append(own.revision)

    monkeypatch.setattr(own, "save", noted)
    assert own.is_kept
    assert client.delete("/lesions/lesion-1").status_code == 200
    wait_for(lambda: own.is_kept)
    # Not again and again: ten looks later the file that is there was left alone.
    time.sleep(0.2)
    assert saved == [own.revision]
    copy = Catalogue.open(own.path, bundle_id=own.bundle_id, variant=own.variant)
    assert len(copy) == 5
    copy.close()


def test_a_disk_that_is_full_is_logged_and_tried_again(
    own: Catalogue, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, tried = own.save, []

    def full() -> None:
        tried.append(1)
        if len(tried) < 3:
            raise OSError(28, "No space left on device")
        save()

    monkeypatch.setattr(own, "save", full)
    assert client.delete("/lesions/lesion-1").status_code == 200
    wait_for(lambda: own.is_kept)
    assert len(tried) == 3
    assert client.get("/readyz").status_code == 200
