"""A faster index in front of the exact one: near vectors proposed by FAISS, scored exactly.

FAISS's HNSW or IVF, with compressed vectors, proposes candidates; the full vectors of the exact
index give their scores and their order. Whatever the candidates cannot answer is searched exactly:
few eligible vectors, or too few of them near a query.
"""

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from bundle.errors import CatalogueError, CorruptCatalogue
from index.vectors import (
    SPARE,
    Eligible,
    FlatIndex,
    FloatArray,
    IdArray,
    Neighbours,
    dynamic,
    read_faiss,
    threads_for,
)

# Where a smaller share is eligible, these are compared alone: that is exact, and no slower.
EXACT_SHARE = 0.1
# Where more of the vectors were removed, the exact index answers until the other is built anew.
MOST_REMOVED = 0.3
# The number of neighbours for which the effort is measured.
TUNED_K = 10
# Vectors that FAISS's codes are trained on, at most.
TRAINING_VECTORS = 100_000


@dataclass(frozen=True)
class Effort:
    """How hard to look.

    Attributes:
        breadth: HNSW's efSearch or IVF's nprobe.
        depth: candidates scored exactly, for each neighbour wanted.
    """

    breadth: int
    depth: int


class ApproximateIndex:
    """An exact index, and a FAISS index of the same vectors that proposes candidates."""

    def __init__(self, exact: FlatIndex, near: Any, effort: Effort) -> None:
        """Join the two.

        Args:
            exact: all vectors.
            near: FAISS's index of the same ids, with distances L2: HNSW behind ids, or IVF; the
                vectors may be turned onto fewer axes before (PCA).
            effort: how hard to look in it.
        """
        self._exact, self._near, self.effort = exact, near, effort
        self._is_graph = isinstance(near, faiss.IndexIDMap)
        self._is_turned = isinstance(_below_ids(near), faiss.IndexPreTransform)

    @classmethod
    def build(cls, exact: FlatIndex, factory: str, ids: IdArray) -> "ApproximateIndex":
        """Build what FAISS's `index_factory` describes, over some of an index's (N,) int64 ids.

        The others are to be added with `propose`.

        Raises:
            CatalogueError: FAISS does not know the description, or it is neither HNSW nor IVF.
        """
        near = make_empty(factory, exact.dim)
        made = cls(exact, near, Effort(breadth=64, depth=2))
        sample = np.random.default_rng(0).permutation(ids)[:TRAINING_VECTORS]
        near.train(exact.vectors(np.sort(sample)))
        made.propose(ids)
        return made

    def __len__(self) -> int:
        return len(self._exact)

    @property
    def dim(self) -> int:
        return self._exact.dim

    @property
    def exact(self) -> FlatIndex:
        return self._exact

    @property
    def is_worn(self) -> bool:
        """Whether so much was removed that the index should be built anew."""
        return len(self) < (1 - MOST_REMOVED) * int(self._near.ntotal)

    def ids(self) -> IdArray:
        """Return (M,) int64, what may be proposed: of a graph also ids that were removed."""
        if self._is_graph:
            return np.asarray(faiss.vector_to_array(self._near.id_map), np.int64)
        lists = _core(self._near).invlists
        sizes = {number: lists.list_size(number) for number in range(lists.nlist)}
        held = [
            dynamic.rev_swig_ptr(lists.get_ids(number), size)
            for number, size in sizes.items()
            if size
        ]
        return np.concatenate([np.empty(0, np.int64), *held])

    def propose(self, ids: IdArray) -> None:
        """Have (N,) int64 ids of the exact index proposed as well."""
        for start in range(0, len(ids), TRAINING_VECTORS):
            some = ids[start : start + TRAINING_VECTORS]
            self._near.add_with_ids(self._exact.vectors(some), some)

    def add(self, ids: IdArray, vectors: FloatArray) -> None:
        """Add (N, D) float32 unit vectors under (N,) int64 ids, positive and never used before.

        Raises:
            DimensionMismatch: the vectors are of another length, or not as many as the ids.
        """
        self._exact.add(ids, vectors)
        self.propose(ids)

    def remove(self, ids: IdArray) -> int:
        """Remove those of the (N,) int64 ids that are there; return how many were.

        A graph's nodes cannot leave: they stay as stepping stones, and nothing of the vector does.
        """
        removed = self._exact.remove(ids)
        if self._is_graph:
            nodes = self.ids()
            _overwrite(self._near, np.isin(nodes, ids), is_gone=~self._exact.holds(nodes))
        else:
            self._near.remove_ids(ids)
        return removed

    def search(
        self, queries: FloatArray, k: int, eligible: Eligible | None = None
    ) -> list[Neighbours]:
        """Return each query's k nearest eligible vectors and all candidates that tie with the k-th.

        Args:
            queries: (N, D) float32, unit L2 norm.
            k: 1 or more.
            eligible: which ids may be found; None allows all.
        """
        wanted = self._wanted(k)
        is_free = eligible is None and self._near.ntotal == len(self)
        allowed = None if is_free else self._exact.mask(eligible)
        share = 1.0 if allowed is None else float(allowed.sum()) / max(1, self._near.ntotal)
        # Twice as many candidates as are wanted among the eligible ones, where they lie evenly.
        fetch = wanted if allowed is None else math.ceil(2 * wanted / max(share, 1e-9))
        if share < EXACT_SHARE or self.is_worn or fetch > len(self) // 4:
            return self._exact.search(queries, k, eligible)
        ids = self._candidates(queries, fetch, share)
        if allowed is not None:
            ids[~allowed[ids]] = -1
        found = self._exact.ranked(queries, ids, k)
        (short,) = np.nonzero((ids >= 0).sum(axis=1) < wanted)
        if len(short):
            again = self._exact.search(queries[short], k, eligible)
            for row, neighbours in zip(short, again, strict=True):
                found[row] = neighbours
        return found

    def proposed(self, queries: FloatArray, k: int) -> list[Neighbours]:
        """Return each query's k best of what FAISS proposes, and their equals, scored exactly.

        Args:
            queries: (N, D) float32, unit L2 norm.
            k: 1 or more.
        """
        return self._exact.ranked(queries, self._candidates(queries, self._wanted(k)), k)

    def _wanted(self, k: int) -> int:
        # Of fewer than the depth was measured for, codes order the nearest no better.
        return max(k + SPARE, max(k, TUNED_K) * self.effort.depth)

    def save(self, path: Path) -> None:
        """Write what FAISS proposes from to one file; the exact index has its own."""
        faiss.write_index(self._near, str(path))

    @classmethod
    def load(cls, path: Path, exact: FlatIndex, effort: Effort) -> "ApproximateIndex":
        """Read what `save` wrote; the caller has checked that the bytes are those.

        Raises:
            CorruptCatalogue: FAISS cannot read the file, or it is another kind of index.
        """
        near = read_faiss(path)
        if not _is_known(near) or near.d != exact.dim or near.ntotal < len(exact):
            raise CorruptCatalogue(
                f"{path}: expected an HNSW or IVF index of {len(exact)} vectors of length "
                f"{exact.dim} or more, got {near.ntotal} of length {near.d}"
            )
        return cls(exact, near, effort)

    def _candidates(self, queries: FloatArray, fetch: int, share: float = 1.0) -> IdArray:
        """Return (N, fetch) int64 ids, nearest first by the codes; -1 stands for none.

        Of what a graph's walk passes, only the share that is eligible counts.
        """
        breadth = self.effort.breadth
        if self._is_graph:
            breadth = max(math.ceil(breadth / share), fetch)
        else:
            # Neighbours further off lie in more lists: as measured, in the root of their number.
            reach = math.sqrt(max(1, fetch / (2 * TUNED_K * self.effort.depth)))
            breadth = math.ceil(breadth * reach)
        params = _search_parameters(breadth, is_graph=self._is_graph, is_turned=self._is_turned)
        with threads_for(len(queries)):
            _, ids = self._near.search(np.ascontiguousarray(queries), fetch, params=params)
        return np.asarray(ids, np.int64)


