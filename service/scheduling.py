"""Who may be served now: a bounded number of requests, and threads that infer off the event loop.

A request is admitted before its body is read, so that memory is bounded too. One that finds no room
is turned away at once. Bulk requests have half of the threads at most: an interactive one that
comes finds another. A request whose time is over is answered, but the thread that works for it
cannot be stopped: until it ends it keeps its place, and when all threads are lost that way the
service says that it is stalled.
"""

import asyncio
import contextvars
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext
from typing import TypeVar

from starlette.requests import ClientDisconnect

from bundle.errors import Overloaded
from service.errors import TimedOut
from service.tickets import Lane, Ticket, current_ticket

Result = TypeVar("Result")
NONE: Mapping[Lane, int] = {}


class Scheduler:
    """Admits requests and runs their work on threads of its own."""

    def __init__(self, *, max_concurrency: int, max_queue: int, timeout_s: float) -> None:
        """Start no thread yet.

        Args:
            max_concurrency: threads, so requests that decode and infer at the same time.
            max_queue: requests that may wait beyond those.
            timeout_s: seconds from admission to the answer.
        """
        self._pool = ThreadPoolExecutor(max_concurrency, thread_name_prefix="inference")
        self._threads = max_concurrency
        self._capacity = max_concurrency + max_queue
        self._timeout_s = timeout_s
        self._bulk_places = max(1, max_concurrency // 2)
        self._admitted: Counter[Lane] = Counter()
        self._abandoned: Counter[Lane] = Counter()
        self._counting = threading.Lock()

    @property
    def admitted(self) -> int:
        """Requests inside now, those that lost their caller but not their thread included."""
        return self._admitted.total() + self._abandoned.total()

    @property
    def is_idle(self) -> bool:
        """Whether no request waits for its answer."""
        return self._admitted.total() == 0

    @property
    def is_stalled(self) -> bool:
        """Whether every thread works for a request whose time is over."""
        return self._abandoned.total() >= self._threads

    @asynccontextmanager
    async def admit(self, lane: Lane = "interactive") -> AsyncIterator[Ticket]:
        """Hold one place for the block; the ticket tells what works for it when to give up.

        Raises:
            Overloaded: no place is free.
            TimedOut: the block took longer than the request may.
        """
        self.check_room(lane)
        ticket = Ticket(time.monotonic() + self._timeout_s, lane)
        current_ticket.set(ticket)
        self._admitted[lane] += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                yield ticket
        except TimeoutError:
            raise TimedOut(
                f"no answer within {self._timeout_s:g} s: send the request again later, with "
                "fewer or smaller images"
            ) from None
        finally:
            self._admitted[lane] -= 1

    def check_room(self, lane: Lane = "interactive", coming: Mapping[Lane, int] = NONE) -> None:
        """Do nothing while a request of this lane may come in.

        Args:
            lane: in which it would wait.
            coming: requests by lane that were let in and not answered; some are not admitted yet.

        Raises:
            Overloaded: no place is free.
        """
        if max(self.admitted, sum(coming.values())) >= self._capacity:
            raise Overloaded(
                f"expected at most {self._capacity} requests at a time: send this one again later"
            )
        bulk = self._admitted["bulk"] + self._abandoned["bulk"]
        if lane == "bulk" and max(bulk, coming.get("bulk", 0)) >= self._bulk_places:
            raise Overloaded(
                f"expected at most {self._bulk_places} bulk requests at a time: send this one "
                "again later"
            )

    async def run(self, work: Callable[[], Result]) -> Result:
        """Return what the work returns, done on a thread with the caller's log context.

        Raises:
            ClientDisconnect: the client went away before a thread took the work.
        """
        context, ticket = contextvars.copy_context(), current_ticket.get()
        job = self._pool.submit(context.run, work)
        try:
            with nullcontext() if ticket is None else ticket.told(job.cancel):
                return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            if job.cancelled() and ticket is not None and ticket.is_left:
                raise ClientDisconnect from None
            if job.running():
                lane = "interactive" if ticket is None else ticket.lane
                self._count(lane, 1)
                job.add_done_callback(lambda _: self._count(lane, -1))
            raise

    def _count(self, lane: Lane, change: int) -> None:
        with self._counting:
            self._abandoned[lane] += change

    def close(self) -> None:
        """Let running work end and drop what waits."""
        self._pool.shutdown(wait=False, cancel_futures=True)
