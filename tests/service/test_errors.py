"""Every error in one shape, none of them leaking, none of them ending the service."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from bundle import errors
from bundle.calibration import FloatArray
from bundle.errors import CorruptBundle, LesionError, UnknownField
from service.errors import PROBLEMS, public_message
from service.runtime import Runtime
from tests.fakes import GREEN, RED, FakeEncoders, draw_image
from tests.service.asking import ask, assert_error


def subclasses(base: type[LesionError]) -> Iterator[type[LesionError]]:
    yield base
    for child in base.__subclasses__():
        yield from subclasses(child)


def products(base: type[LesionError]) -> list[type[LesionError]]:
    """Return the tree's classes that the product defines, not those of a test."""
    return [kind for kind in subclasses(base) if not kind.__module__.startswith("test")]


def test_every_error_has_a_row_and_a_code_of_its_own() -> None:
    known = products(LesionError)
    assert set(known) == set(PROBLEMS)
    assert len({kind.code for kind in known}) == len(known)
    assert len(known) > 25


def test_a_message_that_could_show_the_sites_paths_stays_inside() -> None:
    assert public_message(UnknownField("unknown field 'a'", field="a")) == "unknown field 'a'"
    assert "/srv" not in public_message(CorruptBundle("/srv/bundle: the file is missing"))


@dataclass(frozen=True)
class GreenIsNan(FakeEncoders):
    """A model that breaks on green."""

    def embed_images(self, pixels: FloatArray) -> FloatArray:
        embeddings = super().embed_images(pixels)
        embeddings[embeddings[:, 1] > 0.5] = np.nan
        return embeddings


@dataclass(frozen=True)
class Surprise(FakeEncoders):
    """A model that fails in a way nobody foresaw, with a message that repeats its input."""

    def embed_images(self, pixels: FloatArray) -> FloatArray:
        raise ZeroDivisionError("secret: Jane Doe")


def test_a_number_that_is_not_finite_is_named_and_the_next_image_is_answered(
    make_app: Callable[..., FastAPI], make_runtime: Callable[..., Runtime]
) -> None:
    with TestClient(make_app(make_runtime(encoders=GreenIsNan()))) as client:
        for path in ("/classify", "/similar", "/risk", "/embed"):
            response = ask(client, path, draw_image(GREEN))
            assert_error(response, 500, "inference_error", "not finite", "another image")
            assert ask(client, path, draw_image(RED)).status_code == 200


def test_what_nobody_foresaw_is_a_constant_answer_and_its_message_goes_nowhere(
    make_app: Callable[..., FastAPI],
    make_runtime: Callable[..., Runtime],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with TestClient(make_app(make_runtime(encoders=Surprise()))) as client:
        response = ask(client, "/classify", draw_image(RED))
        content = assert_error(response, 500, "internal_error", "operator")
        said = assert_error(client.get("/readyz"), 503, "unhealthy", "ZeroDivisionError")
        assert "secret" not in said["detail"]
    assert "secret" not in response.text
    logged = capsys.readouterr().out
    assert "ZeroDivisionError" in logged
    assert content["request_id"] in logged
    assert "secret" not in logged


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/page/../app.py", 404, "not_found"),
        ("GET", "/classify", 405, "method_not_allowed"),
        ("PUT", "/lesions/red-0", 405, "method_not_allowed"),
        ("POST", "/patients", 404, "not_found"),
        ("PUT", "/model", 405, "method_not_allowed"),
    ],
)
def test_a_path_or_method_that_is_not_there_has_the_same_shape(
    client: TestClient, method: str, path: str, status: int, code: str
) -> None:
    response = client.request(method, path)
    assert_error(response, status, code, "/docs")
    assert ("allow" in response.headers) == (status == 405)


VISIT = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"


def test_an_error_carries_the_bundle_and_the_callers_request_id(client: TestClient) -> None:
    response = client.get("/lesions/no", headers={"X-Request-ID": VISIT})
    content = assert_error(response, 404, "unknown_lesion")
    assert content["request_id"] == VISIT
    assert len(content["bundle_id"]) == 64


@pytest.mark.parametrize("sent", ["", "é", "JaneDoe", "4711", "ab" * 15, "ab" * 17, VISIT + "\n"])
def test_a_request_id_that_is_no_uuid_is_replaced(client: TestClient, sent: str) -> None:
    response = client.get("/livez", headers={b"X-Request-ID": sent.encode()})
    assert len(response.headers["x-request-id"]) == 32


def test_the_tree_in_the_docstring_names_every_error() -> None:
    for kind in products(LesionError):
        if kind.__module__ == "bundle.errors":
            assert errors.__doc__ is not None
            assert kind.__name__ in errors.__doc__
