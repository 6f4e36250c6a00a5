"""What may be uploaded: limits counted while the bytes arrive, and what a form may hold."""

import io
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from bundle.errors import LesionError
from service.errors import InvalidRequest, MalformedUpload, RequestTooLarge
from service.uploads import Form, FormLimits, FormParts, _Collector, read_form
from tests.fakes import RED, draw_image
from tests.service.asking import answer, ask, assert_error

PARTS = FormParts(files=frozenset({"image"}), texts=frozenset({"metadata", "k"}))
LIMITS = FormLimits(files=2, file_bytes=100, text_bytes=20, body_bytes=1000)
TYPE = "multipart/form-data; boundary=line"


def form_body(*parts: tuple[str, bytes]) -> bytes:
    lines = [
        b'--line\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), data)
        for name, data in parts
    ]
    return b"".join(lines) + b"--line--\r\n"


def read(body: bytes, *, chunk: int = 7, content_type: str = TYPE) -> Form:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), chunk):
            yield body[start : start + chunk]

    async def run() -> Form:
        return await read_form(content_type, chunks(), PARTS, LIMITS)

    return anyio.run(run)


def test_parts_are_read_in_order_whatever_the_chunks() -> None:
    body = form_body(("image", b"\x00\xff--line"), ("k", b"3"), ("image", b"two"), ("k", b"4"))
    for chunk in (1, 3, len(body)):
        form = read(body, chunk=chunk)
        assert form.files == {"image": [b"\x00\xff--line", b"two"]}
        assert form.texts == {"k": ["3", "4"]}


@given(
    files=st.lists(st.binary(min_size=1, max_size=60), max_size=2),
    text=st.text(max_size=5),
    chunk=st.integers(1, 50),
)
@settings(max_examples=40, deadline=None)
def test_what_was_sent_is_what_is_read(files: list[bytes], text: str, chunk: int) -> None:
    parts = [("image", data) for data in files] + [("metadata", text.encode())]
    body = form_body(*parts)
    if any(b"\r\n--line" in b"\r\n" + data for data in files):
        return
    form = read(body, chunk=chunk)
    assert form.files.get("image", []) == files
    assert form.texts == {"metadata": [text]}


@given(st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_read_or_refused_by_an_error_of_ours(body: bytes) -> None:
    try:
        read(b"--line\r\n" + body)
    except LesionError:
        return


@pytest.mark.parametrize("cut", [1, 10, 40, 70, -3])
def test_a_body_that_ends_early_is_refused(cut: int) -> None:
    body = form_body(("image", b"one"), ("k", b"3"))
    with pytest.raises(MalformedUpload):
        read(body[:cut])


@pytest.mark.parametrize("content_type", ["multipart/form-data", TYPE + "x" * 300])
def test_a_boundary_that_cannot_be_is_refused(content_type: str) -> None:
    with pytest.raises(MalformedUpload):
        read(form_body(("k", b"3")), content_type=content_type)


def test_after_a_wrong_part_nothing_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[object] = []
    monkeypatch.setattr(_Collector, "on_part_begin", lambda self: begun.append(self))
    taken: list[int] = []

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            taken.append(1)
            yield b"--line\r\n\r\n\r\n" * 20

    async def run() -> None:
        await read_form(TYPE, chunks(), PARTS, LIMITS)

    with pytest.raises(InvalidRequest, match="unknown part ''"):
        anyio.run(run)
    assert len(begun) == 1
    assert len(taken) == 3


def test_a_body_above_its_limit_is_not_read_to_the_end() -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        yield b'--line\r\nContent-Disposition: form-data; name="metadata"\r\n\r\n'
        while True:
            taken += 100
            yield b"x" * 100

    async def run() -> None:
        await read_form(TYPE, endless(), PARTS, LIMITS)

    with pytest.raises(RequestTooLarge, match="1000 bytes a request"):
        anyio.run(run)
    assert taken <= LIMITS.body_bytes + 100


# through HTTP


@pytest.fixture(scope="module")
def small(make_app: Callable[..., FastAPI]) -> Iterator[TestClient]:
    """A service that takes little: images up to 20 kB, requests up to 60 kB."""
    limits = {"max_image_bytes": 20_000, "max_request_bytes": 60_000, "max_text_bytes": 1_000}
    with TestClient(make_app(**limits)) as client:
        yield client


def test_ten_thousand_images_are_refused_soon_and_not_kept(client: TestClient) -> None:
    image = draw_image(RED)[:200]
    started = time.perf_counter()
    response = ask(client, "/classify", *[image] * 10_000)
    assert_error(response, 413, "request_too_large", "at most 8 images")
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(("path", "most"), [("/classify", 8), ("/similar", 8), ("/risk", 64)])
def test_as_many_images_as_allowed_are_answered_and_one_more_is_refused(
    client: TestClient, path: str, most: int
) -> None:
    images = [draw_image(RED, seed=number) for number in range(most + 1)]
    assert ask(client, path, *images[:most]).status_code == 200
    assert_error(ask(client, path, *images), 413, "request_too_large", str(most))


def test_a_large_file_is_refused(small: TestClient) -> None:
    assert_error(ask(small, "/classify", b"x" * 20_001), 413, "image_too_large", "20000 bytes")


def test_a_large_declared_body_is_refused_before_it_is_read(small: TestClient) -> None:
    response = ask(small, "/classify", *[b"x" * 19_000] * 4)
    assert_error(response, 413, "request_too_large", "60000 bytes a request, got")


def test_a_large_undeclared_body_is_refused(small: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'--line\r\nContent-Disposition: form-data; name="image"\r\n\r\n'
        for _ in range(100):
            yield b"x" * 1000

    response = small.post("/classify", content=chunks(), headers={"content-type": TYPE})
    assert_error(response, 413, "request_too_large", "60000 bytes a request")


def test_a_long_text_is_refused(small: TestClient) -> None:
    response = ask(small, "/classify", draw_image(RED), metadata="x" * 1001)
    assert_error(response, 413, "request_too_large", "metadata", "1000 bytes")


def test_very_many_texts_are_refused(client: TestClient) -> None:
    response = ask(client, "/classify", draw_image(RED), exclude_lesion=["a"] * 2000)
    assert_error(response, 413, "request_too_large", "1000 text parts")
    response = ask(client, "/classify", draw_image(RED), exclude_lesion=["a"] * 501)
    assert_error(response, 422, "invalid_request", "exclude_lesion")


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"a picture of a lesion, in words", 415, "unsupported_format"),
        (b"GIF89a" + b"\x00" * 30, 415, "unsupported_format"),
        (b"\xff\xd8\xff", 400, "invalid_image"),
        (draw_image(RED, file_format="JPEG")[:700], 400, "invalid_image"),
        (draw_image(RED)[:1500], 400, "invalid_image"),
        (b"", 422, "invalid_request"),
    ],
)
def test_what_is_no_sound_picture_is_refused_and_the_next_is_answered(
    client: TestClient, data: bytes, status: int, code: str
) -> None:
    assert_error(ask(client, "/classify", data), status, code)
    assert ask(client, "/classify", draw_image(RED)).status_code == 200


