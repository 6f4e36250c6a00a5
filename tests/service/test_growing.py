"""POST, GET, PATCH and DELETE of the catalogue's lesions."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from httpx2 import Response
from PIL import Image
from starlette.testclient import TestClient

from bundle.encoder import unit_norm
from bundle.images import content_hash, decode_image
from index.catalogue import Catalogue
from index.upkeep import rebuild, verify
from service import growing, pictures
from service.embeddings import EmbeddingCache
from service.growing import Diagnosis, NewLesion
from service.ledger.erasures import Erasures
from service.runtime import Runtime
from tests.fakes import BLUE, GREEN, RED, WHITE, draw_image, make_lesion, write_catalogue
from tests.service.asking import answer, ask, assert_error


@pytest.fixture
def site(
    tmp_path: Path, make_app: Callable[..., FastAPI], make_runtime: Callable[..., Runtime]
) -> Iterator[TestClient]:
    """A service on a catalogue of its own: two red lesions of one patient."""
    lesions = [make_lesion(f"red-{n}", RED, seed=n, patient_id="red") for n in range(2)]
    erasures = Erasures(tmp_path / "ledger")
    with write_catalogue(tmp_path / "catalogue", lesions) as catalogue:
        runtime = make_runtime(catalogue=catalogue, erasures=erasures)
        with TestClient(make_app(runtime)) as client:
            yield client
    erasures.close()


def post(client: TestClient, *images: bytes, key: str | None = None, **parts: Any) -> Response:
    data = {k: v if isinstance(v, str) else json.dumps(v) for k, v in parts.items()}
    files = [("image", ("one.png", image)) for image in images or (draw_image(BLUE),)]
    headers = {} if key is None else {"Idempotency-Key": key}
    return client.post("/lesions", files=files, data=data, headers=headers)


def test_an_added_lesion_is_shown_found_and_speaks(site: TestClient) -> None:
    response = post(
        site,
        draw_image(BLUE),
        draw_image(BLUE, seed=3),
        lesion_id="a/b",
        patient_id="somebody",
        label="mel",
        confirmed_by="histopathology",
        metadata={"age": 61, "localization": "back"},
    )
    assert response.status_code == 201, response.text
    assert response.headers["location"] == "/lesions/a%2Fb"
    said = response.json()
    assert "somebody" not in response.text
    assert (said["label"], said["malignant"]) == ("mel", True)
    assert said["confirmed_by"] == "histopathology"
    assert said["record"] == {"age_years": 61.0, "anatom_site": "back"}
    shown = site.get(response.headers["location"]).json()
    assert {k: v for k, v in shown.items() if k != "request_id"} == {
        k: v for k, v in said.items() if k != "request_id"
    }
    small = site.get(said["thumbnail_url"])
    assert Image.open(io.BytesIO(small.content)).size == (64, 64)
    near = answer(site, "/similar", draw_image(BLUE, seed=9), k=1)
    assert near["hits"][0]["lesion_id"] == "a/b"
    guessed = answer(site, "/classify", draw_image(BLUE, seed=9))["metadata"]
    assert guessed["anatom_site"]["value"] == "back"
    assert answer(site, "/similar", draw_image(BLUE), k=1)["hits"][0]["lesion_id"] != "a/b"


def test_a_lesion_without_a_name_is_given_one(site: TestClient) -> None:
    first, second = post(site), post(site, draw_image(GREEN))
    assert first.status_code == second.status_code == 201
    assert first.json()["lesion_id"] != second.json()["lesion_id"]
    assert first.json()["label"] is None


def test_a_request_sent_again_answers_as_before_and_adds_nothing(site: TestClient) -> None:
    first = post(site, key="abc", metadata={"sex": "female"})
    again = post(site, key="abc", metadata={"sex": "female"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["lesion_id"] == again.json()["lesion_id"]
    other = post(site, draw_image(GREEN), key="abc")
    assert_error(other, 422, "request_key_reused", "another request")
    site.delete(first.headers["location"])
    assert_error(post(site, key="abc", metadata={"sex": "female"}), 410, "lesion_gone")
    assert len(site.get("/lesions").json()["lesions"]) == 2


@pytest.mark.parametrize(
    ("parts", "code", "said"),
    [
        ({"label": "mel"}, "invalid_request", "must be confirmed"),
        ({"confirmed_by": "histopathology"}, "invalid_request", "what was confirmed"),
        ({"label": "mel", "confirmed_by": "a feeling"}, "invalid_request", "confirmed_by"),
        (
            {"label": "mel", "confirmed_by": "clinical", "malignant": False},
            "invalid_request",
            "expected true",
        ),
        ({"metadata": {"agee": 5}}, "unknown_field", "age"),
        ({"lesion_id": ""}, "invalid_request", "lesion_id"),
        ({"lesion_id": "a\\u0000b"}, "invalid_record", "printable"),
        ({"lesion_id": ".."}, "invalid_record", "nobody could ask for it"),
        ({"lesion_id": "a/similar"}, "invalid_record", "/similar or /thumbnail"),
        ({"label": "a\nb", "confirmed_by": "clinical"}, "invalid_record", "printable"),
        ({"patient_id": " "}, "invalid_record", "printable"),
        ({"metadata": '{"\\ud800": 1}'}, "invalid_request", "surrogate"),
        ({"colour": "red"}, "invalid_request", "colour"),
    ],
)
def test_what_cannot_be_accepted_is_named_and_adds_nothing(
    site: TestClient, parts: dict[str, Any], code: str, said: str
) -> None:
    parts = {
        k: v.encode().decode("unicode_escape") if k == "lesion_id" else v for k, v in parts.items()
    }
    assert_error(post(site, **parts), 422, code, said)
    assert len(site.get("/lesions").json()["lesions"]) == 2


def test_a_known_name_or_picture_conflicts(site: TestClient) -> None:
    assert_error(post(site, lesion_id="red-0"), 409, "lesion_exists", "'red-0'")
    assert_error(post(site, draw_image(RED, seed=1)), 409, "duplicate_image", "'red-1'")


def test_a_picture_that_cannot_be_judged_is_no_reference(site: TestClient) -> None:
    content = assert_error(post(site, draw_image(WHITE)), 422, "not_assessable")
    assert content["field"] == "image"
    assert_error(post(site, b"no picture"), 415, "unsupported_format")


def test_an_edit_sets_what_it_names(site: TestClient) -> None:
    post(site, lesion_id="x", metadata={"sex": "female", "age_years": 40})
    body = {"metadata": {"sex": None, "diameter_mm": 6}, "label": "nv", "confirmed_by": "clinical"}
    said = site.patch("/lesions/x", json=body).json()
    assert said["record"] == {"diameter_mm": 6.0, "age_years": 40.0}
    assert (said["label"], said["malignant"], said["confirmed_by"]) == ("nv", False, "clinical")
    said = site.patch("/lesions/x", json={"label": "strange", "malignant": True}).json()
    assert (said["label"], said["malignant"]) == ("strange", True)
    said = site.patch("/lesions/x", json={"label": "mel"}).json()
    assert (said["label"], said["malignant"]) == ("mel", True)
    said = site.patch("/lesions/x", json={"label": None, "confirmed_by": None}).json()
    assert (said["label"], said["malignant"], said["confirmed_by"]) == (None, None, None)
    assert site.patch("/lesions/x", json={}).json()["record"] == said["record"]


def test_an_edit_keeps_what_another_was_promised_a_moment_before(
    tmp_path: Path, make_runtime: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever names no label leaves the one that is there when the edit is written."""
    with write_catalogue(tmp_path / "catalogue", [make_lesion("x", RED)]) as catalogue:
        runtime, write = make_runtime(catalogue=catalogue), Catalogue.update
        runtime.edit_lesion("x", {"label": "nv", "confirmed_by": "clinical"})

        def late(*asked: Any) -> Any:
            monkeypatch.undo()
            runtime.edit_lesion("x", {"label": "mel", "confirmed_by": "histopathology"})
            return write(*asked)

        monkeypatch.setattr(Catalogue, "update", late)
        said = runtime.edit_lesion("x", {"confirmed_by": "consensus", "metadata": {"sex": "male"}})
        assert (said.label, said.malignant, said.confirmed_by) == ("mel", True, "consensus")


