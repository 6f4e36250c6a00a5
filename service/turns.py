"""Places that are given in the order in which they were asked for, one lane before the other."""

import threading
from collections import deque
from dataclasses import dataclass, field

from service.tickets import BULK_TURN, LANES, Lane, current_ticket


@dataclass(eq=False)
class _Waiting:
    """One that waits: its event is set when a place is handed to it, or its client left."""

    event: threading.Event = field(default_factory=threading.Event)
    has_place: bool = False


class Turns:
    """A semaphore that is fair: whoever gives a place back hands it to who waits longest.

    One of the library lets the thread that gives a place back take it again before the one that
    waits has woken: a request of many pictures would keep a request of one waiting for most of
    them. Interactive requests go first, and every `BULK_TURN`th place begins with the bulk lane.
    Whoever nobody waits for any more gives up the wait, as `Ticket.check` says.
    """

    def __init__(self, places: int) -> None:
        self._lock = threading.Lock()
        self._places = self._free = places
        self._waiting: dict[Lane, deque[_Waiting]] = {lane: deque() for lane in LANES}
        self._handed = 0

    @property
    def asked(self) -> int:
        """Places that are taken, and those that are waited for."""
        return self._places - self._free + sum(map(len, self._waiting.values()))

    def __enter__(self) -> None:
        ticket = current_ticket.get()
        with self._lock:
            if self._free:
                self._free -= 1
                return
            mine = _Waiting()
            lane = self._waiting["interactive" if ticket is None else ticket.lane]
            lane.append(mine)
        if ticket is None:
            mine.event.wait()
            return
        with ticket.told(mine.event.set):
            while not mine.has_place and not ticket.is_over:
                mine.event.wait(max(0.0, ticket.remaining_s))
        with self._lock:
            if mine.has_place:
                return
            lane.remove(mine)
        ticket.check()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._handed += 1
            lanes = list(self._waiting.values())
            for lane in reversed(lanes) if self._handed % BULK_TURN == 0 else lanes:
                if lane:
                    mine = lane.popleft()
                    mine.has_place = True
                    mine.event.set()
                    return
            self._free += 1
