"""How often somebody may ask."""

import math
import time
from collections import deque
from collections.abc import Callable

from service.errors import RateLimited

WINDOW_S = 60.0


class Rates:
    """At most so many requests in any minute for each name; kept in memory, so for one process.

    Whoever has not asked for a minute is forgotten: names are as many as strangers like.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._asked: dict[str, deque[float]] = {}
        self._forget_at = clock() + WINDOW_S

    def __len__(self) -> int:
        """Return how many names are remembered."""
        return len(self._asked)

    def hit(self, name: str) -> None:
        """Count one request.

        Raises:
            RateLimited: one too many; says when there is room again.
        """
        now = self._clock()
        if now >= self._forget_at:
            self._forget(now)
        asked = self._asked.setdefault(name, deque())
        while asked and asked[0] <= now - WINDOW_S:
            asked.popleft()
        if len(asked) >= self._per_minute:
            raise RateLimited(
                f"expected at most {self._per_minute} a minute: send the request again later",
                retry_after_s=max(1, math.ceil(asked[0] + WINDOW_S - now)),
            )
        asked.append(now)

    def _forget(self, now: float) -> None:
        self._asked = {
            name: asked for name, asked in self._asked.items() if asked[-1] > now - WINDOW_S
        }
        self._forget_at = now + WINDOW_S
