"""Which index a catalogue gets: by its size, and by the recall that is measured on it.

Some vectors are held out while the candidate is built, and searched for: what exact search finds is
the truth. The least effort that reaches the recall wanted is kept, with what was measured.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from bundle.errors import CatalogueError
from index.approximate import TUNED_K, ApproximateIndex, Effort, make_empty
from index.vectors import Eligible, FlatIndex, FloatArray, Neighbours, VectorIndex

log = logging.getLogger(__name__)

FLAT = "flat"
AUTO = "auto"
RECALL = 0.99
# Fewer vectors are compared one by one: docs/benchmarks.md says what that takes.
LEAST_APPROXIMATE = 100_000
# From so many vectors a graph is too large to build and hold.
LEAST_LISTS = 4_000_000
# Shorter vectors are not turned onto fewer axes.
LEAST_AXES = 32
HELD_OUT = 1000
BREADTHS = tuple(round(8 * 2 ** (step / 2)) for step in range(17))
DEPTHS = (2, 3, 5, 20)


class Measured(BaseModel):
    """How an approximate index was chosen; `vectors.json` holds it.

    Attributes:
        factory: FAISS's description of it.
        breadth: efSearch of HNSW or nprobe of IVF.
        depth: candidates scored exactly, for each neighbour wanted.
        recall: share of the 10 nearest that were found.
        recall_wanted: the least that was asked for.
        queries: held-out vectors that were searched for.
        vectors: that they were searched among.
        seconds_to_build: training and adding.
        query_ms: a single search.
        exact_query_ms: a single search of every vector.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    factory: str
    breadth: int = Field(gt=0)
    depth: int = Field(gt=0)
    recall: float = Field(ge=0, le=1)
    recall_wanted: float = Field(gt=0, le=1)
    queries: int = Field(gt=0)
    vectors: int = Field(gt=0)
    seconds_to_build: float = Field(ge=0)
    query_ms: float = Field(ge=0)
    exact_query_ms: float = Field(ge=0)

    @property
    def effort(self) -> Effort:
        return Effort(self.breadth, self.depth)

    def __str__(self) -> str:
        return (
            f"{self.factory}: recall {self.recall:.4f} of the {TUNED_K} nearest on {self.queries} "
            f"held-out vectors, {self.query_ms} ms a search, {self.exact_query_ms} ms exact, "
            f"{self.seconds_to_build} s to build"
        )


def factory_for(count: int, dim: int) -> str:
    """Return what suits a number of vectors: `flat`, or FAISS's description of an index.

    A graph is walked on a quarter of the principal axes of vectors of length `dim`: what is
    proposed is scored in full, and near vectors differ along few axes.
    """
    if count < LEAST_APPROXIMATE:
        return FLAT
    if count < LEAST_LISTS:
        axes = dim // 4
        return f"PCA{axes},HNSW32,SQ8" if axes >= LEAST_AXES else "HNSW32,SQ8"
    return f"IVF{2 ** round(math.log2(4 * math.sqrt(count)))},SQ8"


def choose(
    exact: FlatIndex, *, factory: str = AUTO, recall: float = RECALL
) -> tuple[VectorIndex, Measured | None]:
    """Return the index to search, and how it was measured where it is approximate.

    Args:
        exact: all vectors.
        factory: `auto` goes by their number, `flat` keeps the exact index; else what FAISS's
            `index_factory` takes, HNSW or IVF.
        recall: the least share of the 10 nearest to be found, (0, 1].

    Raises:
        CatalogueError: the recall is out of range, FAISS cannot make the index, there are too few
            vectors to hold some out, or the index that was asked for does not reach the recall.
    """
    check_choice(factory, recall, exact.dim)
    chosen = factory_for(len(exact), exact.dim) if factory == AUTO else factory
    if chosen == FLAT:
        return exact, None
    made, measured = measure(exact, chosen, recall)
    if measured.recall >= recall:
        return made, measured
    missed = (
        f"{chosen}: expected a recall of {recall} or more on held-out vectors, got "
        f"{measured.recall:.4f} at most"
    )
    if factory != AUTO:
        raise CatalogueError(f"{missed}: ask for less, or for another index")
    log.warning("%s: every vector is compared instead", missed)
    return exact, None


def check_choice(factory: str, recall: float, dim: int) -> None:
    """Do nothing where the index can be asked for, before hours of embedding.

    Raises:
        CatalogueError: the recall is out of range, or FAISS cannot make the index.
    """
    if not 0 < recall <= 1:
        raise CatalogueError(f"recall: expected more than 0 and at most 1, got {recall}")
    if factory not in (AUTO, FLAT):
        make_empty(factory, dim)


