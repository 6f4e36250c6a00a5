"""Where a request's time goes: decoding, inference, search.

Whoever works on a request says what it does in `with stage(...)`; the one who started the work
reads the sums. Work that nobody asked about is not measured.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from opentelemetry import trace

Stage = Literal["decode", "infer", "search"]
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
        with trace.get_tracer("slimp").start_as_current_span(name):
            yield
    finally:
        spent[name] = spent.get(name, 0.0) + time.perf_counter() - started


@contextmanager
def measuring() -> Iterator[dict[str, float]]:
    """Yield the seconds by stage of what the block does; they grow while it runs."""
    spent: dict[str, float] = {}
    token = _spent.set(spent)
    try:
        yield spent
    finally:
        _spent.reset(token)
