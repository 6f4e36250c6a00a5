"""Any bytes in place of a bundle's JSON files: read, or refused by an error of ours."""

import contextlib
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.errors import BundleError, CorruptBundle
from bundle.manifest import check_manifest, parse_manifest
from bundle.store import _parse_calibration
from tests.fakes import make_calibration, make_manifest
from tests.fuzzing import ANY_JSON, altered

MANIFEST = make_manifest()
CONTENT = {
    "manifest": MANIFEST.model_dump(mode="json"),
    "calibration": make_calibration().model_dump(mode="json"),
}


@given(st.binary() | ANY_JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_no_manifest_and_no_calibration(data: bytes) -> None:
    for read in (parse_manifest, lambda raw: _parse_calibration(raw, MANIFEST)):
        with contextlib.suppress(BundleError):
            read(data)
            raise AssertionError("arbitrary bytes were accepted")


@settings(deadline=None)
@given(altered(CONTENT["manifest"]))
def test_any_value_in_a_manifest_is_accepted_or_refused(content: Any) -> None:
    with contextlib.suppress(BundleError):
        parse_manifest(json.dumps(content).encode())
    with contextlib.suppress(CorruptBundle):
        check_manifest(content)


@settings(deadline=None)
@given(altered(CONTENT["calibration"]))
def test_any_value_in_a_calibration_is_accepted_or_refused(content: Any) -> None:
    with contextlib.suppress(CorruptBundle):
        _parse_calibration(json.dumps(content).encode(), MANIFEST)
