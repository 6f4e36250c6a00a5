"""/similar and /lesions: red finds red, never itself, never with a patient."""

from urllib.parse import quote

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from index.catalogue import Catalogue
from service.app import create_app
from service.models import Models
from service.runtime import Runtime
from service.settings import Settings
from tests.fakes import (
    BLUE,
    GREEN,
    RED,
    WHITE,
    Colour,
    FakeEncoders,
    draw_image,
    make_calibration,
    make_lesion,
    make_manifest,
    write_catalogue,
)
from tests.service.asking import answer, ask, assert_error


@pytest.mark.parametrize(("colour", "name"), [(RED, "red"), (GREEN, "green"), (BLUE, "blue")])
def test_a_colour_finds_its_own_colour_first_ties_by_id(
    client: TestClient, colour: Colour, name: str
) -> None:
    said = answer(client, "/similar", draw_image(colour), k="6")
    hits = said["hits"]
    assert [hit["lesion_id"] for hit in hits[:5]] == [f"{name}-{number}" for number in range(5)]
    assert hits[5]["label"] != hits[0]["label"]
    assert hits[0]["score"] == pytest.approx(1, abs=1e-3)
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)


def test_ten_hits_come_unless_another_number_is_asked(client: TestClient) -> None:
    assert len(answer(client, "/similar", draw_image(RED))["hits"]) == 10
    assert len(answer(client, "/similar", draw_image(RED), k="1")["hits"]) == 1


def test_exactly_the_eligible_come_when_fewer_than_asked(client: TestClient) -> None:
    assert len(answer(client, "/similar", draw_image(RED), k="50")["hits"]) == 15
    kept = answer(client, "/similar", draw_image(RED), k="50", filter={"sex": "male"})
    assert {hit["lesion_id"] for hit in kept["hits"]} == {f"green-{n}" for n in range(5)}


def test_an_image_of_the_catalogue_never_finds_itself(client: TestClient) -> None:
    hits = answer(client, "/similar", draw_image(RED, seed=102), k="50")["hits"]
    assert len(hits) == 14
    assert "red-2" not in {hit["lesion_id"] for hit in hits}


def test_filters_are_and_and_their_lists_or(client: TestClient) -> None:
    wanted = {"anatom_site": ["scalp", "back"], "age_years": {"gte": 50}, "malignant": True}
    hits = answer(client, "/similar", draw_image(RED), k="50", filter=wanted)["hits"]
    assert {hit["label"] for hit in hits} == {"mel", "bcc"}
    hits = answer(client, "/similar", draw_image(RED), filter={"label": "bcc", "sex": "male"})
    assert hits["hits"] == []


def test_excluded_lesions_and_patients_are_left_out(client: TestClient) -> None:
    hits = answer(
        client,
        "/similar",
        draw_image(RED),
        k="50",
        exclude_lesion=["red-0", "red-1"],
        exclude_patient=["blue"],
    )["hits"]
    assert len(hits) == 8
    assert not {hit["lesion_id"] for hit in hits} & {"red-0", "red-1", "blue-0"}


def test_a_hit_shows_its_record_and_never_its_patient(client: TestClient) -> None:
    said = answer(client, "/similar", draw_image(RED), k="1")
    assert said["hits"][0].keys() == {
        "lesion_id",
        "score",
        "label",
        "malignant",
        "record",
        "source",
        "thumbnail_url",
    }
    assert said["hits"][0]["record"]["anatom_site"] == "back"
    assert "patient" not in str(said)


def test_metadata_is_checked_and_said_not_to_count(client: TestClient) -> None:
    said = answer(client, "/similar", draw_image(RED), metadata={"age": 50})
    assert [warning["code"] for warning in said["warnings"]] == ["image_only"]
    assert said["hits"] == answer(client, "/similar", draw_image(RED))["hits"]
    assert answer(client, "/similar", draw_image(RED), metadata={"age": None})["warnings"] == []
    assert_error(
        ask(client, "/similar", draw_image(RED), metadata={"a": 1}), 422, "unknown_field", "'a'"
    )


def test_hits_of_an_image_that_cannot_be_assessed_come_with_that_warning(
    client: TestClient,
) -> None:
    said = answer(client, "/similar", draw_image(WHITE))
    assert said["status"] == "not_assessable"
    assert said["quality"]["reasons"] == ["unlike_training_images"]
    assert len(said["hits"]) == 10


