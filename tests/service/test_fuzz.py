"""Requests that nobody thought of: the OpenAPI document's operations, fuzzed in process."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok

from service.runtime import Runtime
from tests.fakes import BLUE, GREEN, RED, WHITE, draw_image

IMAGES = [draw_image(colour) for colour in (RED, GREEN, BLUE, WHITE)]
# Schemathesis' own host is a name of no machine.
LOCAL = {"Host": "localhost"}
IMAGES += [draw_image(RED, file_format="JPEG"), IMAGES[0][:900], b"text", b""]


def test_no_request_makes_the_service_fail(
    make_app: Callable[..., FastAPI], make_runtime: Callable[..., Runtime]
) -> None:
    schemathesis.openapi.format("binary", st.sampled_from(IMAGES))
    schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(), headers=LOCAL)
    visited: set[str] = set()
    statuses: Counter[int] = Counter()
    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        visited.add(operation.path)

        @settings(
            max_examples=12,
            deadline=None,
            derandomize=True,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def fuzz(case: schemathesis.Case[Any]) -> None:
            response = case.call_and_validate(checks=[not_a_server_error], headers=LOCAL)
            statuses[response.status_code] += 1

        given(case=operation.as_strategy())(fuzz)()
    assert len(visited) >= 14
    assert statuses[200] > 20
    assert statuses[422] > 20
