"""What is known of a request while it waits: until when it may, in which lane, for whom.

The ticket travels with the request's context, from the event loop to the thread that works for it,
so that whoever holds a queue can pass over what nobody waits for any more.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

from starlette.requests import ClientDisconnect

from service.errors import TimedOut

Lane = Literal["interactive", "bulk"]
LANES: tuple[Lane, ...] = ("interactive", "bulk")
# One turn of so many begins with the bulk lane, so that nobody waits there for ever.
BULK_TURN = 8
# RFC 9218: 0 is the most urgent, 3 what is not said, 7 the background.
BULK_URGENCY = 5
URGENCIES = {f"u={number}": number for number in range(8)}


@dataclass
class Ticket:
    """One request's.

    Attributes:
        deadline: on the monotonic clock, when its time is over.
        lane: in which it waits.
        is_left: whether its client went away; `leave` says so.
    """

    deadline: float
    lane: Lane = "interactive"
    is_left: bool = False
    _listeners: list[Callable[[], object]] = field(default_factory=list, repr=False)

    def leave(self) -> None:
        """Say that the client went away, and wake whoever waits for this request's sake."""
        self.is_left = True
        for call in tuple(self._listeners):
            call()

    @contextmanager
    def told(self, call: Callable[[], object]) -> Iterator[None]:
        """Have `call` called, on any thread, if the client goes away during the block."""
        self._listeners.append(call)
        try:
            if self.is_left:
                call()
            yield
        finally:
            self._listeners.remove(call)

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.is_left or self.remaining_s <= 0

    @property
    def remaining_s(self) -> float:
        return self.deadline - time.monotonic()

    def check(self) -> None:
        """Do nothing while somebody waits.

        Raises:
            ClientDisconnect: the client went away.
            TimedOut: the time is over.
        """
        if self.is_left:
            raise ClientDisconnect
        if self.is_over:
            raise TimedOut("no answer in time: send the request again later")


current_ticket: ContextVar[Ticket | None] = ContextVar("ticket", default=None)


def check_awaited() -> None:
    """Do nothing while somebody waits for what this thread works for.

    Raises:
        ClientDisconnect, TimedOut: as `Ticket.check`.
    """
    ticket = current_ticket.get()
    if ticket is not None:
        ticket.check()


def lane_of(priority: str | None) -> Lane:
    """Return the lane that a `Priority` header (RFC 9218) asks for: bulk from u=5 on."""
    for part in (priority or "").split(","):
        if URGENCIES.get(part.strip(), 0) >= BULK_URGENCY:
            return "bulk"
    return "interactive"
