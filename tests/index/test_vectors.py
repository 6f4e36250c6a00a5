"""The exact index against brute force, for any share of eligible ids and any ties."""

from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.encoder import unit_norm
from bundle.errors import CorruptCatalogue, DimensionMismatch
from index.vectors import Eligible, FlatIndex, IdArray, dynamic

FloatArray = npt.NDArray[np.float32]


def filled(ids: list[int], vectors: FloatArray) -> FlatIndex:
    index = FlatIndex(vectors.shape[1])
    index.add(np.asarray(ids, np.int64), vectors)
    return index


def nearest_with_ties(
    ids: list[int], vectors: FloatArray, query: FloatArray, k: int, allowed: set[int]
) -> list[tuple[int, float]]:
    """Return what search promises, by the definition: score each, sort, cut after the ties."""
    scored = []
    for number, vector in zip(ids, vectors, strict=True):
        if number in allowed:
            score = float(sum(float(a) * float(b) for a, b in zip(vector, query, strict=True)))
            scored.append((number, float(np.float32(np.clip(score, -1, 1)))))
    scored.sort(key=lambda pair: (-pair[1], pair[0]))
    return [pair for pair in scored if pair[1] >= scored[min(k, len(scored)) - 1][1]]


@st.composite
def searches(draw: st.DrawFn) -> tuple[list[int], FloatArray, FloatArray, int, set[int]]:
    """Few directions over many ids, so that ties are the rule; any share of ids is eligible."""
    count = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    directions = rng.normal(0, 1, (draw(st.integers(1, 8)), 5)).astype(np.float32)
    vectors = unit_norm(directions[rng.integers(0, len(directions), count)])
    ids = (rng.permutation(3 * count)[:count] + 1).tolist()
    queries = unit_norm(rng.normal(0, 1, (draw(st.integers(1, 25)), 5)).astype(np.float32))
    share = draw(st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0]))
    allowed = {number for number in ids if rng.random() < share}
    return ids, vectors, queries, draw(st.integers(1, 70)), allowed


@settings(max_examples=80, deadline=None)
@given(searches(), st.booleans())
def test_search_equals_brute_force_with_ties_and_any_share_of_eligible_ids(
    case: tuple[list[int], FloatArray, FloatArray, int, set[int]], inverted: bool
) -> None:
    ids, vectors, queries, k, allowed = case
    named = set(ids) - allowed if inverted else allowed
    eligible = Eligible(np.asarray(sorted(named | {10_000}), np.int64), inverted=inverted)
    found = filled(ids, vectors).search(queries, k, eligible)
    for query, neighbours in zip(queries, found, strict=True):
        expected = nearest_with_ties(ids, vectors, query, k, allowed) if allowed else []
        pairs = list(zip(neighbours.ids.tolist(), neighbours.scores.tolist(), strict=True))
        assert pairs == expected


def test_a_tie_larger_than_the_spare_is_returned_whole() -> None:
    vectors = np.repeat(unit_norm(np.asarray([[1, 2], [2, -1]], np.float32)), 300, axis=0)
    found = filled(list(range(1, 601)), vectors).search(vectors[:1], 3)
    assert found[0].ids.tolist() == list(range(1, 301))


def test_scores_do_not_depend_on_how_queries_are_batched() -> None:
    rng = np.random.default_rng(0)
    vectors = unit_norm(rng.normal(0, 1, (500, 37)).astype(np.float32))
    queries = unit_norm(rng.normal(0, 1, (40, 37)).astype(np.float32))
    index = filled(list(range(1, 501)), vectors)
    together = index.search(queries, 7)
    for query, batched in zip(queries, together, strict=True):
        (alone,) = index.search(query[None], 7)
        assert alone.ids.tolist() == batched.ids.tolist()
        assert alone.scores.tolist() == batched.scores.tolist()


def test_an_empty_index_finds_nothing() -> None:
    (neighbours,) = FlatIndex(3).search(np.eye(1, 3, dtype=np.float32), 5)
    assert len(neighbours.ids) == len(neighbours.scores) == 0


def test_no_query_and_no_candidate_have_no_neighbours() -> None:
    index = filled([3, 5, 9], np.eye(3, dtype=np.float32))
    nothing: IdArray = np.empty((0, 4), np.int64)
    assert index.ranked(np.empty((0, 3), np.float32), nothing, 2) == []
    none, two = index.ranked(
        np.eye(3, dtype=np.float32)[:2], np.array([[-1, -1], [-1, 5]], np.int64), 2
    )
    assert none.ids.tolist() == []
    assert two.ids.tolist() == [5]
    assert two.scores.tolist() == [1.0]


def test_removed_ids_are_not_found_again_and_are_counted() -> None:
    index = filled([3, 5, 9], np.eye(3, dtype=np.float32))
    gone: IdArray = np.asarray([5, 77], np.int64)
    assert index.remove(gone) == 1
    assert len(index) == 2
    (neighbours,) = index.search(np.eye(3, dtype=np.float32)[1:2], 3)
    assert sorted(neighbours.ids.tolist()) == [3, 9]


def test_adding_vectors_of_another_length_is_refused_and_none_is_no_change() -> None:
    index = FlatIndex(3)
    with pytest.raises(DimensionMismatch, match=r"\(1, 3\).*\(1, 4\)"):
        index.add(np.asarray([1], np.int64), np.eye(1, 4, dtype=np.float32))
    index.add(np.empty(0, np.int64), np.empty((0, 3), np.float32))
    assert len(index) == 0


def test_a_saved_index_is_read_back_with_its_ids(tmp_path: Path) -> None:
    index = filled([3, 5, 900], np.eye(3, dtype=np.float32))
    index.save(tmp_path / "index")
    read = FlatIndex.load(tmp_path / "index")
    only = Eligible(np.asarray([900], np.int64))
    assert (len(read), read.dim) == (3, 3)
    assert read.search(np.eye(1, 3, dtype=np.float32), 2, only)[0].ids.tolist() == [900]


@pytest.mark.parametrize("other", [faiss.IndexFlatIP(3), faiss.IndexIDMap2(faiss.IndexFlatL2(3))])
def test_an_index_of_another_type_is_refused(tmp_path: Path, other: faiss.Index) -> None:
    faiss.write_index(other, str(tmp_path / "index"))
    with pytest.raises(CorruptCatalogue, match="flat inner-product"):
        FlatIndex.load(tmp_path / "index")


def test_a_file_that_faiss_cannot_read_is_a_corrupt_catalogue(tmp_path: Path) -> None:
    (tmp_path / "index").write_bytes(b"not an index at all")
    with pytest.raises(CorruptCatalogue, match="FAISS cannot read"):
        FlatIndex.load(tmp_path / "index")


def test_one_query_is_searched_by_one_thread_and_the_callers_number_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index, vectors = FlatIndex(4), np.eye(4, dtype=np.float32)
    index.add(np.arange(1, 5), vectors)
    before = dynamic.omp_get_max_threads()
    dynamic.omp_set_num_threads(3)
    seen: list[int] = []
    search = index._index.search

    def watched(*given: object, **named: object) -> object:
        seen.append(dynamic.omp_get_max_threads())
        return search(*given, **named)

    monkeypatch.setattr(index._index, "search", watched)
    try:
        for queries in (vectors[:1], vectors[:2], vectors):
            index.search(queries, 1)
        assert seen == [1, 2, 3]
        assert dynamic.omp_get_max_threads() == 3
    finally:
        dynamic.omp_set_num_threads(before)
