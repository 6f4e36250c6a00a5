"""Lesions that come, change and go, under several eyes."""

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Connection, Select

from bundle.errors import (
    CatalogueError,
    DuplicateImage,
    InvalidRecord,
    LesionExists,
    LesionGone,
    RequestKeyReused,
    StaleCatalogue,
    UnknownLesion,
    UnsupportedVersion,
)
from index import cache, eligibility, live
from index.catalogue import Catalogue
from index.filters import parse_filter
from index.lesions import CatalogueLesion, Edit, FloatArray, RequestKey, StoredLesion
from index.rows import IdArray
from index.upkeep import back_up, verify
from index.vectors import FlatIndex
from tests.fakes import BLUE, GREEN, RED, make_lesion, write_catalogue

BUNDLE_ID = "ab" * 32
REQUEST = RequestKey("a" * 64, "b" * 64)
QUERY = np.ones((1, 4), np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six lesions of two patients."""
    lesions = [
        make_lesion(f"{name}-{n}", colour, seed=n, patient_id=name, record={"age_years": 30.0 + n})
        for name, colour in (("red", RED), ("green", GREEN))
        for n in range(3)
    ]
    with write_catalogue(tmp_path / "catalogue", lesions) as opened:
        opened.save()
    return tmp_path / "catalogue"


def reopen(folder: Path) -> Catalogue:
    return Catalogue.open(folder, bundle_id=BUNDLE_ID, variant="fp32")


@pytest.fixture
def catalogue(folder: Path) -> Iterator[Catalogue]:
    with reopen(folder) as opened:
        yield opened


def found(catalogue: Catalogue) -> set[str]:
    (hits,) = catalogue.search(QUERY, k=100)
    return {hit.lesion_id for hit in hits}


def new(name: str = "blue-0", seed: int = 70) -> CatalogueLesion:
    return make_lesion(name, BLUE, seed=seed, patient_id="blue")


def test_a_repeated_request_adds_once(catalogue: Catalogue) -> None:
    stored, added = catalogue.add_once(new(), REQUEST)
    assert (stored.lesion_id, added) == ("blue-0", True)
    revision = catalogue.revision
    again, added = catalogue.add_once(new(), REQUEST)
    assert (again.lesion_id, added) == ("blue-0", False)
    assert catalogue.revision == revision
    assert len(catalogue) == 7
    with pytest.raises(RequestKeyReused, match="nothing is added"):
        catalogue.add_once(new("blue-1", 71), RequestKey(REQUEST.key, "c" * 64))
    with pytest.raises(LesionExists, match="'blue-0'"):
        catalogue.add_once(new("blue-0", 72), None)
    with pytest.raises(DuplicateImage, match="'blue-0' holds one of them"):
        catalogue.add_once(new("blue-1"), None)
    assert found(catalogue) >= {"blue-0"}
    assert len(catalogue) == 7


def test_a_repeated_request_does_not_bring_an_erased_lesion_back(catalogue: Catalogue) -> None:
    catalogue.add_once(new(), REQUEST)
    catalogue.remove("blue-0")
    with pytest.raises(LesionGone, match="removed since"):
        catalogue.add_once(new(), REQUEST)
    assert len(catalogue) == 6
    # A request of its own is a decision of its own.
    assert catalogue.add_once(new(), None)[1]


def test_an_edit_changes_what_it_names(catalogue: Catalogue) -> None:
    before = catalogue.lesion("red-0")
    edit = Edit({"sex": "male", "age_years": None}, {"label": "mel", "confirmed_by": "follow_up"})
    after = catalogue.update("red-0", edit)
    assert after.record == {"sex": "male"}
    assert (after.label, after.confirmed_by, after.malignant) == (
        "mel",
        "follow_up",
        before.malignant,
    )
    np.testing.assert_array_equal(after.embedding, before.embedding)
    assert catalogue.revision == 2
    assert len(catalogue) == 6
    with pytest.raises(UnknownLesion, match="'nobody'"):
        catalogue.update("nobody", edit)
    with pytest.raises(InvalidRecord):
        catalogue.update("red-0", Edit({"age_years": -5.0}, {}))
    assert catalogue.lesion("red-0").record == {"sex": "male"}
    assert catalogue.revision == 2


def test_an_erased_patient_is_found_no_more(catalogue: Catalogue, folder: Path) -> None:
    receipt = catalogue.erase_patient("red")
    assert sorted(receipt.lesions) == ["red-0", "red-1", "red-2"]
    assert (receipt.images, receipt.thumbnails, receipt.revision) == (3, 3, 2)
    assert receipt.log_is_empty
    assert found(catalogue) == {"green-0", "green-1", "green-2"}
    with pytest.raises(UnknownLesion):
        catalogue.lesions_of_patient("red")
    with pytest.raises(UnknownLesion, match="an id that none"):
        catalogue.erase_patient("red")
    with reopen(folder) as again:
        assert found(again) == {"green-0", "green-1", "green-2"}


def test_nothing_of_an_erased_patient_lies_in_any_file(folder: Path) -> None:
    with reopen(folder) as catalogue:
        secret = make_lesion("canary-lesion", BLUE, seed=5, patient_id="canary-patient")
        catalogue.add([secret])
        catalogue.save()
        stored = catalogue.lesion("canary-lesion")
        image = catalogue.thumbnail("canary-lesion")
        traces = [b"canary", stored.embedding.astype("<f4").tobytes(), image]
        traces += [content.encode() for content in stored.content_hashes]
        assert all(any(t in f.read_bytes() for f in folder.iterdir()) for t in traces)
        catalogue.erase_patient("canary-patient")
        for file in folder.iterdir():
            content = file.read_bytes()
            assert [t for t in traces if t in content] == [], file.name
    with reopen(folder) as catalogue:
        catalogue.save()
    for file in folder.iterdir():
        assert [t for t in traces if t in file.read_bytes()] == [], file.name


def test_a_cache_is_dropped_only_while_nobody_can_write_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it could go in the middle of another process's `save`."""
    locked = []

    def drop(path: Path) -> None:
        with closing(sqlite3.connect(path / "catalogue.sqlite", timeout=0)) as other:
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                locked.append(path)
        cache.drop_cache(path)

    monkeypatch.setattr(live, "drop_cache", drop)
    kept = {f: (folder / f).read_bytes() for f in (cache.VECTORS, cache.DESCRIPTION)}
    with reopen(folder) as catalogue:
        catalogue.remove("red-0")
        catalogue.choose_index(factory="flat")
    for name, content in kept.items():
        (folder / name).write_bytes(content)
    reopen(folder).close()
    assert locked == [folder] * 3
    assert not (folder / cache.VECTORS).exists()


def test_a_reader_in_another_process_delays_neither_an_erasure_nor_what_empties_the_log(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As `slimp backup` reads: it holds what the log held when it began."""
    log = folder / "catalogue.sqlite-wal"
    with reopen(folder) as catalogue:
        catalogue.check()
        catalogue.add([make_lesion("canary", BLUE, patient_id="canary")])
        with closing(sqlite3.connect(folder / "catalogue.sqlite", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM lesion").fetchone()
            started = time.monotonic()
            receipt = catalogue.erase_patient("canary")
            assert time.monotonic() - started < 10
            assert not receipt.log_is_empty
            assert "another process reads the database" in caplog.text
            assert b"canary" in log.read_bytes()
            catalogue.check()
            catalogue.update("red-0", Edit({}, {"label": "nv"}))
            assert b"canary" in log.read_bytes()
        catalogue.check()
        for file in folder.iterdir():
            assert b"canary" not in file.read_bytes(), file.name


def test_whoever_sees_an_erasure_empties_the_log_if_its_process_was_killed(folder: Path) -> None:
    with reopen(folder) as catalogue, reopen(folder) as killed:
        catalogue.check()
        catalogue.add([make_lesion("canary", BLUE, patient_id="canary")])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(live, "checkpoint", lambda engine, wait_s: False)
            killed.erase_patient("canary")
        assert b"canary" in (folder / "catalogue.sqlite-wal").read_bytes()
        found(catalogue)
        catalogue.update("red-0", Edit({}, {"label": "nv"}))
        for file in folder.iterdir():
            assert b"canary" not in file.read_bytes(), file.name


def test_an_edit_is_made_of_the_lesion_as_it_stands_when_it_is_written(
    catalogue: Catalogue, folder: Path
) -> None:
    """No edit that another process was promised is lost in between."""
    with reopen(folder) as other, ThreadPoolExecutor(1) as threads:

        def relabel(stored: StoredLesion) -> Edit:
            # The other waits for the write lock that is held here.
            changed = threads.submit(other.update, "red-0", Edit({}, {"label": "mel"}))
            assert wait([changed], timeout=0.3).not_done
            return Edit({"age_years": 1 + float(stored.record["age_years"] or 0)}, {})

        assert catalogue.update("red-0", relabel).record["age_years"] == 31
    assert catalogue.lesion("red-0").label == "mel"
    assert catalogue.lesion("red-0").record["age_years"] == 31

    def refuse(stored: StoredLesion) -> Edit:
        raise InvalidRecord("no")

    revision = catalogue.revision
    with pytest.raises(InvalidRecord):
        catalogue.update("red-0", refuse)
    assert catalogue.revision == revision


def test_two_objects_on_one_catalogue_see_each_others_changes(folder: Path) -> None:
    with reopen(folder) as first, reopen(folder) as second:
        first.add_once(new(), REQUEST)
        assert "blue-0" in found(second)
        assert not second.add_once(new(), REQUEST)[1]
        second.erase_patient("red")
        second.add_once(new("blue-1", 71), None)
        first.update("blue-1", Edit({}, {"label": "mel"}))
        assert (
            found(first)
            == found(second)
            == {f"green-{n}" for n in range(3)}
            | {
                "blue-0",
                "blue-1",
            }
        )
        assert first.revision == second.revision == 5
        first.save()
    with reopen(folder) as third:
        assert len(third) == 5


def test_a_cache_that_holds_an_erased_lesion_is_dropped_at_the_next_start(folder: Path) -> None:
    """As after a kill between the commit and the cache's removal."""
    kept = {f: (folder / f).read_bytes() for f in (cache.VECTORS, cache.DESCRIPTION)}
    with reopen(folder) as catalogue:
        catalogue.remove("red-1")
    for name, content in kept.items():
        (folder / name).write_bytes(content)
    with reopen(folder) as catalogue:
        assert "red-1" not in found(catalogue)
        assert len(catalogue) == 5
        assert not (folder / cache.VECTORS).exists()


@pytest.mark.parametrize("is_cached", [True, False])
def test_a_catalogue_opened_while_another_process_writes_holds_every_lesion_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_cached: bool
) -> None:
    if not is_cached:
        cache.drop_cache(folder)
    with reopen(folder) as other:
        other.add([new("blue-0", 70)])

        def read(path: Path) -> object:
            cached = cache.read_cache(path)
            other.add([new("blue-1", 71)])
            other.remove("red-0")
            return cached

        monkeypatch.setattr(live, "read_cache", read)
        with reopen(folder) as opened:
            other.add([new("blue-2", 72)])
            (hits,) = opened.search(QUERY, k=100)
            names = [hit.lesion_id for hit in hits]
            assert len(names) == len(set(names)) == 8
            assert {"blue-0", "blue-1", "blue-2"} < set(names)
            opened.save()
    monkeypatch.undo()
    with reopen(folder) as again:
        assert found(again) == set(names)


def test_a_cache_that_another_process_replaces_while_it_is_read_is_read_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, replaced = cache.load_cache, list[Path]()
    with reopen(folder) as other:

        def load(path: Path, description: cache.CacheDescription) -> object:
            if not replaced:
                replaced.append(path)
                other.add([new("blue-0", 70)])
                other.save()
            return real(path, description)

        monkeypatch.setattr(cache, "load_cache", load)
        with reopen(folder) as opened:
            assert "blue-0" in found(opened)
        assert verify(folder).faults == ()


def test_a_change_that_failed_half_way_is_followed_once_more(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reopen(folder) as opened, reopen(folder) as other:
        other.add([new("blue-0", 70)])

        def fail(_: object) -> None:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(live.LiveVectors, "_heed_changes", fail)
            with pytest.raises(MemoryError):
                opened.search(QUERY, k=100)
        (hits,) = opened.search(QUERY, k=100)
        assert len(hits) == len({hit.lesion_id for hit in hits}) == 7


def many(start: int, count: int) -> list[CatalogueLesion]:
    return [
        make_lesion(f"many-{n}", RED, seed=1000 + n, embedding=direction(n))
        for n in range(start, start + count)
    ]


def direction(number: int) -> FloatArray:
    return np.random.default_rng(number).normal(0, 1, 4).astype(np.float32)


def test_whoever_began_without_the_approximate_index_takes_it_over_instead_of_losing_it(
    folder: Path,
) -> None:
    first = reopen(folder)
    first.add(many(0, 300))
    first.choose_index(factory="HNSW16,SQ8", recall=0.5)
    # The erasure drops the files: whoever begins now compares every vector.
    first.remove("many-0")
    second = reopen(folder)
    assert second._live.measured is None
    second.remove("many-1")
    second.add(many(300, 3))
    first.save()
    first.close()
    second.add(many(303, 2))
    second.save()
    second.close()
    with reopen(folder) as third:
        assert third._live.measured is not None
        (hits,) = third.search(QUERY, k=1000)
        assert len(hits) == len({hit.lesion_id for hit in hits}) == 6 + 300 - 2 + 5
    assert verify(folder).faults == ()


def test_whoever_saves_first_without_the_approximate_index_does_not_lose_it(folder: Path) -> None:
    """A worker that followed one that died after an erasure, and ends before the others."""
    first = reopen(folder)
    first.add(many(0, 300))
    first.choose_index(factory="HNSW16,SQ8", recall=0.5)
    first.remove("many-0")
    second = reopen(folder)
    second.save()
    second.close()
    first.save()
    first.close()
    with reopen(folder) as third:
        assert third._live.measured is not None
    assert verify(folder).faults == ()


def test_an_approximate_index_that_outgrew_its_measurement_says_so_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with reopen(folder) as opened:
        opened.add(many(0, 300))
        opened.choose_index(factory="HNSW16,SQ8", recall=0.5)
        opened.add(many(300, 100))
        assert "was measured among" not in caplog.text
        opened.add(many(400, 100))
        opened.add(many(500, 10))
        assert caplog.text.count("was measured among") == 1
        opened.choose_index(factory="HNSW16,SQ8", recall=0.5)
        opened.add(many(510, 10))
        assert caplog.text.count("was measured among") == 1


def test_a_filter_that_is_asked_again_is_not_looked_up_again_until_the_catalogue_changes(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Select[int]] = []
    real = eligibility._all_ids

    def counting(connection: Connection, query: Select[int]) -> IdArray:
        asked.append(query)
        return real(connection, query)

    monkeypatch.setattr(eligibility, "_all_ids", counting)

    def search(raw: dict[str, object]) -> set[str]:
        where = parse_filter(raw, catalogue.schema, ("nv", "mel", "bcc"))
        (hits,) = catalogue.search(QUERY, k=100, where=where)
        return {hit.lesion_id for hit in hits}

    over_30: dict[str, object] = {"age_years": {"gt": 30}}
    before = search(over_30)
    assert search(over_30) == before
    assert len(asked) == 1
    catalogue.update("red-0", lambda _: Edit({"age_years": 80.0}, {}))
    assert search(over_30) == before | {"red-0"}
    catalogue.remove("red-0")
    assert search(over_30) == before
    assert len(asked) == 3
    for bound in range(eligibility.KEPT_FILTERS + 1):
        search({"age_years": {"gt": bound}})
    search(over_30)
    assert len(asked) == 3 + eligibility.KEPT_FILTERS + 2


def test_a_database_that_went_back_is_told(folder: Path) -> None:
    with reopen(folder) as catalogue:
        with sqlite3.connect(folder / "catalogue.sqlite") as raw:
            raw.execute("UPDATE catalogue_info SET revision = 0")
        with pytest.raises(StaleCatalogue, match="went back from revision 1 to 0"):
            found(catalogue)


def test_a_failed_change_leaves_nothing(catalogue: Catalogue) -> None:
    with pytest.raises(LesionExists):
        catalogue.add([new(), make_lesion("red-0", RED)])
    assert len(catalogue) == 6
    assert catalogue.revision == 1
    assert "blue-0" not in found(catalogue)


def test_pages_follow_each_other_and_end(catalogue: Catalogue) -> None:
    first, cursor = catalogue.lesions_after(0, 4)
    assert [lesion.lesion_id for lesion in first] == ["red-0", "red-1", "red-2", "green-0"]
    assert cursor is not None
    catalogue.remove("green-0")
    rest, end = catalogue.lesions_after(cursor, 4)
    assert [lesion.lesion_id for lesion in rest] == ["green-1", "green-2"]
    assert end is None
    assert catalogue.lesions_after(10**6, 4) == ([], None)


def test_a_catalogue_stays_where_it_was_opened_when_its_link_is_turned(
    folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    write_catalogue(other, [make_lesion("new", BLUE)]).close()
    before = {file.name: file.read_bytes() for file in other.iterdir()}
    link = tmp_path / "link"
    link.symlink_to(folder)
    with Catalogue.open(link, bundle_id=BUNDLE_ID, variant="fp32") as opened:
        link.unlink()
        link.symlink_to(other)
        opened.add([make_lesion("late", GREEN, seed=9)])
        opened.save()
    assert {file.name: file.read_bytes() for file in other.iterdir()} == before
    with Catalogue.open(folder, bundle_id=BUNDLE_ID, variant="fp32") as again:
        assert "late" in again.lesion_ids()


def test_what_is_asked_before_a_change_may_forbid_it(folder: Path) -> None:
    def forbid() -> None:
        raise TimeoutError

    with Catalogue.open(folder, bundle_id=BUNDLE_ID, variant="fp32") as catalogue:
        lesions, revision = catalogue.lesion_ids(), catalogue.revision
        catalogue.before_change = forbid
        for change in (
            lambda: catalogue.add([make_lesion("late", GREEN, seed=9)]),
            lambda: catalogue.add_once(make_lesion("late", GREEN, seed=9), None),
            lambda: catalogue.update(min(lesions), Edit({"age_years": 1.0}, {})),
        ):
            with pytest.raises(TimeoutError):
                change()
        assert (catalogue.lesion_ids(), catalogue.revision) == (lesions, revision)


def test_vectors_that_cannot_be_written_leave_no_part(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_the_disk(index: FlatIndex, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("No space left on device")

    with Catalogue.open(folder, bundle_id=BUNDLE_ID, variant="fp32") as catalogue:
        catalogue.add([make_lesion("late", GREEN, seed=9)])
        with monkeypatch.context() as patched:
            patched.setattr(FlatIndex, "save", fill_the_disk)
            with pytest.raises(CatalogueError, match="cannot be written"):
                catalogue.save()
        assert not list(folder.glob("*.part"))


def test_only_its_owner_may_look_into_a_catalogue(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700


def test_who_only_looks_changes_no_table(folder: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(folder / "catalogue.sqlite")) as database:
        (version,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
        older = f"{int(version) - 1:04d}"
        database.execute("UPDATE alembic_version SET version_num = ?", [older])
        database.commit()
    with pytest.raises(UnsupportedVersion, match="what only looks changes nothing"):
        verify(folder)
    copy = back_up(folder, tmp_path / "backup")
    for path in (folder / "catalogue.sqlite", copy):
        with closing(sqlite3.connect(path)) as database:
            assert database.execute("SELECT version_num FROM alembic_version").fetchone() == (
                older,
            )
