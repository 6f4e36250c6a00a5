"""Every file of the corpus is answered or refused, and the service goes on."""

import time
from collections import Counter

import pytest
from starlette.testclient import TestClient

from tests.fakes import RED, draw_image
from tests.service.asking import answer, ask, assert_error
from tests.service.image_corpus import FORMATS, corpus, sound_files

ANSWERS = {(200, "answered"), (200, "not_assessable")}
REFUSALS = {
    (400, "invalid_image"),
    (413, "image_too_large"),
    (415, "unsupported_format"),
    (422, "invalid_request"),  # an empty file
}
# A hang is what this bound finds; the benchmark measures.
FAR_TOO_LONG_S = 5


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_sound_picture_is_answered_and_all_else_refused(client: TestClient) -> None:
    seen: Counter[tuple[int, str]] = Counter()
    otherwise = []
    for entry in corpus():
        started = time.perf_counter()
        response = ask(client, "/classify", entry.data)
        assert time.perf_counter() - started < FAR_TOO_LONG_S, entry.name
        content = response.json()
        kind = response.status_code, content["code" if response.is_error else "status"]
        seen[kind] += 1
        if kind not in (ANSWERS if entry.sound else REFUSALS):
            otherwise.append((entry.name, kind))
        elif not entry.sound:
            assert_error(response, *kind)
    assert otherwise == []
    assert seen.keys() == REFUSALS | ANSWERS
    assert seen[200, "answered"] > 20
    assert seen[400, "invalid_image"] > 300
    assert answer(client, "/classify", draw_image(RED))["label"] == "nv"


def test_the_content_type_and_the_name_of_a_file_change_nothing(client: TestClient) -> None:
    image = draw_image(RED)
    said = []
    for name, kind in (("a.png", "image/png"), ("a.exe", "text/html"), ("../../a", "image/gif")):
        response = client.post("/embed", files={"image": (name, image, kind)})
        said.append(response.json()["embedding"])
    assert said[0] == said[1] == said[2]


def test_the_corpus_holds_every_format() -> None:
    assert set(FORMATS) <= {name for name, _ in sound_files()}
