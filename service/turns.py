"""Places that are given in the order in which they were asked for, one lane before the other."""

import threading
from collections import deque

from service.tickets import BULK_TURN, LANES, Lane, current_ticket


class Turns:
    """A semaphore that is fair: whoever gives a place back hands it to who waits longest.

    One of the library lets the thread that gives a place back take it again before the one that
    waits has woken: a request of many pictures would keep a request of one waiting for most of
    them. Interactive requests go first, and every `BULK_TURN`th place begins with the bulk lane.
    """

    def __init__(self, places: int) -> None:
        self._lock = threading.Lock()
        self._places = self._free = places
        self._waiting: dict[Lane, deque[threading.Event]] = {lane: deque() for lane in LANES}
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
            mine = threading.Event()
            self._waiting["interactive" if ticket is None else ticket.lane].append(mine)
        mine.wait()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._handed += 1
            lanes = list(self._waiting.values())
            for lane in reversed(lanes) if self._handed % BULK_TURN == 0 else lanes:
                if lane:
                    lane.popleft().set()
                    return
            self._free += 1
