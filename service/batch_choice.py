"""How many pictures go through the image encoder at once: what is fastest on this machine.

Tried when the service starts, before the first request: `service/batching.py` works by it.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bundle.encoder import Encoders
from service.batching import Batching

LARGEST_BATCH = 8
# A larger batch must pay at least this much.
LEAST_GAIN = 1.05
# What has all threads in one run must pay this much more than runs side by side: its threads wait
# for each other, awake, and take from decoding and answering what those leave to it; a batch also
# begins only when its last picture is there.
LEAST_WIDE_GAIN = 1.25
# Rounds of a trial: as many as fit into the time, from the fewest to the most.
FEWEST_ROUNDS, MOST_ROUNDS, TRIAL_S = 2, 4, 0.2
# Of each thread when runs of one picture are timed side by side: they do not all end together.
RUNS_EACH = 2
# How long a picture waits for company at most, where nobody said.
LONGEST_DELAY_S = 1.0


def measure_batching(
    encoders: Encoders,
    size_px: int,
    max_delay_s: float | None,
    *,
    narrow: Encoders | None = None,
    at_once: int = 1,
) -> Batching:
    """Return what the encoder is fastest with on this machine, and the rates.

    Runs side by side are taken unless one run with all threads pays a quarter more. Every batch
    that may be used has run when this returns. A batch twice as large is tried only where the last
    one paid.

    Args:
        encoders: the models; nobody else uses them meanwhile.
        size_px: side of the pictures.
        max_delay_s: how long a picture may wait for company where batches pay; None is as long as
            one picture takes, a second at most. The processor then decodes the company.
        narrow: the same with one thread an inference; None where runs side by side are no choice.
        at_once: how many of those may run side by side.
    """
    best, rates = _climb(lambda batch: _rate(encoders, size_px, batch))
    if narrow is not None:
        beside, found = _climb(lambda batch: _rate_side_by_side(narrow, size_px, at_once, batch))
        if found[beside] * LEAST_WIDE_GAIN >= rates[best]:
            delay_s = _delay_s(max_delay_s, beside, lambda: at_once / found[1])
            return Batching(beside, at_once, delay_s, rates, found[beside])
    else:
        found = {}
    side_by_side = max(found.values(), default=None)
    return Batching(best, 1, _delay_s(max_delay_s, best, lambda: 1 / rates[1]), rates, side_by_side)


def fixed_batching(
    encoders: Encoders, size_px: int, max_batch: int, max_delay_s: float | None
) -> Batching:
    """Return batches that a site chose, each of which has run once: some runtimes compile then.

    Args:
        encoders: the models; nobody else uses them meanwhile.
        size_px: side of the pictures.
        max_batch: pictures of one run at most, a power of two.
        max_delay_s: how long a picture may wait for company; None is as long as one picture takes.
    """
    for power in range(max_batch.bit_length()):
        encoders.embed_images(np.zeros((1 << power, 3, size_px, size_px), np.float32))
    delay_s = _delay_s(max_delay_s, max_batch, lambda: 1 / _rate(encoders, size_px, 1))
    return Batching(max_batch, max_delay_s=delay_s)


def _delay_s(chosen: float | None, max_batch: int, one_picture_s: Callable[[], float]) -> float:
    if max_batch == 1:
        return 0.0
    return min(one_picture_s(), LONGEST_DELAY_S) if chosen is None else chosen


def _climb(rate: Callable[[int], float]) -> tuple[int, dict[int, float]]:
    """Return the batch that pays, and the rates: one twice as large is tried while the last did."""
    rates: dict[int, float] = {}
    best = batch = 1
    while batch <= LARGEST_BATCH and best * 2 >= batch:
        rates[batch] = rate(batch)
        if rates[batch] >= rates[best] * LEAST_GAIN:
            best = batch
        batch *= 2
    return best, rates


def _rate(encoders: Encoders, size_px: int, batch: int) -> float:
    pixels = np.zeros((batch, 3, size_px, size_px), np.float32)
    return batch / _least_s(lambda: encoders.embed_images(pixels))


def _rate_side_by_side(encoders: Encoders, size_px: int, at_once: int, batch: int) -> float:
    pixels = np.zeros((batch, 3, size_px, size_px), np.float32)
    runs = RUNS_EACH if batch == 1 else 1

    def run(_: int) -> None:
        for _ in range(runs):
            encoders.embed_images(pixels)

    with ThreadPoolExecutor(at_once) as threads:
        took = _least_s(lambda: list(threads.map(run, range(at_once))))
    return runs * at_once * batch / took


def _least_s(work: Callable[[], object]) -> float:
    """Return the seconds that the work takes once it is warm, and nothing else is in its way."""
    work()
    took: list[float] = []
    while len(took) < FEWEST_ROUNDS or (len(took) < MOST_ROUNDS and sum(took) < TRIAL_S):
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    return min(took)