def test_a_full_size_picture_is_decoded_only_while_decoding_is_held(
    tmp_path: Path, make_runtime: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding, held = threading.BoundedSemaphore(1), []

    def decode(*asked: Any) -> Any:
        held.append(not decoding.acquire(blocking=False))
        return decode_image(*asked)

    for module in (growing, pictures):
        monkeypatch.setattr(module, "decode_image", decode)
    with write_catalogue(tmp_path / "catalogue", [make_lesion("x", RED)]) as catalogue:
        runtime = make_runtime(catalogue=catalogue)
        models = replace(runtime.models, decoding=decoding)
        new = NewLesion([draw_image(BLUE), draw_image(BLUE, seed=1)], {}, Diagnosis())
        replace(runtime, models=models).add_lesion(new, None)
    # Both for the models, one of them for the small picture.
    assert held == [True] * 3


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 422, "invalid_request"),
        (b"[]", 422, "invalid_request"),
        (b"\xff", 422, "invalid_request"),
        (b'{"image": 1}', 422, "invalid_request"),
        (b'{"malignant": "yes"}', 422, "invalid_request"),
        (b'{"label": "mel"}', 422, "invalid_request"),
        (b'{"metadata": {"sex": "x"}}', 422, "unknown_category"),
        (b'{"metadata": {"\\ud800": 1}}', 422, "invalid_request"),
        (b'{"label": "\\u0000", "confirmed_by": "clinical"}', 422, "invalid_record"),
        (b" " * 70_000, 413, "request_too_large"),
    ],
)
def test_a_wrong_edit_is_refused(site: TestClient, body: bytes, status: int, code: str) -> None:
    assert_error(site.patch("/lesions/red-0", content=body), status, code)
    assert site.get("/lesions/red-0").json()["confirmed_by"] is None


