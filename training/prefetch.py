"""The next batch is read while this one trains."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def one_ahead(batches: Iterable[T]) -> Iterator[T]:
    """Yield what `batches` yields, in its order, reading one ahead in a thread.

    Decoding an image leaves Python's lock, so that a device, or another core, goes on meanwhile.
    """
    reading = iter(batches)
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="read ahead") as pool:
        waiting = pool.submit(next, reading, end)
        while (batch := waiting.result()) is not end:
            waiting = pool.submit(next, reading, end)
            yield batch  # type: ignore[misc]  # the end is not one of them
