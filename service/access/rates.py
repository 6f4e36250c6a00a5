"""How often somebody may ask."""

import math
import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from service.errors import RateLimited


class Rates:
    """At most so many requests a minute for each name; kept in memory, so for one process."""

    def __init__(self, per_minute: int) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._item = RateLimitItemPerMinute(per_minute)

    def hit(self, name: str) -> None:
        """Count one request.

        Raises:
            RateLimited: one too many; says when there is room again.
        """
        if self._limiter.hit(self._item, name):
            return
        reset = self._limiter.get_window_stats(self._item, name).reset_time
        raise RateLimited(
            f"expected at most {self._item.amount} a minute: send the request again later",
            retry_after_s=max(1, math.ceil(reset - time.time())),
        )
