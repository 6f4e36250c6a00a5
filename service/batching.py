"""Pictures of several requests through the image encoder together, where that pays.

One thread runs the encoder. What arrives while it works waits, and goes into the next run with
whatever else waits: interactive requests first, a power of two at a time, up to a largest batch
that was measured when the service started. A run that fails is repeated picture by picture, so that
one poisonous picture fails alone. Whoever waits for nobody is passed over.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from bundle.calibration import FloatArray
from bundle.encoder import BoolArray, Encoders
from bundle.errors import Overloaded
from bundle.fields import Level
from bundle.records import EncodedRecords
from service.errors import TimedOut
from service.tickets import LANES, Lane, Ticket, current_ticket

LARGEST_BATCH = 8
# A batch is worth its waiting from this gain over the next smaller one.
LEAST_GAIN = 1.05
ROUNDS = 3


@dataclass(frozen=True)
class Batching:
    """How pictures go through the encoder.

    Attributes:
        max_batch: a power of two; 1 is one picture at a time.
        max_delay_s: how long a picture waits for the company of requests that are inside.
        rates: batch to images a second, as measured when the service started; empty where the
            site chose.
    """

    max_batch: int = 1
    max_delay_s: float = 0.0
    rates: Mapping[int, float] = field(default_factory=dict)


@dataclass
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


class BatchedEncoders:
    """The encoders of a bundle, images in batches; for any number of threads."""

    def __init__(
        self,
        encoders: Encoders,
        batching: Batching,
        *,
        max_waiting: int = 1024,
        inside: Callable[[], int] = lambda: 0,
    ) -> None:
        """Start no thread yet.

        Args:
            encoders: what answers.
            batching: how many pictures at once.
            max_waiting: pictures that may wait.
            inside: counts the requests that may still bring a picture, those that wait included.
        """
        self.batching = batching
        self._encoders = encoders
        self._max_waiting = max_waiting
        self._inside = inside
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._lanes: dict[Lane, deque[_Item]] = {lane: deque() for lane in LANES}
        self._changed = threading.Condition()
        self._batch: list[_Item] = []
        self._busy_since: float | None = None
        self._is_closed = False
        # Pictures so far.
        self.arrived = 0

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
        """Seconds since the encoder began what it does now, 0 where it does nothing."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

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
        try:
            return np.stack([_wait(item) for item in items])
        finally:
            with self._changed:
                for item in items:
                    item.answer.cancel()

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
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> None:
        """Have the encoder's thread take the next batch, if it is idle; the lock is held."""
        if self._busy_since is None and self.waiting:
            self._busy_since = time.monotonic()
            self._thread.submit(self._run).add_done_callback(self._settle)

    def _run(self) -> FloatArray:
        with self._changed:
            self._await_company()
            self._batch = self._take()
            # The wait for company is not the model's.
            self._busy_since = time.monotonic()
        if not self._batch:
            return np.zeros((0, self.embedding_dim), np.float32)
        if len(self._batch) == 1:
            return self._encoders.embed_images(self._batch[0].pixels[None])
        return self._encoders.embed_images(np.stack([item.pixels for item in self._batch]))

    def _settle(self, done: Future[FloatArray]) -> None:
        """Hand out a run's answers, or see to it that a failed batch is run one by one."""
        if done.cancelled():
            return
        with self._changed:
            batch, self._batch, self._busy_since = self._batch, [], None
            error = done.exception()
            wanted = [(at, item) for at, item in enumerate(batch) if not item.answer.cancelled()]
            if error is None:
                for at, item in wanted:
                    item.answer.set_result(done.result()[at])
            elif len(batch) == 1:
                for _, item in wanted:
                    item.answer.set_exception(error)
            else:
                for _, item in reversed(wanted):
                    item.is_alone = True
                    self._lanes[item.lane].appendleft(item)
            self._start()

    def _await_company(self) -> None:
        until = time.monotonic() + self.batching.max_delay_s
        while self.waiting < min(self.batching.max_batch, self._inside()):
            if not self._changed.wait(until - time.monotonic()):
                return

    def _take(self) -> list[_Item]:
        """Return the next batch: a power of two, or one picture that is to be alone."""
        batch: list[_Item] = []
        for lane in self._lanes.values():
            while lane and len(batch) < self.batching.max_batch:
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
        size = 1 << (len(batch).bit_length() - 1) if batch else 0
        for item in reversed(batch[size:]):
            self._lanes[item.lane].appendleft(item)
        return batch[:size]


def _wait(item: _Item) -> FloatArray:
    ticket = item.ticket
    try:
        return item.answer.result(None if ticket is None else max(0.0, ticket.remaining_s))
    except (TimeoutError, CancelledError):
        if ticket is not None:
            ticket.check()
        raise TimedOut("the picture was not looked at in time: send it again later") from None


def measure_batching(encoders: Encoders, size_px: int, max_delay_s: float) -> Batching:
    """Return the batch that the encoder is fastest with on this machine, and the rates.

    Every batch that may be used has run when this returns. A batch twice as large is tried only
    where the last one paid.

    Args:
        encoders: the models; nobody else uses them meanwhile.
        size_px: side of the pictures.
        max_delay_s: how long a picture may wait for company where batches pay.
    """
    rates: dict[int, float] = {}
    best, batch = 1, 1
    while batch <= LARGEST_BATCH:
        rates[batch] = _rate(encoders, size_px, batch)
        if rates[batch] >= rates[best] * LEAST_GAIN:
            best = batch
        if best < batch:
            break
        batch *= 2
    return Batching(best, max_delay_s if best > 1 else 0.0, rates)


def warm(encoders: Encoders, size_px: int, max_batch: int) -> None:
    """Run every batch that may be used once: some runtimes compile at the first."""
    for power in range(max_batch.bit_length()):
        encoders.embed_images(np.zeros((1 << power, 3, size_px, size_px), np.float32))


def _rate(encoders: Encoders, size_px: int, batch: int) -> float:
    pixels = np.zeros((batch, 3, size_px, size_px), np.float32)
    encoders.embed_images(pixels)
    took = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        encoders.embed_images(pixels)
        took.append(time.perf_counter() - started)
    return batch / float(np.median(took))
