"""How often somebody may ask, and who is remembered for it."""

import pytest

from service.access.rates import WINDOW_S, Rates
from service.errors import RateLimited


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_minute_holds_so_many_and_says_when_there_is_room_again() -> None:
    clock = Clock()
    rates = Rates(2, clock)
    rates.hit("a")
    clock.now += 20
    rates.hit("a")
    rates.hit("b")
    with pytest.raises(RateLimited) as refused:
        rates.hit("a")
    assert refused.value.headers["Retry-After"] == str(round(WINDOW_S - 20))
    clock.now += WINDOW_S - 20
    rates.hit("a")
    with pytest.raises(RateLimited):
        rates.hit("a")


def test_who_has_not_asked_for_a_minute_is_forgotten() -> None:
    clock = Clock()
    rates = Rates(2, clock)
    for stranger in range(1000):
        rates.hit(str(stranger))
    assert len(rates) == 1000
    clock.now += WINDOW_S
    rates.hit("somebody")
    assert len(rates) == 1