def lie_in(folder: Path, traces: list[bytes]) -> set[bytes]:
    """Return which of these bytes some file holds."""
    files = [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
    return {trace for trace in traces if any(trace in content for content in files)}


def test_an_erasure_gives_a_receipt_and_leaves_nothing(site: TestClient, tmp_path: Path) -> None:
    image = draw_image((13, 57, 201), seed=5)
    small = site.get(
        post(site, image, lesion_id="canary-lesion", patient_id="canary-patient").json()[
            "thumbnail_url"
        ]
    ).content
    vector = np.asarray([answer(site, "/embed", image)["embedding"]], np.float32)
    traces = [b"canary", small, content_hash(decode_image(image)).encode()]
    traces += [v.astype("<f4").tobytes() for v in (vector, unit_norm(vector))]
    # The vector's direction is in memory alone until it is saved.
    assert lie_in(tmp_path, traces) == set(traces[:-1])
    receipt = site.delete("/patients/canary-patient").json()
    assert (receipt["lesions"], receipt["images"], receipt["thumbnails"]) == (1, 1, 1)
    assert_error(site.delete("/patients/canary-patient"), 404, "unknown_lesion")
    assert_error(site.get("/lesions/canary-lesion"), 404, "unknown_lesion")
    assert_error(site.delete("/lesions/canary-lesion"), 404, "unknown_lesion")
    assert lie_in(tmp_path, traces) == set()
    assert verify(tmp_path / "catalogue").faults == ()
    rebuild(tmp_path / "catalogue")
    assert lie_in(tmp_path, traces) == set()
    assert site.delete("/lesions/red-1").json()["lesions"] == 1
    hits = answer(site, "/similar", draw_image(RED, seed=50), k=5)["hits"]
    assert [hit["lesion_id"] for hit in hits] == ["red-0"]


def test_pages_hold_every_lesion_once(site: TestClient) -> None:
    for n in range(5):
        post(site, draw_image(BLUE, seed=20 + n), lesion_id=f"blue-{n}")
    seen, cursor = [], ""
    while True:
        page = site.get("/lesions", params={"cursor": cursor, "limit": 3}).json()
        seen += [lesion["lesion_id"] for lesion in page["lesions"]]
        if page["cursor"] is None:
            break
        cursor = page["cursor"]
    assert seen == ["red-0", "red-1", *(f"blue-{n}" for n in range(5))]
    for bad in ({"cursor": "x"}, {"limit": 0}, {"limit": 501}, {"cursr": "1"}):
        assert_error(site.get("/lesions", params=bad), 422, "invalid_request")


def test_a_runtime_without_a_ledger_erases_nothing(client: TestClient) -> None:
    assert_error(client.delete("/lesions/red-0"), 503, "ledger_error")
    assert client.get("/lesions/red-0").status_code == 200


def test_images_are_not_asked_for_twice_in_a_patients_context(site: TestClient) -> None:
    """A lesion that was just added is context for its patient at once."""
    post(site, draw_image(RED, seed=30), lesion_id="new", patient_id="red")
    said = ask(site, "/risk", draw_image(RED, seed=31), patient_id="red").json()
    assert said["patient"]["lesions_from_catalogue"] == 3


def test_an_erasure_of_whom_the_catalogue_does_not_hold_forgets_pictures_as_well(
    tmp_path: Path, make_app: Callable[..., FastAPI], make_runtime: Callable[..., Runtime]
) -> None:
    cache, erasures = EmbeddingCache(1), Erasures(tmp_path / "ledger")
    with write_catalogue(tmp_path / "catalogue", [make_lesion("red", RED)]) as catalogue:
        runtime = make_runtime(catalogue=catalogue, erasures=erasures, cache=cache)
        with TestClient(make_app(runtime)) as client:
            answer(client, "/classify", draw_image(GREEN, seed=5))
            assert cache.size_bytes > 0
            assert client.delete("/patients/somebody").status_code == 404
            assert cache.size_bytes == 0
    erasures.close()
