"""Searches beside an addition: each sees it whole or not at all, and nothing breaks."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from index.catalogue import Catalogue, CatalogueLesion, Exclusion
from index.filters import parse_filter
from index.locking import ReadersWriter
from tests.fakes import LABELS, SCHEMA

MakeLesion = Callable[..., CatalogueLesion]
MakeCatalogue = Callable[..., Catalogue]
BATCH = 25


def test_searches_beside_additions_see_whole_batches(
    make_catalogue: MakeCatalogue, make_lesion: MakeLesion
) -> None:
    catalogue = make_catalogue([make_lesion(n) for n in range(BATCH)])
    batches = [[make_lesion(n) for n in range(s, s + BATCH)] for s in range(BATCH, 400, BATCH)]
    finished = threading.Event()
    query = np.ones((3, 6), np.float32)
    female = parse_filter({"sex": "female"}, SCHEMA, LABELS)

    def search() -> list[int]:
        seen = []
        while not finished.is_set():
            (all_hits, *_) = catalogue.search(query, k=1000)
            seen.append(len(all_hits))
            (women, *_) = catalogue.search(query, k=1000, where=female)
            assert {hit.record["sex"] for hit in women} == {"female"}
            exclude = Exclusion(lesions=frozenset({"lesion-000"}))
            assert len(catalogue.search(query, k=1, exclude=exclude)[0]) == 1
        return seen

    with ThreadPoolExecutor(4) as pool:
        searchers = [pool.submit(search) for _ in range(3)]
        try:
            for batch in batches:
                catalogue.add(batch)
            catalogue.save()
        finally:
            finished.set()
        for searcher in searchers:
            seen = searcher.result(timeout=30)
            assert seen == sorted(seen)
            assert all(number % BATCH == 0 for number in seen)
    assert len(catalogue.search(query, k=1000)[0]) == len(catalogue) == 400


def test_additions_from_several_threads_are_all_kept(
    make_catalogue: MakeCatalogue, make_lesion: MakeLesion
) -> None:
    catalogue = make_catalogue()
    with ThreadPoolExecutor(4) as pool:
        added = [pool.submit(catalogue.add, [make_lesion(n)]) for n in range(40)]
        for future in added:
            future.result(timeout=30)
    assert (len(catalogue), catalogue.revision) == (40, 40)
    assert len(catalogue.search(np.ones((1, 6), np.float32), k=50)[0]) == 40


def test_readers_share_and_a_writer_is_alone() -> None:
    lock = ReadersWriter()
    both_inside = threading.Barrier(2, timeout=10)
    inside: list[str] = []

    def read() -> None:
        with lock.reading():
            both_inside.wait()

    def write(name: str) -> None:
        with lock.writing():
            inside.append(f"{name} in")
            time.sleep(0.01)
            inside.append(f"{name} out")

    with ThreadPoolExecutor(4) as pool:
        work = [pool.submit(read) for _ in range(2)] + [pool.submit(write, n) for n in "ab"]
        for future in work:
            future.result(timeout=10)
    assert [event.split()[1] for event in inside] == ["in", "out", "in", "out"]


def test_a_waiting_writer_goes_before_new_readers() -> None:
    lock = ReadersWriter()
    order: list[str] = []
    first_reads, first_may_leave = threading.Event(), threading.Event()

    def first_reader() -> None:
        with lock.reading():
            first_reads.set()
            first_may_leave.wait(10)

    def writer() -> None:
        with lock.writing():
            order.append("writer")

    def late_reader() -> None:
        with lock.reading():
            order.append("reader")

    with ThreadPoolExecutor(3) as pool:
        pool.submit(first_reader)
        first_reads.wait(10)
        writing = pool.submit(writer)
        while lock._writers_waiting == 0:
            time.sleep(0.001)
        reading = pool.submit(late_reader)
        time.sleep(0.02)
        assert order == []
        first_may_leave.set()
        writing.result(timeout=10)
        reading.result(timeout=10)
    assert order == ["writer", "reader"]


def test_an_error_inside_leaves_the_lock_free() -> None:
    lock = ReadersWriter()
    for enter in (lock.reading, lock.writing, lock.reading):
        try:
            with enter():
                raise ValueError
        except ValueError:
            pass
    with lock.writing():
        assert lock._is_writing
