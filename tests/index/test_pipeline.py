"""Work on several threads: in order, ahead by a little, stopped when somebody stops."""

import itertools
import threading
from collections.abc import Iterator

import pytest

from index.pipeline import AHEAD, in_order


def test_results_come_in_the_items_order_whichever_is_ready_first() -> None:
    second_is_done = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            second_is_done.wait()
        if number == 1:
            second_is_done.set()
        return number * number

    assert list(in_order(work, range(50), threads=2)) == [n * n for n in range(50)]


@pytest.mark.parametrize("threads", [1, 3])
def test_items_are_taken_only_a_little_ahead_and_may_be_endless(threads: int) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number

    results = in_order(lambda n: n, items(), threads=threads)
    for expected in range(20):
        assert next(results) == expected
        assert len(taken) <= expected + AHEAD * threads
    results.close()  # type: ignore[attr-defined]


def test_an_error_comes_in_its_items_turn_and_nothing_after_it_is_begun() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise ValueError("three")
        return number

    results = in_order(work, range(100), threads=1)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert len(begun) <= 3 + AHEAD + 1


def test_no_items_give_no_results() -> None:
    assert list(in_order(str, [], threads=2)) == []


def test_threads_end_with_the_work() -> None:
    before = threading.active_count()
    assert len(list(in_order(str, range(10), threads=4))) == 10
    assert threading.active_count() == before
