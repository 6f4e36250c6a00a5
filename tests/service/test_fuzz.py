"""Requests that nobody thought of: the OpenAPI document's operations, fuzzed in process.

FUZZ_EXAMPLES asks for more examples an operation than the suite's few; `make torture` does.
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.ledger.erasures import Erasures
from service.runtime import Runtime
from tests.fakes import BLUE, GREEN, RED, WHITE, draw_image, make_lesion, write_catalogue
from tests.fuzzing import EXAMPLES, IS_SUITE
from tests.service.image_corpus import broken_files, other_files, sound_files

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
# A service that needs no keys answers this machine alone.
LOCAL = {"Host": "localhost"}
GOOD = [draw_image(colour) for colour in (RED, GREEN, BLUE, WHITE)]
ODD = [data for source in (sound_files, broken_files, other_files) for _, data in source()]
LESIONS = [f"{name}-{number}" for name in ("red", "green", "blue") for number in range(5)]
# What the document cannot say: JSON in a text part, an id that is there.
FIELD = st.sampled_from(["age_years", "sex", "anatom_site", "diameter_mm", "itch", "label", "x"])
VALUE = st.none() | st.booleans() | st.floats() | st.sampled_from(["female", "back", "", "nv"])
RECORD = st.dictionaries(FIELD, VALUE | st.lists(VALUE, max_size=3), max_size=4)
LESION = st.fixed_dictionaries(
    {"id": st.sampled_from(["a", "b"]), "images": st.lists(st.integers(-1, 3), max_size=3)}
)
TEXTS = {
    "metadata": RECORD,
    "patient": RECORD,
    "filter": RECORD,
    "lesions": st.lists(LESION, max_size=3),
}


def dressed(case: schemathesis.Case[Any], data: st.DataObject) -> schemathesis.Case[Any]:
    """Return the case with, now and then, parts that mean something."""
    if isinstance(case.body, dict):
        for name, strategy in TEXTS.items():
            if name in case.body and data.draw(st.booleans()):
                case.body[name] = json.dumps(data.draw(strategy))
    if "lesion_id" in (case.path_parameters or {}) and data.draw(st.booleans()):
        case.path_parameters["lesion_id"] = data.draw(st.sampled_from(LESIONS))
    return case


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_no_request_makes_the_service_fail(
    tmp_path: Path, make_app: Callable[..., FastAPI], make_runtime: Callable[..., Runtime]
) -> None:
    schemathesis.openapi.format(
        "binary", st.sampled_from(GOOD) | st.sampled_from(ODD) | st.binary()
    )
    known = [make_lesion(name, RED, seed=200 + n) for n, name in enumerate(LESIONS)]
    catalogue = write_catalogue(tmp_path / "catalogue", known)
    app = make_app(make_runtime(catalogue=catalogue, erasures=Erasures(tmp_path / "ledger")))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=LOCAL)
    visited: set[tuple[str, str]] = set()
    statuses: Counter[int] = Counter()
    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        visited.add((operation.path, operation.method))

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=IS_SUITE,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def fuzz(case: schemathesis.Case[Any], data: st.DataObject) -> None:
            response = dressed(case, data).call_and_validate(checks=CHECKS, headers=LOCAL)
            statuses[response.status_code] += 1

        given(case=operation.as_strategy(), data=st.data())(fuzz)()
    documented = {
        (path, method) for path, item in app.openapi()["paths"].items() for method in item
    }
    assert visited == documented
    assert len(visited) >= 19
    for status in (200, 201, 400, 404, 415, 422):
        assert statuses[status] > 0, statuses
    assert statuses[200] > 20
    assert statuses[422] > 20