@pytest.mark.parametrize("k", ["0", "-1", "51", "1000000", "ten", "1.5", ""])
def test_a_number_of_hits_outside_the_bounds_is_refused(client: TestClient, k: str) -> None:
    response = ask(client, "/similar", draw_image(RED), k=k)
    assert assert_error(response, 422, "invalid_request", "k:")["field"] == "k"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ('{"nosuch": 1}', "unknown_field"),
        ('{"sex": "femal"}', "invalid_filter"),
        ('{"age_years": {"about": 4}}', "invalid_filter"),
        ('{"label": "mole"}', "invalid_filter"),
        ("[]", "invalid_request"),
        ("{", "invalid_request"),
    ],
)
def test_a_filter_that_cannot_be_read_is_refused(client: TestClient, raw: str, code: str) -> None:
    assert_error(ask(client, "/similar", draw_image(RED), filter=raw), 422, code)


# the catalogue's own lesions


def test_a_catalogue_lesion_finds_its_neighbours_and_not_itself(client: TestClient) -> None:
    response = client.get("/lesions/red-1/similar", params={"k": 4})
    assert response.status_code == 200
    hits = response.json()["hits"]
    assert [hit["lesion_id"] for hit in hits] == ["red-0", "red-2", "red-3", "red-4"]
    assert response.json()["status"] is None
    assert response.json()["quality"] is None


def test_neighbours_of_a_catalogue_lesion_obey_filter_and_exclusion(client: TestClient) -> None:
    params: dict[str, str | list[str]] = {
        "k": "50",
        "filter": '{"sex": "female"}',
        "exclude_lesion": ["red-0", "red-3"],
        "exclude_patient": "blue",
    }
    hits = client.get("/lesions/red-1/similar", params=params).json()["hits"]
    assert [hit["lesion_id"] for hit in hits] == ["red-2", "red-4"]


@pytest.mark.parametrize(
    ("params", "field"),
    [({"k": "0"}, "k"), ({"k": "51"}, "k"), ({"filter": "{"}, "filter"), ({"kk": "3"}, "kk")],
)
def test_a_query_that_cannot_be_meant_is_refused(
    client: TestClient, params: dict[str, str], field: str
) -> None:
    response = client.get("/lesions/red-1/similar", params=params)
    assert assert_error(response, 422, "invalid_request")["field"] == field


def test_a_lesion_shows_what_is_known_and_never_its_patient(client: TestClient) -> None:
    response = client.get("/lesions/green-0")
    assert response.status_code == 200
    content = response.json()
    assert content["label"] == "mel"
    assert content["malignant"] is True
    assert content["record"]["age_years"] == 70
    assert "patient_id" not in content


def test_a_thumbnail_is_a_picture(client: TestClient) -> None:
    url = client.get("/lesions/red-0").json()["thumbnail_url"]
    response = client.get(url)
    assert response.headers["content-type"] == "image/webp"
    assert response.content[:4] == b"RIFF"


@pytest.mark.parametrize("path", ["/lesions/no", "/lesions/no/similar", "/lesions/no/thumbnail"])
def test_a_lesion_that_is_not_there_is_not_found(client: TestClient, path: str) -> None:
    assert_error(client.get(path), 404, "unknown_lesion", "'no'")


def test_odd_lesion_ids_and_missing_thumbnails_are_served(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    odd = "a/b c?#é"
    lesions = [make_lesion(odd), make_lesion("jpeg", thumbnail=b"\xff\xd8\xff"), make_lesion("x")]
    lesions[2] = make_lesion("x", thumbnail=None, label=None, malignant=None)
    with write_catalogue(tmp_path_factory.mktemp("odd") / "c", lesions) as catalogue:
        served = _serve(catalogue)
        with TestClient(served) as client:
            hits = answer(client, "/similar", draw_image(RED))["hits"]
            urls = {hit["lesion_id"]: hit["thumbnail_url"] for hit in hits}
            assert client.get(urls[odd]).status_code == 200
            assert client.get(f"/lesions/{quote(odd, safe='')}").json()["lesion_id"] == odd
            assert client.get(urls["jpeg"]).headers["content-type"] == "image/jpeg"
            assert urls["x"] is None
            assert_error(client.get("/lesions/x/thumbnail"), 404, "unknown_lesion", "no thumbnail")


def _serve(catalogue: Catalogue) -> FastAPI:
    models = Models(make_manifest(), make_calibration(), FakeEncoders(), None)
    return create_app(Settings(log_level="error"), Runtime(models, catalogue))


# vectors


def test_an_embedding_is_the_encoders_own(client: TestClient) -> None:
    said = answer(client, "/embed", draw_image(RED))
    assert said["embedding"] == pytest.approx([200 / 255, 60 / 255, 60 / 255, 0.1], abs=0.01)
    assert said["variant"] == "fp32"
    assert said["status"] == "answered"
