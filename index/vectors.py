"""The vector side of a catalogue: ids and directions, exact nearest neighbours.

Knows nothing of lesions, SQL or files' meaning; `cache` decides which file may be loaded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import faiss
import numpy as np
import numpy.typing as npt

from bundle.encoder import refuse_two_builds
from bundle.errors import CorruptCatalogue, DimensionMismatch

FloatArray = npt.NDArray[np.float32]
IdArray = npt.NDArray[np.int64]

# FAISS's stubs know its C++ signatures, not the arrays and keywords that its Python layer takes.
dynamic: Any = faiss

# Products (queries x D), for each thread, from which a matrix product beats single ones; see
# https://github.com/facebookresearch/faiss/pull/5109
MATRIX_PRODUCTS = 800
# Candidates asked for beyond k, so that a tie at the cut-off rarely needs a second search.
SPARE = 8


@dataclass(frozen=True)
class Eligible:
    """Which ids a search may return: those in `ids`, or all but those when `inverted`.

    Attributes:
        ids: (M,) int64, not negative; ids that the index does not hold are no error.
        inverted: whether `ids` are the ones left out.
    """

    ids: IdArray
    inverted: bool = False


@dataclass(frozen=True)
class Neighbours:
    """What one query found, best score first.

    Attributes:
        ids: (M,) int64.
        scores: (M,) float32 inner products in [-1, 1].
    """

    ids: IdArray
    scores: FloatArray


class VectorIndex(Protocol):
    """Ids with unit vectors. Adding and removing must not overlap any other call."""

    def __len__(self) -> int: ...

    @property
    def dim(self) -> int: ...

    def add(self, ids: IdArray, vectors: FloatArray) -> None:
        """Add (N, D) float32 unit vectors under (N,) int64 ids, positive and new."""

    def remove(self, ids: IdArray) -> int:
        """Remove those of the (N,) int64 ids that are there; return how many were."""

    def search(
        self, queries: FloatArray, k: int, eligible: Eligible | None = None
    ) -> list[Neighbours]:
        """Return, for each query, its k nearest eligible vectors and all that tie with the k-th.

        There are at least min(k, number eligible) of them: the caller, who knows a meaningful
        order among equals, takes the first k. Scores do not depend on how queries are batched.

        Args:
            queries: (N, D) float32, unit L2 norm.
            k: 1 or more.
            eligible: which ids may be found; None allows all.
        """

    def save(self, path: Path) -> None:
        """Write the index to one file."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; the caller has checked that the bytes are those.

        Raises:
            CorruptCatalogue: the file is no such index.
        """


class FlatIndex:
    """Every vector compared with every query, by FAISS: exact, and exact under any filter."""

    def __init__(self, dim: int) -> None:
        """Make an empty index of vectors of length `dim`.

        Raises:
            BundleError: both a CPU and a GPU build of FAISS are installed.
        """
        refuse_two_builds("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12")
        _prefer_matrix_products()
        self._index: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(dim))
        self._top_id = 0

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        return int(self._index.d)

    def add(self, ids: IdArray, vectors: FloatArray) -> None:
        """Add (N, D) float32 unit vectors under (N,) int64 ids, positive and new.

        Raises:
            DimensionMismatch: the vectors are of another length, or not as many as the ids.
        """
        if vectors.shape != (len(ids), self.dim):
            raise DimensionMismatch(
                f"expected vectors of shape {(len(ids), self.dim)}, got {vectors.shape}"
            )
        if len(ids) == 0:
            return
        self._index.add_with_ids(np.ascontiguousarray(vectors, np.float32), ids)
        self._top_id = max(self._top_id, int(ids.max()))

    def remove(self, ids: IdArray) -> int:
        """Remove those of the (N,) int64 ids that are there; return how many were."""
        return int(self._index.remove_ids(ids))

    def search(
        self, queries: FloatArray, k: int, eligible: Eligible | None = None
    ) -> list[Neighbours]:
        """Return each query's k nearest eligible vectors and all that tie with the k-th.

        Args:
            queries: (N, D) float32, unit L2 norm.
            k: 1 or more.
            eligible: which ids may be found; None allows all.
        """
        found = [_nothing()] * len(queries)
        selector = None if eligible is None else self._selector(eligible)
        nothing_left = eligible is not None and selector is None
        if nothing_left or len(self) == 0:
            return found
        pending = np.arange(len(queries))
        fetch = k + SPARE
        while len(pending):
            fetch = min(fetch, len(self))
            scores, ids = self._candidates(queries[pending], fetch, selector)
            unfinished = []
            for row, query in enumerate(pending):
                if fetch < len(self) and self._cuts_a_tie(scores[row], ids[row], k):
                    unfinished.append(query)
                else:
                    found[query] = self._ranked(queries[query], ids[row], k)
            pending = np.asarray(unfinished, np.int64)
            fetch *= 4
        return found

    def ids(self) -> IdArray:
        """Return (N,) int64, the ids of all vectors."""
        return np.asarray(faiss.vector_to_array(self._index.id_map), np.int64)

    def vectors(self, ids: IdArray) -> FloatArray:
        """Return (M, D) float32, the vectors of these (M,) int64 ids, which are there."""
        if len(ids) == 0:
            return np.empty((0, self.dim), np.float32)
        return np.asarray(self._index.reconstruct_batch(ids), np.float32)

    def save(self, path: Path) -> None:
        """Write the index to one file."""
        faiss.write_index(self._index, str(path))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; the caller has checked that the bytes are those.

        Raises:
            CorruptCatalogue: FAISS cannot read the file, or it is another kind of index.
        """
        try:
            read = dynamic.read_index(str(path))
        except (RuntimeError, MemoryError) as error:
            reason = str(error).splitlines()[0]
            raise CorruptCatalogue(f"{path}: FAISS cannot read it ({reason})") from None
        inner = faiss.downcast_index(read.index) if isinstance(read, faiss.IndexIDMap2) else None
        if not isinstance(inner, faiss.IndexFlatIP):
            raise CorruptCatalogue(f"{path}: expected a flat inner-product index with ids")
        loaded = cls(read.d)
        loaded._index = read
        ids = faiss.vector_to_array(read.id_map)
        loaded._top_id = int(ids.max(initial=0))
        return loaded

    def _selector(self, eligible: Eligible) -> Any:
        """Return eligibility as FAISS reads it, or None where no id is left.

        A bitmap: ids are given in rising order, so it is one bit a lesion, made and asked faster
        than a hash set whatever the share of eligible lesions.
        """
        mask = np.full(self._top_id + 1, eligible.inverted)
        mask[eligible.ids[eligible.ids <= self._top_id]] = not eligible.inverted
        if not mask.any():
            return None
        return dynamic.IDSelectorBitmap(np.packbits(mask, bitorder="little"))

    def _candidates(
        self, queries: FloatArray, fetch: int, selector: Any
    ) -> tuple[FloatArray, IdArray]:
        """Return (N, fetch) scores and ids, best first; FAISS fills up with id -1."""
        options = {} if selector is None else {"params": dynamic.SearchParameters(sel=selector)}
        scores, ids = self._index.search(np.ascontiguousarray(queries), fetch, **options)
        return scores, ids

    def _cuts_a_tie(self, scores: FloatArray, ids: IdArray, k: int) -> bool:
        """Return whether a vector that was not fetched may score as high as the k-th.

        FAISS sums in float32 and in an order that depends on the batch; its error is below D
        roundings of 2**-24 on either side.
        """
        tolerance = 4 * self.dim * 2.0**-24
        return bool(ids[-1] >= 0 and scores[-1] >= scores[k - 1] - tolerance)

    def _ranked(self, query: FloatArray, ids: IdArray, k: int) -> Neighbours:
        """Return the k best and their equals, scored anew.

        Summed in float64 and rounded to float32, a score depends on the two vectors alone: not on
        their place in the index, nor on the other queries. Equal vectors score equal.
        """
        ids = ids[ids >= 0]
        if len(ids) == 0:
            return _nothing()
        vectors = self._index.reconstruct_batch(ids).astype(np.float64)
        exact = (vectors * query.astype(np.float64)).sum(axis=1)
        scores = np.clip(exact, -1, 1).astype(np.float32)
        order = np.lexsort((ids, -scores))
        ids, scores = ids[order], scores[order]
        kept = scores >= scores[min(k, len(scores)) - 1]
        return Neighbours(ids[kept], scores[kept])


def _prefer_matrix_products() -> None:
    """Lower the size from which FAISS compares queries in one matrix product.

    FAISS 1.15 starts at 128,000 products, which suits dozens of threads: on one, 64 queries take
    eight times as long as they need. The setting is the process's; no result depends on it.
    """
    limit = MATRIX_PRODUCTS * dynamic.omp_get_max_threads()
    if dynamic.cvar.distance_compute_blas_threshold > limit:
        dynamic.cvar.distance_compute_blas_threshold = limit


def _nothing() -> Neighbours:
    return Neighbours(np.empty(0, np.int64), np.empty(0, np.float32))
