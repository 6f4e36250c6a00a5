"""Approximate indexes of every kind against brute force: counts, scores, filters, churn, files."""

import functools
import itertools
from collections import Counter
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.encoder import unit_norm
from bundle.errors import CatalogueError, CorruptCatalogue
from index.approximate import ApproximateIndex, Effort, _core
from index.choice import measure, recall_of
from index.vectors import (
    Eligible,
    FlatIndex,
    FloatArray,
    IdArray,
    Neighbours,
    VectorIndex,
    dynamic,
)

COUNT, DIM = 3000, 16
KINDS = [
    "PCA8,HNSW16,SQ8",
    "HNSW16,Flat",
    "HNSW16,SQ8",
    "HNSW16,SQfp16",
    "IVF16,SQ8",
    "IVF16,SQfp16",
    "IVF16,PQ8",
]
ALL_KINDS = ["flat", *KINDS]
SHARES = [0.001, 0.003, 0.01, 0.03, 0.049, 0.06, 0.1, 0.2, 0.5, 0.9, 1.0]


def clustered(count: int, seed: int) -> FloatArray:
    centres = np.random.default_rng(0).normal(0, 1, (20, DIM))
    rng = np.random.default_rng(seed)
    spread = rng.normal(0, 0.7, (count, DIM))
    return unit_norm((centres[rng.integers(0, 20, count)] + spread).astype(np.float32))


QUERIES = clustered(40, seed=99)


def flat_index() -> FlatIndex:
    index = FlatIndex(DIM)
    index.add(np.arange(1, COUNT + 1) * 2, clustered(COUNT, seed=1))
    return index


@functools.cache
def chosen(kind: str) -> tuple[bytes, Effort]:
    """Return what FAISS makes of an index of this kind, built once, and the effort it needs.

    Several threads would link a graph's nodes in another order each time.
    """
    threads = dynamic.omp_get_max_threads()
    dynamic.omp_set_num_threads(1)
    try:
        made, measured = measure(flat_index(), kind, 0.999)
    finally:
        dynamic.omp_set_num_threads(threads)
    return faiss.serialize_index(made._near).tobytes(), measured.effort


def fresh(kind: str) -> VectorIndex:
    if kind == "flat":
        return flat_index()
    stored, effort = chosen(kind)
    near = faiss.deserialize_index(np.frombuffer(stored, np.uint8))
    return ApproximateIndex(flat_index(), near, effort)


def brute_force(
    ids: IdArray, vectors: FloatArray, allowed: npt.NDArray[np.bool_], k: int
) -> list[Neighbours]:
    """Return what search promises, by the definition, for every query."""
    ids, vectors = ids[allowed], vectors[allowed]
    found = []
    for query in QUERIES:
        products = vectors.astype(np.float64) * query.astype(np.float64)
        scores = np.clip(products.sum(axis=1), -1, 1).astype(np.float32)
        order = np.lexsort((ids, -scores))
        kept = scores[order] >= scores[order][: min(k, len(order))].min(initial=2)
        found.append(Neighbours(ids[order][kept], scores[order][kept]))
    return found


def assert_sound(
    found: list[Neighbours], truth: list[Neighbours], eligible: IdArray, k: int
) -> None:
    """Enough hits, all eligible, each once, best first, with the exact scores."""
    for got, expected in zip(found, truth, strict=True):
        assert len(got.ids) >= min(k, len(eligible))
        assert len(np.unique(got.ids)) == len(got.ids)
        assert np.isin(got.ids, eligible).all()
        assert (np.diff(got.scores) <= 0).all()
        known = dict(zip(expected.ids.tolist(), expected.scores.tolist(), strict=True))
        for number, score in zip(got.ids.tolist(), got.scores.tolist(), strict=True):
            assert known.get(number, score) == score


