"""Which index is chosen, what is written of it; a catalogue with one serves and changes."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.encoder import unit_norm
from bundle.errors import CatalogueError, CorruptCatalogue
from index import cache, choice, gpu
from index.approximate import ApproximateIndex, Effort
from index.catalogue import Catalogue, CatalogueLesion
from index.choice import choose, factory_for
from index.upkeep import verify
from index.vectors import FlatIndex, FloatArray, IdArray, Neighbours

MakeLesion = Callable[..., CatalogueLesion]
MakeCatalogue = Callable[..., Catalogue]
BUNDLE_ID = "ab" * 32
COUNT = 400


def filled(count: int = COUNT) -> FlatIndex:
    index = FlatIndex(6)
    vectors = np.random.default_rng(0).normal(0, 1, (count, 6)).astype(np.float32)
    index.add(np.arange(1, count + 1), unit_norm(vectors))
    return index


def test_the_size_decides_and_few_vectors_are_compared_one_by_one() -> None:
    assert factory_for(choice.LEAST_APPROXIMATE - 1, 384) == "flat"
    assert factory_for(choice.LEAST_APPROXIMATE, 384) == "PCA96,HNSW32,SQ8"
    assert factory_for(choice.LEAST_APPROXIMATE, 96) == "HNSW32,SQ8"
    assert factory_for(10_000_000, 384) == "IVF16384,SQ8"
    exact = filled()
    assert choose(exact) == (exact, None)


def test_an_index_that_was_asked_for_is_measured_on_vectors_held_out_and_holds_all() -> None:
    index, measured = choose(filled(), factory="HNSW16,SQ8", recall=0.9)
    assert isinstance(index, ApproximateIndex)
    assert measured is not None
    assert (measured.factory, measured.queries, measured.vectors) == ("HNSW16,SQ8", 40, COUNT - 40)
    assert 0.9 <= measured.recall <= 1
    assert index.effort == measured.effort
    assert index._near.ntotal == len(index) == COUNT


def test_a_recall_that_is_not_reached_is_refused_or_by_itself_left_for_the_exact_index(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choice, "recall_of", lambda *_: 0.5)
    monkeypatch.setattr(choice, "BREADTHS", (8,))
    exact = filled()
    with pytest.raises(CatalogueError, match=r"recall of 0\.9 or more on held-out .* 0\.5000"):
        choose(exact, factory="HNSW16,SQ8", recall=0.9)
    monkeypatch.setattr(choice, "LEAST_APPROXIMATE", 100)
    assert choose(exact) == (exact, None)
    assert "every vector is compared instead" in caplog.text


@pytest.mark.parametrize("recall", [0, -1, 1.01])
def test_a_recall_out_of_range_is_refused(recall: float) -> None:
    with pytest.raises(CatalogueError, match="recall: expected"):
        choose(filled(), recall=recall)


def test_too_few_vectors_to_hold_some_out_are_refused() -> None:
    with pytest.raises(CatalogueError, match="100 vectors or more, got 99"):
        choose(filled(99), factory="HNSW16,SQ8")


def test_a_catalogue_with_an_approximate_index_is_saved_changed_and_opened_as_it_was(
    make_catalogue: MakeCatalogue, make_lesion: MakeLesion
) -> None:
    made = make_catalogue([make_lesion(number) for number in range(COUNT)])
    queries = np.random.default_rng(3).normal(0, 1, (9, 6)).astype(np.float32)
    exact = made.search(queries, k=5)
    assert made.choose_index(factory="HNSW16,SQ8") is not None
    made.remove("lesion-007")
    made.add([make_lesion(7)])
    made.save()
    assert made.search(queries, k=5) == exact
    made.close()
    written = json.loads((made.path / cache.DESCRIPTION).read_text())
    assert written["near"]["factory"] == "HNSW16,SQ8"
    assert {"recall", "breadth", "query_ms", "bytes"} <= set(written["near"])
    assert verify(made.path).faults == ()
    with Catalogue.open(made.path, bundle_id=BUNDLE_ID, variant="fp32") as opened:
        assert opened.search(queries, k=5) == exact
        opened.add([make_lesion(COUNT + 1)])
        assert len(opened.search(queries, k=COUNT + 1)[0]) == COUNT + 1


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_approximate_index_is_refused(
    make_catalogue: MakeCatalogue, make_lesion: MakeLesion, damage: str
) -> None:
    made = make_catalogue([make_lesion(number) for number in range(COUNT)])
    made.choose_index(factory="IVF8,SQ8", recall=0.5)
    made.save()
    made.close()
    path: Path = made.path / cache.NEAR
    content = path.read_bytes()
    path.write_bytes(content[:-1] + (b"" if damage == "truncated" else b"\x99"))
    if damage == "missing":
        path.unlink()
    with pytest.raises(CorruptCatalogue, match=r"near\.faiss: .*(SHA-256|bytes)"):
        Catalogue.open(made.path, bundle_id=BUNDLE_ID, variant="fp32")


def test_erasing_most_of_a_catalogue_gives_up_its_graph_and_says_so(
    make_catalogue: MakeCatalogue, make_lesion: MakeLesion, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_catalogue([make_lesion(number) for number in range(COUNT)])
    made.choose_index(factory="HNSW16,SQ8", recall=0.5)
    for patient in range(60):
        made.erase_patient(f"patient-{patient}")
    assert "slimp catalogue rebuild" in caplog.text
    made.save()
    assert not (made.path / cache.NEAR).exists()


class FakeGpu:
    """Stands for a flat index on a GPU: the same search, and a note that it was asked."""

    def __init__(self, flat: Any, ids: IdArray) -> None:
        self.flat, self.ids, self.asked = flat, ids, 0

    def search(self, queries: FloatArray, fetch: int) -> tuple[FloatArray, IdArray]:
        self.asked += 1
        scores, places = self.flat.search(queries, fetch)
        return scores, self.ids[places]


def test_a_gpu_answers_what_no_filter_limits_and_is_copied_anew_after_a_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copies: list[FakeGpu] = []

    def copy(flat: Any, ids: IdArray) -> FakeGpu:
        copies.append(FakeGpu(flat, ids))
        return copies[-1]

    exact, queries = filled(), unit_norm(np.eye(3, 6, dtype=np.float32))
    expected = exact.search(queries, 4)
    monkeypatch.setattr("index.vectors.GpuCopy", copy)
    monkeypatch.setattr(gpu.dynamic, "get_num_gpus", lambda: 1)
    found = exact.search(queries, 4)
    assert [n.ids.tolist() for n in found] == [n.ids.tolist() for n in expected]
    exact.remove(expected[0].ids[:1])
    assert expected[0].ids[0] not in exact.search(queries, 4)[0].ids
    assert [made.asked for made in copies] == [1, 1]
    assert gpu.runs_on_gpu(2048, is_filtered=False)
    assert not gpu.runs_on_gpu(2049, is_filtered=False)
    assert not gpu.runs_on_gpu(10, is_filtered=True)


def test_the_effort_between_the_last_two_is_taken_where_it_reaches_the_recall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[Effort] = []

    class Searched:
        effort = Effort(1, 1)

        def proposed(self, queries: FloatArray, k: int) -> list[Neighbours]:
            tried.append(self.effort)
            return []

    index: Any = Searched()
    monkeypatch.setattr(choice, "DEPTHS", (2,))
    monkeypatch.setattr(choice, "BREADTHS", (8, 16, 32))
    monkeypatch.setattr(choice, "recall_of", lambda *_: index.effort.breadth / 32)
    # A search takes as long as it is broad.
    clock = itertools.accumulate(itertools.chain.from_iterable((0, b) for b in (8, 16, 32, 23)))
    monkeypatch.setattr("index.choice.time.perf_counter", lambda: next(clock))
    found = choice._least_effort(index, np.empty((0, 4), np.float32), [], 0.7)
    assert [effort.breadth for effort in tried] == [8, 16, 32, 23]
    assert found == (Effort(23, 2), 23 / 32)
