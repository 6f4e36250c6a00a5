"""Work on many items by several threads, its results in the items' order and in bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Items ahead of the one that is waited for, a thread: one in work, one that waits.
AHEAD = 2


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], *, threads: int
) -> Iterator[Result]:
    """Yield what `work` makes of each item, in order, while the next items are worked on.

    Items are taken only as results are: those in work and those that wait are a few a thread. What
    `work` raises is raised in its item's turn; whoever stops early waits for what is in work.

    Args:
        work: called on a thread, for several items at once.
        items: may be endless.
        threads: how many work.
    """
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="pipeline")
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) == AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