@functools.lru_cache
def _search_parameters(breadth: int, *, is_graph: bool, is_turned: bool) -> Any:
    """Return FAISS's parameters; to make them takes longer than to walk a few dozen nodes."""
    if is_graph:
        params = dynamic.SearchParametersHNSW(efSearch=breadth)
    else:
        params = dynamic.SearchParametersIVF(nprobe=breadth)
    return dynamic.SearchParametersPreTransform(index_params=params) if is_turned else params


def make_empty(factory: str, dim: int) -> Any:
    """Return FAISS's index as `index_factory` describes it, for vectors of length `dim`.

    Raises:
        CatalogueError: FAISS does not know the description, or it is neither HNSW nor IVF.
    """
    named = f"IDMap,{factory}" if "HNSW" in factory else factory
    try:
        near = dynamic.index_factory(dim, named, faiss.METRIC_L2)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise CatalogueError(f"{factory!r}: FAISS cannot make it ({reason})") from None
    if not _is_known(near):
        raise CatalogueError(f"{factory!r}: expected HNSW... or IVF..., such as 'PCA96,HNSW32,SQ8'")
    return near


def _below_ids(near: Any) -> Any:
    """Return what answers for a graph whose nodes are known by ids."""
    is_named = isinstance(near, faiss.IndexIDMap)
    return dynamic.downcast_index(near.index) if is_named else near


def _core(near: Any) -> Any:
    """Return the graph or the lists, behind ids and a change of axes."""
    below = _below_ids(near)
    is_turned = isinstance(below, faiss.IndexPreTransform)
    return dynamic.downcast_index(below.index) if is_turned else below


def _is_known(near: Any) -> bool:
    core = _core(near)
    expected = faiss.IndexHNSW if isinstance(near, faiss.IndexIDMap) else faiss.IndexIVF
    return isinstance(core, expected) and core.metric_type == faiss.METRIC_L2


def _overwrite(near: Any, is_erased: npt.NDArray[np.bool_], is_gone: npt.NDArray[np.bool_]) -> None:
    """Give erased nodes the code of a node beside them that is there.

    The graph stays connected, and an erased vector is neither in memory nor in what is saved: nodes
    of earlier erasures that stood in with its code are given another one too.

    Args:
        near: the graph, behind ids.
        is_erased: (M,) bool by node, what is erased now.
        is_gone: (M,) bool by node, what is erased, now or before.
    """
    if not is_erased.any():
        return
    graph = _core(near)
    storage = dynamic.downcast_index(graph.storage)
    width = storage.code_size
    codes = dynamic.rev_swig_ptr(storage.codes.data(), graph.ntotal * width)
    codes = codes.reshape(graph.ntotal, width)
    links = graph.hnsw
    beside = dynamic.rev_swig_ptr(links.neighbors.data(), links.neighbors.size())
    erased = {code.tobytes() for code in codes[is_erased]}
    for place in np.flatnonzero(is_gone):
        if codes[place].tobytes() not in erased:
            continue
        start = links.offsets.at(int(place))
        nodes = beside[start : start + links.nb_neighbors(0)]
        nodes = nodes[nodes >= 0]
        stays = nodes[~is_gone[nodes]]
        codes[place] = codes[stays[0]] if len(stays) else 0
