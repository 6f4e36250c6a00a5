"""Pictures of several requests through the image encoder: one by one, side by side or together.

What pays is measured when the service starts (`service/batch_choice.py`). On a few processors it is
mostly one run beside the other, each of one thread; a picture that is the only one inside has all
threads. Where larger batches pay, a run takes a power of two of what waits, and leaves other runs
their part. Interactive requests go first, but for one run in a few. A run that fails is repeated
picture by picture, so that one poisonous picture fails alone. Whoever waits for nobody is passed
over.
"""

import contextlib
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from bundle.calibration import FloatArray
from bundle.encoder import BoolArray, Encoders
from bundle.errors import Overloaded
from bundle.fields import Level
from bundle.records import EncodedRecords
from service.errors import TimedOut
from service.tickets import BULK_TURN, LANES, Lane, Ticket, current_ticket

# How long a run that waits for company sleeps at most.
LOOK_AGAIN_S = 0.002
# Of threads that run the encoder, of 0 to 19.
NICENESS = 5


@dataclass(frozen=True)
class Batching:
    """How pictures go through the encoder.

    Attributes:
        max_batch: pictures of one run at most, a power of two.
        at_once: runs side by side, each of one thread where there are several.
        max_delay_s: how long a picture waits for the company of those that are being decoded.
        rates: batch to images a second of one run with all threads, as measured when the service
            started; empty where the site chose.
        side_by_side_rate: images a second of runs side by side at their best batch; None where not
            measured.
    """

    max_batch: int = 1
    at_once: int = 1
    max_delay_s: float = 0.0
    rates: Mapping[int, float] = field(default_factory=dict)
    side_by_side_rate: float | None = None


@dataclass(eq=False)
class _Item:
    """One picture that waits: (3, H, W) float32 pixels."""

    pixels: FloatArray
    ticket: Ticket | None
    answer: Future[FloatArray] = field(default_factory=Future)
    is_alone: bool = False

    @property
    def lane(self) -> Lane:
        return "interactive" if self.ticket is None else self.ticket.lane

    def is_wanted(self) -> bool:
        """Return whether somebody still waits; whoever does not is told."""
        if self.ticket is not None and self.ticket.is_over:
            self.answer.cancel()
        return not self.answer.cancelled()


@dataclass
class _Run:
    """One run of the encoder: when it began, and its pictures once it has taken them."""

    began: float = field(default_factory=time.monotonic)
    batch: list[_Item] = field(default_factory=list)
    has_taken: bool = False