@pytest.mark.parametrize("kind", ALL_KINDS)
@settings(max_examples=25, deadline=None)
@given(
    share=st.sampled_from(SHARES),
    inverted=st.booleans(),
    removed=st.sampled_from([0, 1, 40, 500]),
    added=st.sampled_from([0, 1, 60]),
    seed=st.integers(0, 2**32 - 1),
)
def test_filtered_hits_are_enough_and_exact_or_near_it_between_deletes_and_adds(
    kind: str, share: float, inverted: bool, removed: int, added: int, seed: int
) -> None:
    index, rng = fresh(kind), np.random.default_rng(seed)
    ids = np.arange(1, COUNT + 1) * 2
    gone = rng.choice(ids, removed, replace=False)
    assert index.remove(np.append(gone, 3)) == removed
    more = np.arange(COUNT * 2 + 1, COUNT * 2 + 1 + added)
    index.add(more, clustered(added, seed=7))
    stays = ~np.isin(ids, gone)
    ids = np.append(ids[stays], more)
    vectors = np.concatenate([clustered(COUNT, seed=1)[stays], clustered(added, seed=7)])
    allowed = rng.random(len(ids)) < share
    named = ids[~allowed] if inverted else ids[allowed]
    found = index.search(QUERIES, 10, Eligible(np.sort(np.append(named, gone)), inverted))
    if not inverted:
        assert len(index) == len(ids)
    truth = brute_force(ids, vectors, allowed, 10)
    assert_sound(found, truth, ids[allowed], 10)
    if kind == "flat" or allowed.mean() < 0.05:
        for got, expected in zip(found, truth, strict=True):
            assert got.ids.tolist() == expected.ids.tolist()
            assert got.scores.tolist() == expected.scores.tolist()
    assert recall_of(found, truth, 10) >= 0.99


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("k", [1, 10, 100, 2 * COUNT])
def test_any_number_of_neighbours_is_found_and_all_when_there_are_fewer(kind: str, k: int) -> None:
    ids = np.arange(1, COUNT + 1) * 2
    truth = brute_force(ids, clustered(COUNT, seed=1), np.ones(COUNT, np.bool_), k)
    found = fresh(kind).search(QUERIES, k)
    assert_sound(found, truth, ids, k)
    # The effort is chosen for ten neighbours: asked for one, a query in forty may miss it.
    assert recall_of(found, truth, k) >= (39 / 40 if k == 1 else 0.98)


@pytest.mark.parametrize("kind", KINDS)
def test_a_filter_that_leaves_only_what_is_far_from_the_query_is_answered_exactly(
    kind: str,
) -> None:
    vectors, ids = clustered(COUNT, seed=1), np.arange(1, COUNT + 1) * 2
    cosines = vectors @ QUERIES[0]
    allowed = cosines < np.quantile(cosines, 0.4)
    (found,) = fresh(kind).search(QUERIES[:1], 10, Eligible(ids[allowed]))
    expected = brute_force(ids, vectors, allowed, 10)[0]
    assert found.ids.tolist() == expected.ids.tolist()


@pytest.mark.parametrize("count", [40, 200])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_scores_and_hits_do_not_depend_on_how_queries_are_batched(kind: str, count: int) -> None:
    index, queries = fresh(kind), clustered(count, seed=99)
    together = index.search(queries, 7)
    for query, batched in zip(queries, together, strict=True):
        (alone,) = index.search(query[None], 7)
        assert alone.ids.tolist() == batched.ids.tolist()
        assert alone.scores.tolist() == batched.scores.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_removed_vector_stays_in_what_is_saved(kind: str, tmp_path: Path) -> None:
    index, odd = fresh(kind), np.zeros((1, DIM), np.float32)
    assert isinstance(index, ApproximateIndex)
    odd[0, 3] = 1
    index.add(np.asarray([9001]), odd)
    before = codes_of(index)
    (code,) = [bytes(c) for c in before if before.count(c) == 1 and c not in codes_of(fresh(kind))]
    index.remove(np.asarray([9001]))
    assert code not in codes_of(index)
    assert 9001 not in index.search(odd, 10)[0].ids


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "HNSW" in kind])
def test_nothing_of_vectors_that_are_removed_one_after_the_other_stays(kind: str) -> None:
    """A node whose vector is gone stands in with a neighbour's, which may go later."""
    index = fresh(kind)
    assert isinstance(index, ApproximateIndex)
    code_of = dict(zip(index.ids().tolist(), codes_of(index), strict=True))
    shared = Counter(code_of.values())
    # In the order of one walk through the cloud, each is the next one's neighbour.
    start = index.exact.search(QUERIES[:1], 60)[0].ids
    for number in start.tolist():
        index.remove(np.asarray([number]))
    left = set(codes_of(index))
    assert not [
        number for number in start if shared[code_of[number]] == 1 and code_of[number] in left
    ]
    assert recall_of(index.search(QUERIES, 10), index.exact.search(QUERIES, 10), 10) >= 0.99


