"""Vectors whose files agree with each other and not with the database, and files that are damaged.

A checksum beside the file finds accidents; ids are compared with SQL whatever it says.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.errors import CorruptCatalogue
from index import cache
from index.catalogue import Catalogue, CatalogueLesion
from index.upkeep import verify
from index.vectors import FlatIndex
from tests.fuzzing import damaged as damaged_bytes
from tests.fuzzing import fuzzed

MakeLesion = Callable[..., CatalogueLesion]
MakeCatalogue = Callable[..., Catalogue]

DIM, HELD = 6, 40
QUERIES = np.random.default_rng(3).normal(0, 1, (9, DIM)).astype(np.float32)
LARGE = np.iinfo(np.int64).max


def reopen(folder: Path) -> Catalogue:
    return Catalogue.open(folder, bundle_id="ab" * 32, variant="fp32")


def craft(folder: Path, ids: list[int]) -> None:
    """Put vectors under these ids in place, described as if they belonged there."""
    vectors = np.random.default_rng(0).normal(0, 1, (len(ids), DIM)).astype(np.float32)
    index: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(DIM))
    index.add_with_ids(vectors, np.asarray(ids, np.int64))
    written = folder / cache.VECTORS
    faiss.write_index(index, str(written))
    description = json.loads((folder / cache.DESCRIPTION).read_text())
    description |= {"bytes": written.stat().st_size, "sha256": cache.digest(written)}
    (folder / cache.DESCRIPTION).write_text(json.dumps(description))


def held_but(*changed: int) -> list[int]:
    """Return the ids of the catalogue's 40 lesions, the first ones replaced."""
    return [*changed, *range(len(changed) + 1, HELD + 1)]


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (held_but(2**62), f"expected vector ids from 1 to 40, got 2 to {2**62}"),
        (held_but(2**45), "expected vector ids from 1 to 40"),
        (held_but(41), "expected vector ids from 1 to 40, got 2 to 41"),
        (held_but(-7), "expected vector ids from 1 to 40, got -7 to 40"),
        (held_but(0), "expected vector ids from 1 to 40, got 0 to 40"),
        (held_but(2), "expected a vector for each lesion, got some twice or of others"),
        ([], "expected 40 vectors of length 6, got 0"),
    ],
)
def test_vectors_of_other_ids_than_the_rows_are_refused_with_the_remedy(
    folder: Path, ids: list[int], said: str
) -> None:
    craft(folder, ids)
    with pytest.raises(CorruptCatalogue, match=f"{said}.*{cache.REMEDY[:25]}"):
        reopen(folder)
    assert verify(folder).faults != ()
    cache.drop_cache(folder)
    with reopen(folder) as again:
        assert len(again.search(QUERIES, k=HELD)[0]) == HELD


def test_vectors_of_lesions_that_are_gone_are_refused(folder: Path) -> None:
    with reopen(folder) as opened:
        opened.remove("lesion-003")
        opened.save()
    craft(folder, list(range(1, HELD)))
    with pytest.raises(CorruptCatalogue, match="some twice or of others"):
        reopen(folder)


def test_ids_are_compared_before_the_vectors_are_brought_up(
    folder: Path, make_lesion: MakeLesion
) -> None:
    with reopen(folder) as opened:
        opened.add([make_lesion(50)])
        opened.remove("lesion-003")
        opened.add([make_lesion(51)])
    description = {"revision": 1, "variant": "fp32", "bundle_id": "ab" * 32, "dim": DIM}
    (folder / cache.DESCRIPTION).write_text(json.dumps(description))
    craft(folder, held_but(2**45))
    with pytest.raises(CorruptCatalogue, match="expected vector ids from 1 to 42"):
        reopen(folder)


@fuzzed
@given(
    st.lists(st.integers(-LARGE - 1, LARGE) | st.integers(0, HELD + 2), max_size=3),
    st.booleans(),
)
def test_any_ids_are_those_of_the_rows_or_refused(
    folder: Path, changed: list[int], turned: bool
) -> None:
    ids = held_but(*changed)[:: -1 if turned else 1]
    craft(folder, ids)
    if sorted(ids) == list(range(1, HELD + 1)):
        with reopen(folder) as opened:
            assert len(opened.search(QUERIES, k=HELD)[0]) == HELD
    else:
        with pytest.raises(CorruptCatalogue, match=cache.REMEDY[:25]):
            reopen(folder)