class BatchedEncoders:
    """The encoders of a bundle behind a queue of pictures; for any number of threads."""

    def __init__(
        self,
        encoders: Encoders,
        batching: Batching,
        *,
        narrow: Encoders | None = None,
        max_waiting: int = 1024,
        coming: Callable[[], int] = lambda: 0,
    ) -> None:
        """Start no thread yet.

        Args:
            encoders: what answers.
            batching: how many pictures at once.
            narrow: answers where several run side by side; the same with one thread.
            max_waiting: pictures that may wait.
            coming: counts the pictures that are being decoded or wait for that; most of them will
                be brought here.
        """
        self.batching = batching
        self._encoders = encoders
        self._narrow = encoders if narrow is None else narrow
        self._max_waiting = max_waiting
        self._coming = coming
        self._threads = ThreadPoolExecutor(
            batching.at_once, thread_name_prefix="encoder", initializer=_give_way
        )
        self._lanes: dict[Lane, deque[_Item]] = {lane: deque() for lane in LANES}
        self._changed = threading.Condition()
        self._runs: list[_Run] = []
        self._is_closed = False
        # Pictures and batches so far.
        self.arrived = self._taken = 0

    @property
    def embedding_dim(self) -> int:
        return self._encoders.embedding_dim

    @property
    def has_context(self) -> bool:
        return self._encoders.has_context

    @property
    def waiting(self) -> int:
        """Pictures that wait for the encoder."""
        return sum(map(len, self._lanes.values()))

    @property
    def busy_s(self) -> float:
        """Seconds since the oldest run that is under way began, 0 where there is none."""
        now = time.monotonic()
        return max((now - run.began for run in self._runs.copy()), default=0.0)

    def embed_images(self, pixels: FloatArray) -> FloatArray:
        """Return (N, D) float32 features of (N, 3, H, W) float32 prepared images.

        Raises:
            InferenceError: a picture has no finite feature.
            TimedOut: the request's time is over.
            ClientDisconnect: its client went away.
            Overloaded: more pictures wait than may.
        """
        ticket = current_ticket.get()
        items = [_Item(image, ticket) for image in pixels]
        with self._changed:
            if self.waiting + len(items) > self._max_waiting or self._is_closed:
                raise Overloaded(
                    f"expected at most {self._max_waiting} pictures to wait: send this request "
                    "again later"
                )
            for item in items:
                self._lanes[item.lane].append(item)
            self.arrived += len(items)
            self._changed.notify_all()
            self._start()
        drop = partial(self._drop, items)
        try:
            with contextlib.nullcontext() if ticket is None else ticket.told(drop):
                return np.stack([_wait(item) for item in items])
        finally:
            drop()

    def _drop(self, items: Sequence[_Item]) -> None:
        """Let go of pictures that nobody waits for any more."""
        with self._changed:
            for item in items:
                # One that is answered waits in no lane: not to find it there is not free, since
                # the error's text would hold its pixels.
                if item.answer.cancel():
                    with contextlib.suppress(ValueError):
                        self._lanes[item.lane].remove(item)

    def embed_records(self, records: EncodedRecords, level: Level) -> FloatArray:
        """Return (N, D) float32 features of N encoded records of one level."""
        return self._encoders.embed_records(records, level)

    def classify(
        self,
        image: FloatArray,
        lesion_record: FloatArray,
        patient_record: FloatArray,
        *,
        image_present: BoolArray,
        lesion_present: BoolArray,
        patient_present: BoolArray,
    ) -> FloatArray:
        """Return (N, C) float32 logits of (N, D) features; presence flags are (N,) bool."""
        return self._encoders.classify(
            image,
            lesion_record,
            patient_record,
            image_present=image_present,
            lesion_present=lesion_present,
            patient_present=patient_present,
        )

    def context(
        self,
        image: FloatArray,
        lesion_record: FloatArray,
        *,
        lesion_present: BoolArray,
        malignancy_logit: FloatArray,
        patient_record: FloatArray,
        patient_present: bool,
    ) -> FloatArray:
        """Return (L,) float32 malignancy log odds, as `Encoders.context` says."""
        return self._encoders.context(
            image,
            lesion_record,
            lesion_present=lesion_present,
            malignancy_logit=malignancy_logit,
            patient_record=patient_record,
            patient_present=patient_present,
        )

    def close(self) -> None:
        """Let the running batch end and drop what waits."""
        with self._changed:
            self._is_closed = True
            for lane in self._lanes.values():
                while lane:
                    lane.popleft().answer.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> None:
        """Begin a run, if there is a picture and room for one; the lock is held.

        The next begins when this one has taken its pictures: two that wait for company at once
        would each leave it to the other.
        """
        is_choosing = any(not run.has_taken for run in self._runs)
        if self.waiting and not is_choosing and len(self._runs) < self.batching.at_once:
            run = _Run()
            self._runs.append(run)
            self._threads.submit(self._look, run).add_done_callback(partial(self._settle, run))

    def _look(self, run: _Run) -> FloatArray:
        with self._changed:
            self._await_company()
            run.batch, run.has_taken = self._take(), True
            # The wait for company is not the model's.
            run.began = time.monotonic()
            is_alone = len(self._runs) == 1 and not self.waiting and not self._coming()
            self._start()
        if not run.batch:
            return np.zeros((0, self.embedding_dim), np.float32)
        encoders = self._encoders if is_alone or self.batching.at_once == 1 else self._narrow
        if len(run.batch) == 1:
            return encoders.embed_images(run.batch[0].pixels[None])
        return encoders.embed_images(np.stack([item.pixels for item in run.batch]))

    def _settle(self, run: _Run, done: Future[FloatArray]) -> None:
        """Hand out a run's answers, or see to it that a failed batch is run one by one."""
        if done.cancelled():
            return
        with self._changed:
            self._runs.remove(run)
            error = done.exception()
            wanted = [
                (at, item) for at, item in enumerate(run.batch) if not item.answer.cancelled()
            ]
            if error is None:
                for at, item in wanted:
                    item.answer.set_result(done.result()[at])
            elif len(run.batch) == 1:
                for _, item in wanted:
                    item.answer.set_exception(error)
            else:
                for _, item in reversed(wanted):
                    item.is_alone = True
                    self._lanes[item.lane].appendleft(item)
            self._start()

    def _await_company(self) -> None:
        until = time.monotonic() + self.batching.max_delay_s
        while self._coming() and self.waiting < self._share():
            left_s = until - time.monotonic()
            if left_s <= 0:
                return
            # What comes to nothing, as an image that cannot be read, tells nobody.
            self._changed.wait(min(left_s, LOOK_AGAIN_S))

    def _share(self) -> int:
        """Return how many pictures the next run is to take, of those that wait or are coming.

        A power of two, and no more than leaves as many to each other run that may begin now.
        """
        # The one that asks is free.
        free = self.batching.at_once - sum(run.has_taken for run in self._runs)
        even = math.ceil((self.waiting + self._coming()) / free)
        return min(self.batching.max_batch, max(1, _power_within(even)))

    def _take(self) -> list[_Item]:
        """Return the next batch: a power of two, or one picture that is to be alone."""
        batch: list[_Item] = []
        room = self._share()
        self._taken += 1
        lanes = list(self._lanes.values())
        for lane in reversed(lanes) if self._taken % BULK_TURN == 0 else lanes:
            while lane and len(batch) < room:
                if lane[0].is_alone and batch:
                    break
                item = lane.popleft()
                if item.is_wanted():
                    batch.append(item)
                if item.is_alone:
                    return batch
        return self._give_back(batch)

    def _give_back(self, batch: list[_Item]) -> list[_Item]:
        """Return the largest power of two of the batch; the rest waits on, at the front."""
        size = _power_within(len(batch))
        for item in reversed(batch[size:]):
            self._lanes[item.lane].appendleft(item)
        return batch[:size]


def _power_within(count: int) -> int:
    """Return the largest power of two that is no more, 0 where there is none."""
    return 1 << (count.bit_length() - 1) if count else 0


def _give_way() -> None:
    """Let other threads run before this one where processors are few.

    A run of the encoder keeps a processor for long; the event loop needs one often and briefly, and
    would answer a flood late if it waited its turn between runs.
    """
    if sys.platform == "linux":
        # A service that was started at a higher niceness stays there: less takes a privilege. Where
        # a sandbox forbids even more, its threads run as the others do.
        with contextlib.suppress(OSError):
            own = os.getpriority(os.PRIO_PROCESS, 0)
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), max(NICENESS, own))


def _wait(item: _Item) -> FloatArray:
    ticket = item.ticket
    try:
        return item.answer.result(None if ticket is None else max(0.0, ticket.remaining_s))
    except (TimeoutError, CancelledError):
        if ticket is not None:
            ticket.check()
        raise TimedOut("the picture was not looked at in time: send it again later") from None
