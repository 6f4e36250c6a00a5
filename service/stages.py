"""Where a request's time goes: waiting to decode, decoding, inference, search.

Whoever works on a request says what it does in `with stage(...)`; the one who started the work
reads the sums. Work that nobody asked about is not measured.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from opentelemetry import trace
from opentelemetry.trace import Span, StatusCode

TRACER = "slimp"
Stage = Literal["wait", "decode", "infer", "search"]
_spent: ContextVar[dict[str, float] | None] = ContextVar("spent", default=None)


@contextmanager
def stage(name: Stage) -> Iterator[None]:
    """Count the block's time for a stage."""
    spent = _spent.get()
    if spent is None:
        yield
        return
    started = time.perf_counter()
    try:
        with span_of(name):
            yield
    finally:
        spent[name] = spent.get(name, 0.0) + time.perf_counter() - started


@contextmanager
def span_of(name: str, **options: Any) -> Iterator[Span]:
    """Yield a span that says of an exception its type alone: the message might repeat a value.

    Args:
        name: the span's.
        options: as the tracer's `start_as_current_span` takes them.
    """
    tracer = trace.get_tracer(TRACER)
    with tracer.start_as_current_span(
        name, record_exception=False, set_status_on_exception=False, **options
    ) as span:
        try:
            yield span
        except Exception as error:
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(StatusCode.ERROR)
            raise


@contextmanager
def measuring() -> Iterator[dict[str, float]]:
    """Yield the seconds by stage of what the block does; they grow while it runs."""
    spent: dict[str, float] = {}
    token = _spent.set(spent)
    try:
        yield spent
    finally:
        _spent.reset(token)