def codes_of(index: VectorIndex) -> list[bytes]:
    """Return the compressed vectors that an index holds."""
    assert isinstance(index, ApproximateIndex)
    near = index._near
    if isinstance(near, faiss.IndexIDMap):
        storage = dynamic.downcast_index(_core(near).storage)
        parts = [faiss.vector_to_array(storage.codes).reshape(-1, storage.code_size)]
    else:
        lists = near.invlists
        sizes = [(number, lists.list_size(number)) for number in range(lists.nlist)]
        parts = [
            faiss.rev_swig_ptr(lists.get_codes(number), size * near.code_size).reshape(size, -1)
            for number, size in sizes
            if size
        ]
    return [row.tobytes() for row in itertools.chain.from_iterable(parts)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_worn_by_removals_is_still_exact(kind: str) -> None:
    index, ids = fresh(kind), np.arange(1, COUNT + 1) * 2
    index.remove(ids[: COUNT // 2])
    allowed = np.arange(COUNT) >= COUNT // 2
    truth = brute_force(ids, clustered(COUNT, seed=1), allowed, 10)
    assert isinstance(index, ApproximateIndex)
    assert index.is_worn == ("HNSW" in kind)
    assert recall_of(index.search(QUERIES, 10), truth, 10) >= (1 if index.is_worn else 0.99)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_index_is_read_back_and_changes_further(kind: str, tmp_path: Path) -> None:
    index = fresh(kind)
    assert isinstance(index, ApproximateIndex)
    index.remove(np.asarray([2, 4]))
    index.exact.save(tmp_path / "flat")
    index.save(tmp_path / "near")
    mapped = FlatIndex.load(tmp_path / "flat")
    read = ApproximateIndex.load(tmp_path / "near", mapped, index.effort)
    for got, expected in zip(read.search(QUERIES, 10), index.search(QUERIES, 10), strict=True):
        assert got.ids.tolist() == expected.ids.tolist()
    read.add(np.asarray([9001]), QUERIES[:1])
    assert read.search(QUERIES[:1], 1)[0].ids.tolist() == [9001]
    assert (read.remove(np.asarray([9001, 6])), len(read)) == (2, COUNT - 3)


@pytest.mark.parametrize("other", [faiss.IndexFlatIP(DIM), faiss.IndexHNSWFlat(DIM, 8)])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, other: faiss.Index) -> None:
    faiss.write_index(other, str(tmp_path / "near"))
    with pytest.raises(CorruptCatalogue, match="expected an HNSW or IVF index"):
        ApproximateIndex.load(tmp_path / "near", flat_index(), Effort(8, 2))


@pytest.mark.parametrize("factory", ["Flat", "nothing", "LSH", "PCA4,Flat"])
def test_a_description_that_is_no_index_of_ours_is_refused(factory: str) -> None:
    index = flat_index()
    with pytest.raises(CatalogueError, match=r"FAISS cannot make it|expected HNSW"):
        ApproximateIndex.build(index, factory, index.ids())
