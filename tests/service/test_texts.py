"""Any text in any text part: answered, or refused as its part."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tests.fakes import RED, draw_image
from tests.service.asking import ask

IMAGE = draw_image(RED)
JSON_LIKE = st.text('{}[]":,.eE+-0123456789 \\ntruefalsunabciidmgx', max_size=40)
TEXTS = st.text(max_size=40) | JSON_LIKE | st.integers(1, 5000).map(lambda n: "[" * n)
PARTS = [
    ("/classify", "metadata"),
    ("/classify", "exclude_lesion"),
    ("/similar", "filter"),
    ("/similar", "k"),
    ("/risk", "lesions"),
    ("/risk", "patient"),
    ("/risk", "patient_id"),
    ("/risk", "extrapolate"),
]


@pytest.mark.parametrize(("path", "part"), PARTS)
def test_any_text_is_answered_or_refused(client: TestClient, path: str, part: str) -> None:
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(TEXTS)
    def check(text: str) -> None:
        response = ask(client, path, IMAGE, **{part: text})
        assert response.status_code in {200, 404, 422}, response.text
        assert response.status_code != 404 or part == "patient_id"

    run: Callable[[], None] = check
    run()