def measure(exact: FlatIndex, factory: str, recall: float) -> tuple[ApproximateIndex, Measured]:
    """Build an approximate index and find the least effort that reaches a recall.

    Where none does, the effort is the one of the best recall.

    Raises:
        CatalogueError: FAISS cannot make it, or there are too few vectors to hold some out.
    """
    ids = exact.ids()
    if len(ids) < 100:
        raise CatalogueError(f"{factory}: expected 100 vectors or more, got {len(ids)}")
    held_out = np.random.default_rng(1).permutation(ids)[: min(HELD_OUT, len(ids) // 10)]
    others = np.setdiff1d(ids, held_out)
    started = time.perf_counter()
    made = ApproximateIndex.build(exact, factory, others)
    seconds = time.perf_counter() - started
    queries = exact.vectors(held_out)
    known = Eligible(held_out, inverted=True)
    measured = fit_effort(made, queries, recall, factory=factory, seconds=seconds, known=known)
    made.propose(held_out)
    return made, measured


def fit_effort(
    made: ApproximateIndex,
    queries: FloatArray,
    recall: float,
    *,
    factory: str,
    seconds: float,
    known: Eligible | None = None,
) -> Measured:
    """Give an index the least effort that reaches a recall; return what was measured.

    Args:
        made: the index; FAISS proposes no other ids than the known ones.
        queries: (N, D) float32, unit L2 norm.
        recall: the least that is wanted; where none reaches it, the effort is that of the best.
        factory: what FAISS made the index of.
        seconds: that took.
        known: the ids among which exact search finds the truth; None for all.
    """
    truth = made.exact.search(queries, TUNED_K, known)
    made.effort, reached = _least_effort(made, queries, truth, recall)
    return Measured(
        factory=factory,
        breadth=made.effort.breadth,
        depth=made.effort.depth,
        recall=reached,
        recall_wanted=recall,
        queries=len(queries),
        vectors=len(made) if known is None else len(made) - len(known.ids),
        seconds_to_build=round(seconds, 1),
        query_ms=_milliseconds(lambda query: made.proposed(query, TUNED_K), queries[:100]),
        exact_query_ms=_milliseconds(lambda query: made.exact.search(query, TUNED_K), queries[:20]),
    )


def _least_effort(
    index: ApproximateIndex, queries: FloatArray, truth: list[Neighbours], recall: float
) -> tuple[Effort, float]:
    """Return the effort that reaches the recall soonest, and what it reaches."""
    reached: list[tuple[float, Effort, float]] = []
    best = (Effort(BREADTHS[0], DEPTHS[0]), 0.0)
    for effort, score, seconds in _tried(index, queries, truth, recall):
        best = max(best, (effort, score), key=lambda tried: tried[1])
        if score >= recall:
            reached.append((seconds, effort, score))
    if not reached:
        return best
    _, effort, score = min(reached, key=lambda tried: tried[0])
    return effort, score


def _tried(
    index: ApproximateIndex, queries: FloatArray, truth: list[Neighbours], recall: float
) -> Iterator[tuple[Effort, float, float]]:
    """Yield efforts with their recall and seconds: at each depth, until one reaches the recall.

    Then also the one between it and the last that did not.
    """

    def tried(effort: Effort) -> tuple[Effort, float, float]:
        index.effort = effort
        started = time.perf_counter()
        found = index.proposed(queries, TUNED_K)
        seconds = time.perf_counter() - started
        return effort, recall_of(found, truth, TUNED_K), seconds

    for depth in DEPTHS:
        for number, breadth in enumerate(BREADTHS):
            effort, score, seconds = tried(Effort(breadth, depth))
            yield effort, score, seconds
            if score >= recall:
                if number > 0:
                    between = round(math.sqrt(BREADTHS[number - 1] * breadth))
                    yield tried(Effort(between, depth))
                break


def recall_of(found: list[Neighbours], truth: list[Neighbours], k: int) -> float:
    """Return the share of the k nearest that were found, counting whatever ties with the k-th."""
    hits = wanted = 0
    for got, expected in zip(found, truth, strict=True):
        least = min(k, len(expected.ids))
        hits += min(least, len(np.intersect1d(got.ids, expected.ids)))
        wanted += least
    return hits / wanted if wanted else 1.0


def _milliseconds(search: Callable[[FloatArray], object], queries: FloatArray) -> float:
    """Return the median time of one search for one query."""
    taken = []
    for query in queries:
        started = time.perf_counter()
        search(query[None])
        taken.append(time.perf_counter() - started)
    return round(float(np.median(taken)) * 1000, 3)
