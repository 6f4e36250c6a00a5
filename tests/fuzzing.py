"""What a parser of ours is given that nobody wrote: any bytes, damaged files, altered content.

FUZZ_EXAMPLES asks for more examples than the suite's few; `make torture` does.
"""

import json
import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "12"))
# The suite's few are the same every time.
IS_SUITE = EXAMPLES == 12
# Parsers take far less time than requests, of which EXAMPLES counts.
fuzzed = settings(
    max_examples=5 * EXAMPLES,
    deadline=None,
    derandomize=IS_SUITE,
    suppress_health_check=list(HealthCheck),
)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Draw a file with bytes changed, cut off, or followed by others; now and then any bytes."""
    if not draw(st.integers(0, 4)):
        return draw(st.binary(max_size=200))
    data = bytearray(whole)
    for place in draw(st.lists(st.integers(0, len(whole) - 1), max_size=5)):
        data[place] = draw(st.integers(0, 255))
    keep = draw(st.just(len(whole)) | st.integers(0, len(whole)))
    return bytes(data[:keep]) + draw(st.just(b"") | st.binary(max_size=20))


@st.composite
def altered(draw: st.DrawFn, content: Any) -> Any:
    """Draw JSON content with any JSON somewhere in it, or a key more or less."""

    def put(here: Any) -> Any:
        if isinstance(here, dict) and here and draw(st.integers(0, 9)):
            key = draw(st.sampled_from(sorted(here)))
            if not draw(st.integers(0, 9)):
                return {name: value for name, value in here.items() if name != key}
            return {**here, key: put(here[key])}
        if isinstance(here, list) and here and draw(st.integers(0, 9)):
            place = draw(st.integers(0, len(here) - 1))
            return [*here[:place], put(here[place]), *here[place + 1 :]]
        return draw(ANY_JSON)

    return put(content)


def damaged_json(whole: bytes) -> st.SearchStrategy[bytes]:
    """Draw a JSON file with bytes or values changed."""
    return damaged(whole) | altered(json.loads(whole)).map(lambda c: json.dumps(c).encode())
