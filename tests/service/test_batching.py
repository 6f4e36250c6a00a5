"""Pictures of several requests in one run of the encoder: who goes together, who fails alone."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from bundle.errors import InferenceError, Overloaded
from service.batch_choice import fixed_batching, measure_batching
from service.batching import BatchedEncoders, Batching
from service.errors import TimedOut
from service.tickets import BULK_TURN, Lane, Ticket, current_ticket, lane_of
from tests.fakes import DIM, FakeEncoders

FloatArray = npt.NDArray[np.float32]
POISON, NAN, CRASH = -1.0, -2.0, -3.0


@dataclass(frozen=True)
class Watched(FakeEncoders):
    """Embeds a picture as its first number; remembers its batches; poisonous pictures fail it."""

    batches: list[list[float]] = field(default_factory=list)
    may: threading.Event = field(default_factory=threading.Event)

    def embed_images(self, pixels: FloatArray) -> FloatArray:
        assert self.may.wait(600)
        numbers = pixels[:, 0, 0, 0]
        self.batches.append(numbers.tolist())
        if POISON in numbers:
            raise InferenceError("poison")
        if NAN in numbers:
            raise InferenceError("the model answered with a number that is not finite")
        if CRASH in numbers:
            raise ZeroDivisionError
        return np.repeat(numbers[:, None], DIM, axis=1)


def picture(*numbers: float) -> FloatArray:
    """Return (N, 3, 2, 2) float32 pictures that hold these numbers."""
    return np.repeat(np.array(numbers, np.float32), 12).reshape(-1, 3, 2, 2)


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


class Callers:
    """Callers on threads, each with a ticket of its own."""

    def __init__(self, encoders: BatchedEncoders) -> None:
        self.encoders = encoders
        self.pool = ThreadPoolExecutor(32)

    def ask(
        self, *numbers: float, within_s: float = 60.0, lane: Lane = "interactive"
    ) -> tuple[Future[FloatArray], Ticket]:
        ticket = Ticket(time.monotonic() + within_s, lane)
        context = copy_context()
        context.run(current_ticket.set, ticket)
        before = self.encoders.arrived
        asked = self.pool.submit(context.run, self.encoders.embed_images, picture(*numbers))
        wait_for(lambda: asked.done() or self.encoders.arrived > before)
        return asked, ticket


@pytest.fixture
def watched() -> Iterator[Watched]:
    encoders = Watched()
    yield encoders
    encoders.may.set()


def occupied(watched: Watched, max_batch: int = 8) -> Callers:
    """Return callers of an encoder that is busy with a first picture, so that others wait."""
    callers = Callers(BatchedEncoders(watched, Batching(max_batch)))
    callers.pool.submit(callers.encoders.embed_images, picture(99))
    wait_for(lambda: callers.encoders.busy_s > 0 and callers.encoders.waiting == 0)
    return callers


def test_what_waits_goes_together_by_powers_of_two_and_everyone_gets_his_own(
    watched: Watched,
) -> None:
    callers = occupied(watched)
    asked = [callers.ask(number)[0] for number in range(7)]
    watched.may.set()
    assert [one.result().tolist() for one in asked] == [[[number] * DIM] for number in range(7)]
    assert watched.batches == [[99], [0, 1, 2, 3], [4, 5], [6]]
    assert callers.encoders.busy_s == 0


def test_a_request_of_many_pictures_gets_them_in_order_whatever_the_batch(
    watched: Watched,
) -> None:
    callers = occupied(watched, max_batch=2)
    asked, _ = callers.ask(1, 2, 3)
    watched.may.set()
    assert asked.result()[:, 0].tolist() == [1, 2, 3]
    assert watched.batches == [[99], [1, 2], [3]]


@pytest.mark.parametrize("poison", [POISON, NAN, CRASH])
def test_a_poisonous_picture_fails_alone(watched: Watched, poison: float) -> None:
    callers = occupied(watched)
    asked = [callers.ask(number)[0] for number in (1, poison, 2, 3)]
    watched.may.set()
    error = ZeroDivisionError if poison == CRASH else InferenceError
    with pytest.raises(error):
        asked[1].result()
    assert [asked[i].result()[0, 0] for i in (0, 2, 3)] == [1, 2, 3]
    assert watched.batches == [[99], [1, poison, 2, 3], [1], [poison], [2], [3]]
    assert callers.ask(5)[0].result()[0, 0] == 5


def test_company_is_awaited_only_while_it_is_being_decoded(watched: Watched) -> None:
    watched.may.set()
    patient = Batching(8, max_delay_s=600)
    alone = BatchedEncoders(watched, patient)
    assert alone.embed_images(picture(1))[0, 0] == 1
    coming = [1]
    company = Callers(BatchedEncoders(watched, patient, coming=lambda: coming[0]))
    first, _ = company.ask(1)
    coming[0] = 0
    assert company.encoders.embed_images(picture(2))[0, 0] == 2
    assert first.result()[0, 0] == 1
    assert watched.batches in ([[1], [1, 2]], [[1], [1], [2]])
    hurried = BatchedEncoders(watched, Batching(8, max_delay_s=0.01), coming=lambda: 1)
    assert hurried.embed_images(picture(3))[0, 0] == 3


def test_company_that_comes_to_nothing_is_awaited_no_longer(watched: Watched) -> None:
    """As of an image that cannot be read: nobody tells the encoder."""
    watched.may.set()
    coming = [1]
    callers = Callers(
        BatchedEncoders(watched, Batching(8, max_delay_s=600), coming=lambda: coming[0])
    )
    asked, _ = callers.ask(1)
    assert not asked.done()
    coming[0] = 0
    assert asked.result(timeout=60)[0, 0] == 1


def test_company_is_awaited_until_there_is_a_run_of_it_and_no_longer(watched: Watched) -> None:
    watched.may.set()
    callers = Callers(BatchedEncoders(watched, Batching(4, max_delay_s=600), coming=lambda: 10))
    asked = [callers.ask(number)[0] for number in range(3)]
    assert not any(one.done() for one in asked)
    asked.append(callers.ask(3)[0])
    assert [one.result(timeout=60)[0, 0] for one in asked] == [0, 1, 2, 3]
    assert watched.batches == [[0, 1, 2, 3]]


def test_a_run_leaves_to_the_one_that_may_begin_beside_it_its_part(watched: Watched) -> None:
    """With one picture more coming, two free runs have nothing to wait for."""
    narrow = Watched()
    narrow.may.set()
    batching = Batching(8, at_once=2, max_delay_s=600)
    callers = Callers(BatchedEncoders(watched, batching, narrow=narrow, coming=lambda: 1))
    assert callers.ask(1)[0].result(timeout=60)[0, 0] == 1
    assert callers.ask(2)[0].result(timeout=60)[0, 0] == 2
    assert narrow.batches == [[1], [2]]


def test_interactive_pictures_overtake_bulk_ones(watched: Watched) -> None:
    callers = occupied(watched, max_batch=2)
    for number in (1, 2, 3):
        callers.ask(number, lane="bulk")
    asked = [callers.ask(number)[0] for number in (4, 5, 6)]
    watched.may.set()
    assert [one.result()[0, 0] for one in asked] == [4, 5, 6]
    wait_for(lambda: callers.encoders.busy_s == 0)
    assert watched.batches == [[99], [4, 5], [6, 1], [2, 3]]


def test_a_bulk_picture_comes_to_its_turn_however_many_interactive_ones_wait(
    watched: Watched,
) -> None:
    callers = occupied(watched, max_batch=1)
    callers.ask(1, lane="bulk")
    for number in range(2, 3 * BULK_TURN):
        callers.ask(number)
    watched.may.set()
    wait_for(lambda: [1] in watched.batches)
    assert watched.batches.index([1]) < BULK_TURN
    wait_for(lambda: callers.encoders.busy_s == 0)


def test_whoever_left_or_is_late_is_passed_over(watched: Watched) -> None:
    callers = occupied(watched)
    left, ticket = callers.ask(1)
    late, _ = callers.ask(2, within_s=0.05)
    stays, _ = callers.ask(3)
    ticket.leave()
    # At once, though the encoder is busy.
    with pytest.raises(ClientDisconnect):
        left.result()
    with pytest.raises(TimedOut):
        late.result()
    assert callers.encoders.waiting == 1
    watched.may.set()
    assert stays.result()[0, 0] == 3
    assert watched.batches == [[99], [3]]


def test_a_hang_costs_each_caller_his_own_time_and_is_seen(watched: Watched) -> None:
    callers = Callers(BatchedEncoders(watched, Batching(4)))
    first, _ = callers.ask(1, within_s=0.1)
    second, _ = callers.ask(2, within_s=0.1)
    for asked in (first, second):
        with pytest.raises(TimedOut):
            asked.result()
    assert callers.encoders.busy_s > 0.05
    watched.may.set()
    wait_for(lambda: callers.encoders.busy_s == 0)
    assert callers.ask(3)[0].result()[0, 0] == 3


def side_by_side(
    watched: Watched, narrow: Watched, coming: Callable[[], int] = lambda: 2
) -> Callers:
    """Return callers of an encoder that runs twice at once."""
    batching = Batching(at_once=2)
    return Callers(BatchedEncoders(watched, batching, narrow=narrow, coming=coming))


def test_as_many_runs_as_were_chosen_go_side_by_side_one_picture_each(watched: Watched) -> None:
    narrow = Watched()
    callers = side_by_side(watched, narrow)
    asked = [callers.ask(number)[0] for number in (1, 2, 3)]
    wait_for(lambda: callers.encoders.waiting == 1)
    assert callers.encoders.busy_s > 0
    narrow.may.set()
    assert [one.result()[0, 0] for one in asked] == [1, 2, 3]
    wait_for(lambda: callers.encoders.busy_s == 0)
    assert sorted(narrow.batches) == [[1], [2], [3]]
    assert not watched.batches


def test_runs_side_by_side_share_what_waits(watched: Watched) -> None:
    narrow = Watched()
    batching = Batching(max_batch=8, at_once=2)
    callers = Callers(BatchedEncoders(watched, batching, narrow=narrow, coming=lambda: 10))
    asked = [callers.ask(number)[0] for number in (1, 2)]
    wait_for(lambda: callers.encoders.waiting == 0)
    asked += [callers.ask(number)[0] for number in (3, 4, 5, 6)]
    narrow.may.set()
    assert [one.result()[0, 0] for one in asked] == [1, 2, 3, 4, 5, 6]
    wait_for(lambda: callers.encoders.busy_s == 0)
    # Whoever is done first takes what waits then, up to its part of that and of what is coming.
    assert sorted(number for batch in narrow.batches for number in batch) == [1, 2, 3, 4, 5, 6]
    assert {len(batch) for batch in narrow.batches} <= {1, 2, 4}
    assert len(narrow.batches) < 6
    assert not watched.batches


def test_a_picture_that_is_the_only_one_inside_has_all_threads(watched: Watched) -> None:
    narrow = Watched()
    callers = side_by_side(watched, narrow, coming=lambda: 0)
    alone, _ = callers.ask(1)
    wait_for(lambda: callers.encoders.waiting == 0)
    beside, _ = callers.ask(2)
    narrow.may.set()
    assert beside.result()[0, 0] == 2
    watched.may.set()
    assert alone.result()[0, 0] == 1
    assert (watched.batches, narrow.batches) == ([[1]], [[2]])


def test_a_poisonous_picture_beside_another_fails_alone(watched: Watched) -> None:
    watched.may.set()
    callers = side_by_side(watched, watched)
    asked = [callers.ask(number)[0] for number in (1, POISON, 2)]
    with pytest.raises(InferenceError):
        asked[1].result()
    assert [asked[i].result()[0, 0] for i in (0, 2)] == [1, 2]


def test_more_pictures_than_may_wait_are_refused(watched: Watched) -> None:
    callers = Callers(BatchedEncoders(watched, Batching(2), max_waiting=2))
    callers.ask(1)
    wait_for(lambda: callers.encoders.waiting == 0)
    callers.ask(2, 3)
    with pytest.raises(Overloaded, match="at most 2 pictures"):
        callers.encoders.embed_images(picture(4))
    watched.may.set()


def test_what_waits_when_the_service_ends_is_told(watched: Watched) -> None:
    callers = occupied(watched)
    asked, _ = callers.ask(1)
    callers.encoders.close()
    with pytest.raises(TimedOut):
        asked.result()
    with pytest.raises(Overloaded):
        callers.encoders.embed_images(picture(2))
    watched.may.set()


@settings(max_examples=40, deadline=None)
@given(
    asked=st.lists(
        st.tuples(
            st.lists(st.sampled_from([1.0, 2.0, 3.0, POISON, CRASH]), min_size=1, max_size=5),
            st.sampled_from(["stays", "stays", "leaves"]),
            st.sampled_from(["interactive", "bulk"]),
        ),
        min_size=1,
        max_size=12,
    ),
    max_batch=st.sampled_from([1, 2, 4, 8]),
    at_once=st.sampled_from([1, 2, 3]),
    early=st.booleans(),
)
def test_whatever_comes_everyone_gets_his_own_answer_or_his_own_error(
    asked: list[tuple[list[float], str, Lane]], max_batch: int, at_once: int, early: bool
) -> None:
    watched = Watched()
    callers = Callers(BatchedEncoders(watched, Batching(max_batch, at_once)))
    if early:
        watched.may.set()
    answers = []
    for numbers, what, lane in asked:
        answer, ticket = callers.ask(*numbers, lane=lane)
        ticket.is_left = what == "leaves"
        answers.append(answer)
    watched.may.set()
    for (numbers, what, _), answer in zip(asked, answers, strict=True):
        error = answer.exception(timeout=600)
        if error is None:
            assert answer.result()[:, 0].tolist() == numbers
        elif isinstance(error, ClientDisconnect):
            assert what == "leaves"
        else:
            bad = [n for n in numbers if n < 0]
            assert isinstance(error, InferenceError if bad[0] == POISON else ZeroDivisionError)
    wait_for(lambda: callers.encoders.busy_s == 0)
    assert callers.encoders.waiting == 0
    assert all(len(batch).bit_count() == 1 for batch in watched.batches)
    assert all(len(batch) <= max_batch for batch in watched.batches)
    callers.pool.shutdown()


def rates_of(seconds: dict[int, float], monkeypatch: pytest.MonkeyPatch) -> Batching:
    """Return what is chosen where a batch takes so many seconds."""
    now = [0.0]

    class Timed(FakeEncoders):
        def embed_images(self, pixels: FloatArray) -> FloatArray:
            now[0] += seconds[len(pixels)]
            return super().embed_images(pixels)

    monkeypatch.setattr("service.batch_choice.time.perf_counter", lambda: now[0])
    return measure_batching(Timed(), 4, 0.5)


@pytest.mark.parametrize(("takes_s", "runs"), [(0.01, 5), (0.09, 4), (0.5, 3)])
def test_a_slow_encoder_is_tried_in_fewer_rounds(
    takes_s: float, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Read before and after each round.
    clock = iter(np.arange(100) * takes_s)
    monkeypatch.setattr("service.batch_choice.time.perf_counter", lambda: next(clock))
    sizes: list[int] = []

    class Counted(FakeEncoders):
        def embed_images(self, pixels: FloatArray) -> FloatArray:
            sizes.append(len(pixels))
            return super().embed_images(pixels)

    measure_batching(Counted(), 4, 0.5)
    assert sizes.count(1) == runs


@pytest.mark.parametrize(
    ("seconds", "chosen", "tried"),
    [
        ({1: 1, 2: 2}, 1, 2),
        ({1: 1, 2: 1.5, 4: 3}, 2, 4),
        ({1: 1, 2: 1.5, 4: 2, 8: 3}, 8, 8),
        ({1: 1, 2: 1.5, 4: 2, 8: 3.9}, 4, 8),
    ],
)
def test_batches_are_used_only_where_they_pay(
    seconds: dict[int, float], chosen: int, tried: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rates_of(seconds, monkeypatch)
    assert found.max_batch == chosen
    assert found.max_delay_s == (0.5 if chosen > 1 else 0)
    assert max(found.rates) == tried
    assert found.rates[2] == pytest.approx(2 / seconds[2])


@pytest.mark.parametrize(
    ("beside", "batch_of_8", "at_once", "max_batch"),
    [
        # Images a second where one picture at a time makes 10.
        (7.9, 10.0, 1, 1),
        (8.1, 10.0, 2, 1),
        (11.0, 13.0, 2, 1),
        (11.0, 14.0, 1, 8),
        (11.0, 20.0, 1, 8),
        (9.0, 20.0, 1, 8),
    ],
)
def test_runs_go_side_by_side_unless_all_threads_in_one_pay_much_more(
    beside: float, batch_of_8: float, at_once: int, max_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {1: 10.0, 2: 10.6, 4: 11.2, 8: batch_of_8}
    rates = rates if batch_of_8 > 10 else dict.fromkeys(rates, 10.0)
    monkeypatch.setattr("service.batch_choice._rate", lambda encoders, size_px, batch: rates[batch])
    monkeypatch.setattr("service.batch_choice._rate_side_by_side", lambda *_: beside)
    # Batches of runs side by side pay nothing here.
    found = measure_batching(FakeEncoders(), 4, 0.5, narrow=FakeEncoders(), at_once=2)
    assert (found.at_once, found.max_batch) == (at_once, max_batch)
    assert found.max_delay_s == (0.5 if max_batch > 1 else 0)
    assert found.side_by_side_rate == beside


def test_runs_side_by_side_take_the_batch_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    beside = {1: 10.0, 2: 16.0, 4: 20.0, 8: 20.5}
    monkeypatch.setattr("service.batch_choice._rate", lambda *_: 10.0)
    monkeypatch.setattr(
        "service.batch_choice._rate_side_by_side",
        lambda encoders, size_px, at_once, batch: beside[batch],
    )
    found = measure_batching(FakeEncoders(), 4, 0.5, narrow=FakeEncoders(), at_once=2)
    assert (found.at_once, found.max_batch, found.side_by_side_rate) == (2, 4, 20.0)
    assert found.max_delay_s == 0.5


def test_runs_side_by_side_are_timed_together() -> None:
    found = measure_batching(FakeEncoders(), 4, 0.5, narrow=FakeEncoders(), at_once=3)
    assert found.side_by_side_rate is not None
    assert found.side_by_side_rate > 0
    assert measure_batching(FakeEncoders(), 4, 0.5).side_by_side_rate is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no niceness")
def test_the_encoder_gives_way_to_other_threads() -> None:
    encoders = Niceness()
    BatchedEncoders(encoders, Batching(1)).embed_images(np.zeros((1, 3, 2, 2), np.float32))
    assert encoders.seen > os.getpriority(os.PRIO_PROCESS, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no niceness")
@pytest.mark.parametrize("forbidden", [False, True])
def test_a_service_that_is_nicer_already_stays_so_and_answers(
    monkeypatch: pytest.MonkeyPatch, forbidden: bool
) -> None:
    """To be less nice takes a privilege; a thread that fails at its start would hold all up."""
    taken: list[int] = []

    def set_priority(which: int, who: int, niceness: int) -> None:
        taken.append(niceness)
        if forbidden:
            raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "getpriority", lambda which, who: 10)
    monkeypatch.setattr(os, "setpriority", set_priority)
    batched = BatchedEncoders(FakeEncoders(), Batching(at_once=2))
    asked, _ = Callers(batched).ask(1)
    assert asked.result().shape == (1, DIM)
    assert set(taken) == {10}


class Niceness(FakeEncoders):
    """Notes that of the thread that embeds."""

    seen = 0

    def embed_images(self, pixels: FloatArray) -> FloatArray:
        self.seen = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        return super().embed_images(pixels)


def test_every_batch_that_a_site_allows_has_run_before_the_first_request(watched: Watched) -> None:
    watched.may.set()
    assert fixed_batching(watched, 2, 8, 0.5) == Batching(8, max_delay_s=0.5)
    assert [len(batch) for batch in watched.batches] == [1, 2, 4, 8]


def test_company_is_awaited_as_long_as_one_picture_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.batch_choice._rate", lambda encoders, size_px, batch: 10.0 * batch)
    encoders = FakeEncoders()
    assert fixed_batching(encoders, 2, 1, None).max_delay_s == 0
    assert fixed_batching(encoders, 2, 8, None).max_delay_s == pytest.approx(0.1)
    assert measure_batching(encoders, 2, None).max_delay_s == pytest.approx(0.1)
    # Two runs side by side that make 40 a second take 50 ms each.
    paying = {1: 40.0, 2: 80.0, 4: 160.0, 8: 320.0}
    monkeypatch.setattr(
        "service.batch_choice._rate_side_by_side",
        lambda encoders, size_px, at_once, batch: paying[batch],
    )
    beside = measure_batching(encoders, 2, None, narrow=encoders, at_once=2)
    assert (beside.at_once, beside.max_batch) == (2, 8)
    assert beside.max_delay_s == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("priority", "lane"),
    [
        (None, "interactive"),
        ("", "interactive"),
        ("u=3", "interactive"),
        ("u=5", "bulk"),
        ("i, u=7", "bulk"),
        ("u=9", "interactive"),
        ("nonsense", "interactive"),
    ],
)
def test_a_header_asks_for_the_bulk_lane(priority: str | None, lane: Lane) -> None:
    assert lane_of(priority) == lane


def test_an_answered_picture_is_not_looked_for_in_its_lane(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`deque.remove` writes what it does not find into its error, with all its pixels."""
    written: list[object] = []

    def note(item: object) -> str:
        written.append(item)
        return ""

    monkeypatch.setattr("service.batching._Item.__repr__", note)
    encoders = BatchedEncoders(FakeEncoders(), Batching(max_batch=2))
    encoders.embed_images(np.zeros((3, 3, 4, 4), np.float32))
    assert not written
