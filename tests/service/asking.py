"""How the service's tests ask: forms in short, and the one check of every error answer."""

import json
from typing import Any

from httpx2 import Response
from starlette.testclient import TestClient

from service.errors import RETRY

PROBLEM_KEYS = {
    "type",
    "title",
    "status",
    "code",
    "detail",
    "field",
    "request_id",
    "bundle_id",
    "warnings",
}


def ask(client: TestClient, path: str, *images: bytes, **parts: Any) -> Response:
    """Post a form; a part that is neither a text nor an exclusion is sent as JSON."""
    name = "images" if path == "/risk" else "image"
    files = [(name, (f"{position}.png", image)) for position, image in enumerate(images)]
    kept = {k for k, v in parts.items() if isinstance(v, str) or k.startswith("exclude")}
    data = {k: v if k in kept else json.dumps(v) for k, v in parts.items()}
    return client.post(path, files=files, data=data)


def answer(client: TestClient, path: str, *images: bytes, **parts: Any) -> dict[str, Any]:
    """Post a form that must be answered, and return the answer."""
    response = ask(client, path, *images, **parts)
    assert response.status_code == 200, response.text
    content: dict[str, Any] = response.json()
    assert content["request_id"] == response.headers["x-request-id"]
    assert isinstance(content["warnings"], list)
    assert len(content["bundle_id"]) == 64
    return content


def assert_error(response: Response, status: int, code: str, *said: str) -> dict[str, Any]:
    """Check an error answer's one shape, and that its detail says what it should."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    content: dict[str, Any] = response.json()
    assert content.keys() == PROBLEM_KEYS
    assert content["status"] == status
    assert content["code"] == code
    assert content["type"] == f"urn:slimp:problem:{code}"
    assert content["request_id"] == response.headers["x-request-id"]
    assert ("retry-after" in response.headers) == (status in RETRY)
    for words in said:
        assert words in content["detail"]
    return content
