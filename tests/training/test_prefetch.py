import threading
from collections.abc import Iterator

import pytest

from training.prefetch import one_ahead


def test_the_order_is_kept_and_nothing_is_lost() -> None:
    assert list(one_ahead(range(100))) == list(range(100))
    assert list(one_ahead([])) == []
    assert list(one_ahead([None, None])) == [None, None]


def test_one_batch_is_read_ahead_in_another_thread_and_no_more() -> None:
    readers: list[int] = []

    def batches() -> Iterator[int]:
        for number in range(5):
            readers.append(threading.get_ident())
            yield number

    taken = one_ahead(batches())
    assert next(taken) == 0
    assert next(taken) == 1
    assert len(readers) <= 3
    assert set(readers).isdisjoint({threading.get_ident()})
    assert list(taken) == [2, 3, 4]


def test_what_goes_wrong_while_reading_is_raised_where_the_batch_was_due() -> None:
    def batches() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    taken = one_ahead(batches())
    assert next(taken) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(taken)