def test_the_broken_image_is_named_among_several(client: TestClient) -> None:
    response = ask(client, "/classify", draw_image(RED), b"text")
    assert_error(response, 415, "unsupported_format", "image 1:")


def test_a_picture_of_very_many_pixels_is_refused_by_its_header(client: TestClient) -> None:
    buffer = io.BytesIO()
    Image.new("1", (11_000, 11_000)).save(buffer, "PNG")
    started = time.perf_counter()
    assert_error(ask(client, "/classify", buffer.getvalue()), 413, "image_too_large", "pixels")
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_every_accepted_format_is_answered_alike(client: TestClient, file_format: str) -> None:
    said = answer(client, "/classify", draw_image(RED, file_format=file_format))
    assert said["label"] == "nv"


@pytest.mark.parametrize(
    ("sent", "status", "code", "said"),
    [
        ({"json": {"image": "x"}}, 415, "unsupported_media", "multipart/form-data"),
        ({"content": b"x"}, 415, "unsupported_media", "curl -F image"),
        ({"data": {"image": "x"}}, 415, "unsupported_media", "urlencoded"),
        ({}, 415, "unsupported_media", "got ''"),
        (
            {"content": b"junk", "headers": {"content-type": TYPE}},
            400,
            "malformed_upload",
            "multipart",
        ),
        (
            {"content": b"", "headers": {"content-type": TYPE}},
            400,
            "malformed_upload",
            "multipart",
        ),
        ({"files": {"metadata": b"{}"}}, 422, "invalid_request", "image: expected an image file"),
        ({"files": {"imag": b"x"}}, 422, "invalid_request", "nearest is 'image'"),
        ({"files": {"": b"x"}}, 422, "invalid_request", "unknown part ''"),
        ({"files": {"image": b"x", "metadata": b"\xff"}}, 422, "invalid_request", "UTF-8"),
    ],
)
@pytest.mark.parametrize("path", ["/classify", "/similar", "/embed"])
def test_a_form_that_cannot_be_meant_is_refused(
    client: TestClient, path: str, sent: dict[str, Any], status: int, code: str, said: str
) -> None:
    if path == "/embed" and "metadata" in sent.get("files", {}):
        said = "unknown part 'metadata'"
    assert_error(client.post(path, **sent), status, code, said)


def test_a_part_given_twice_is_refused(client: TestClient) -> None:
    files = [("image", draw_image(RED)), ("k", b"3"), ("k", b"4")]
    assert_error(client.post("/similar", files=files), 422, "invalid_request", "expected once")


def test_a_part_in_the_url_is_refused_instead_of_passed_over(client: TestClient) -> None:
    response = client.post("/similar?k=3", files={"image": draw_image(RED)})
    assert_error(response, 422, "invalid_request", "k: expected as a part of the form")


def test_a_text_may_come_as_a_file(client: TestClient) -> None:
    files = [
        ("image", ("lesion.png", draw_image(RED), "image/png")),
        ("metadata", ("m.json", b'{"age_years": 40}', "application/json")),
    ]
    said = client.post("/classify", files=files).json()
    assert said["metadata"]["age_years"]["value"] == 40


def test_blank_texts_say_nothing(client: TestClient) -> None:
    said = answer(client, "/classify", draw_image(RED), metadata=" ")
    assert {entry["source"] for entry in said["metadata"].values()} <= {"extrapolated", "missing"}
    assert len(answer(client, "/risk", draw_image(RED), lesions=" ")["lesions"]) == 1
