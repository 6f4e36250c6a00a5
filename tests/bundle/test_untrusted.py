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

MANIFEST = make_manifest()
CONTENT = {
    "manifest": MANIFEST.model_dump(mode="json"),
    "calibration": make_calibration().model_dump(mode="json"),
}
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@st.composite
def altered(draw: st.DrawFn, name: str) -> Any:
    """Draw the file's content with any JSON somewhere in it."""

    def put(here: Any) -> Any:
        if isinstance(here, dict) and here and draw(st.integers(0, 9)):
            key = draw(st.sampled_from(sorted(here)))
            return {**here, key: put(here[key])}
        if isinstance(here, list) and here and draw(st.integers(0, 9)):
            place = draw(st.integers(0, len(here) - 1))
            return [*here[:place], put(here[place]), *here[place + 1 :]]
        return draw(ANY_JSON)

    return put(CONTENT[name])


@given(st.binary() | ANY_JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_no_manifest_and_no_calibration(data: bytes) -> None:
    for read in (parse_manifest, lambda raw: _parse_calibration(raw, MANIFEST)):
        with contextlib.suppress(BundleError):
            read(data)
            raise AssertionError("arbitrary bytes were accepted")


@settings(deadline=None)
@given(altered("manifest"))
def test_any_value_in_a_manifest_is_accepted_or_refused(content: Any) -> None:
    with contextlib.suppress(BundleError):
        parse_manifest(json.dumps(content).encode())
    with contextlib.suppress(CorruptBundle):
        check_manifest(content)


@settings(deadline=None)
@given(altered("calibration"))
def test_any_value_in_a_calibration_is_accepted_or_refused(content: Any) -> None:
    with contextlib.suppress(CorruptBundle):
        _parse_calibration(json.dumps(content).encode(), MANIFEST)