@fuzzed
@given(st.data())
def test_a_damaged_file_never_reaches_faiss(
    folder: Path, pristine_folder: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    whole = (pristine_folder / cache.VECTORS).read_bytes()
    damaged = data.draw(damaged_bytes(whole))
    (folder / cache.VECTORS).write_bytes(damaged)

    def read(path: Path) -> FlatIndex:
        # What FAISS makes of other bytes is its own affair: it may allocate or crash.
        raise AssertionError(f"{path} was handed to FAISS")

    if damaged == whole:
        with reopen(folder) as opened:
            assert len(opened) == HELD
        return
    with monkeypatch.context() as patch:
        patch.setattr(FlatIndex, "load", read)
        with pytest.raises(CorruptCatalogue, match=r"expected .* bytes, got|SHA-256"):
            reopen(folder)


def test_a_damaged_approximate_index_never_reaches_faiss(
    make_catalogue: MakeCatalogue, make_lesion: MakeLesion, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_catalogue([make_lesion(number) for number in range(300)])
    made.choose_index(factory="HNSW16,SQ8", recall=0.5)
    made.save()
    made.close()
    path = made.path / cache.NEAR
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    monkeypatch.setattr("index.approximate.read_faiss", lambda path: pytest.fail(str(path)))
    with pytest.raises(CorruptCatalogue, match=r"near\.faiss: its SHA-256"):
        reopen(made.path)


@pytest.mark.parametrize("factory", ["HNSW16,SQ8", "IVF4,SQ8"])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({7: 2**40}, f"expected vector ids from 1 to 300, got 1 to {2**40}"),
        ({7: 301}, "expected vector ids from 1 to 300, got 1 to 301"),
        ({1: -3}, "expected vector ids from 1 to 300, got -3 to 300"),
        ({7: 8}, "expected an approximate index of every lesion, each once"),
    ],
)
def test_an_approximate_index_of_other_ids_than_the_rows_is_refused_with_the_remedy(
    make_catalogue: MakeCatalogue,
    make_lesion: MakeLesion,
    factory: str,
    changed: dict[int, int],
    said: str,
) -> None:
    made = make_catalogue([make_lesion(number) for number in range(300)])
    made.choose_index(factory=factory, recall=0.5)
    made.save()
    made.close()
    exact = FlatIndex.load(made.path / cache.VECTORS)
    vectors = exact.vectors(np.arange(1, 301))
    named = f"IDMap,{factory}" if "HNSW" in factory else factory
    near: Any = faiss.index_factory(DIM, named, faiss.METRIC_L2)
    near.train(vectors)
    near.add_with_ids(vectors, np.array([changed.get(i, i) for i in range(1, 301)], np.int64))
    written = made.path / cache.NEAR
    faiss.write_index(near, str(written))
    description = json.loads((made.path / cache.DESCRIPTION).read_text())
    description["near"] |= {"bytes": written.stat().st_size, "sha256": cache.digest(written)}
    (made.path / cache.DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(CorruptCatalogue, match=f"{said}.*{cache.REMEDY[:25]}"):
        reopen(made.path)
    cache.drop_cache(made.path)
    with reopen(made.path) as again:
        assert len(again.search(QUERIES, k=5)[0]) == 5


def test_an_approximate_index_outlives_the_last_lesions_of_the_catalogue(
    make_catalogue: MakeCatalogue, make_lesion: MakeLesion
) -> None:
    """A graph keeps removed ids as stepping stones, also those above every id that is left."""
    made = make_catalogue([make_lesion(number) for number in range(300)])
    made.choose_index(factory="HNSW16,SQ8", recall=0.5)
    for number in range(290, 300):
        made.remove(f"lesion-{number}")
    made.save()
    expected = made.search(QUERIES, k=1)
    made.close()
    with reopen(made.path) as again:
        assert again.search(QUERIES, k=1) == expected
