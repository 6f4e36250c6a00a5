"""The vector side of a catalogue: ids and directions, exact nearest neighbours.

Knows nothing of lesions, SQL or files' meaning; `cache` decides which file may be loaded.
`approximate` puts a faster index in front of this one.
"""

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import faiss
import numpy as np
import numpy.typing as npt

from bundle.encoder import refuse_two_builds
from bundle.errors import CorruptCatalogue, DimensionMismatch
from index.gpu import GpuCopy, runs_on_gpu

FloatArray = npt.NDArray[np.float32]
IdArray = npt.NDArray[np.int64]

# FAISS's stubs know its C++ signatures, not the arrays and keywords that its Python layer takes.
dynamic: Any = faiss

# Products (queries x D), for each thread, from which a matrix product beats single ones; see
# https://github.com/facebookresearch/faiss/pull/5109
MATRIX_PRODUCTS = 800
# Candidates asked for beyond k, so that a tie at the cut-off rarely needs a second search.
SPARE = 8
# Candidates scored at once: their vectors in float64 stay in the processor's cache.
SCORED_TOGETHER = 1024


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

    @property
    def exact(self) -> "FlatIndex":
        """The same vectors, every one compared."""

    def add(self, ids: IdArray, vectors: FloatArray) -> None:
        """Add (N, D) float32 unit vectors under (N,) int64 ids, positive and never used before."""

    def remove(self, ids: IdArray) -> int:
        """Remove those of the (N,) int64 ids that are there; return how many were."""

    def search(
        self, queries: FloatArray, k: int, eligible: Eligible | None = None
    ) -> list[Neighbours]:
        """Return, for each query, its k nearest eligible vectors and all that tie with the k-th.

        There are at least min(k, number eligible) of them: the caller, who knows a meaningful
        order among equals, takes the first k. Scores are exact and do not depend on how queries
        are batched; an approximate index may miss a vector, as rarely as was measured.

        Args:
            queries: (N, D) float32, unit L2 norm.
            k: 1 or more.
            eligible: which ids may be found; None allows all.
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
        # Whether the vectors lie in a file that is mapped, which cannot change.
        self._is_mapped = False
        # A copy on the GPU, made when it is first searched and dropped when the vectors change.
        self._on_gpu: GpuCopy | None = None
        self._copying = threading.Lock()

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        return int(self._index.d)

    @property
    def exact(self) -> "FlatIndex":
        return self

    def add(self, ids: IdArray, vectors: FloatArray) -> None:
        """Add (N, D) float32 unit vectors under (N,) int64 ids, positive and never used before.

        Raises:
            DimensionMismatch: the vectors are of another length, or not as many as the ids.
        """
        if vectors.shape != (len(ids), self.dim):
            raise DimensionMismatch(
                f"expected vectors of shape {(len(ids), self.dim)}, got {vectors.shape}"
            )
        if len(ids) == 0:
            return
        self._before_change()
        self._index.add_with_ids(np.ascontiguousarray(vectors, np.float32), ids)
        self._hold(ids)

    def remove(self, ids: IdArray) -> int:
        """Remove those of the (N,) int64 ids that are there; return how many were."""
        self._before_change()
        self._held[ids[ids < len(self._held) - 1]] = False
        return int(self._index.remove_ids(ids))

    def holds(self, ids: IdArray) -> npt.NDArray[np.bool_]:
        """Return (N,) bool: which of the (N,) int64 ids, not negative, are there."""
        return self._held[np.minimum(ids, len(self._held) - 1)]

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
        selector = None
        if eligible is not None:
            mask = self.mask(eligible)
            if not mask.any():
                return found
            # A bitmap is made and asked faster than a hash set whatever the share of ids.
            selector = dynamic.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
        pending = np.arange(len(queries) if len(self) else 0)
        fetch = k + SPARE
        while len(pending):
            fetch = min(fetch, len(self))
            scores, ids = self._candidates(queries[pending], fetch, selector)
            ranked = self.ranked(queries[pending], ids, k)
            for query, neighbours in zip(pending, ranked, strict=True):
                found[query] = neighbours
            pending = pending[self._cuts_a_tie(scores[:, -1], ids[:, -1], ranked, k)]
            if fetch == len(self):
                break
            fetch *= 4
        return found

    def mask(self, eligible: Eligible | None) -> npt.NDArray[np.bool_]:
        """Return (M,) bool by id: which are there and eligible; M is the top id ever held + 2.

        The last place stands for none.
        """
        if eligible is None:
            return self._held.copy()
        mask = np.full(len(self._held), eligible.inverted)
        mask[eligible.ids[eligible.ids < len(mask)]] = not eligible.inverted
        mask &= self._held
        return mask

    def ranked(self, queries: FloatArray, ids: IdArray, k: int) -> list[Neighbours]:
        """Return each query's k best candidates and their equals, scored anew.

        Summed in float64 and rounded to float32, a score depends on the two vectors alone: not on
        their place in the index, nor on the other queries. Equal vectors score equal.

        Args:
            queries: (N, D) float32, unit L2 norm.
            ids: (N, M) int64, the candidates of each; -1 stands for none.
            k: 1 or more.
        """
        there = ids >= 0
        if not there.any():
            return [Neighbours(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
        # None has no vector: another one stands in, and does not count.
        known = np.where(there, ids, ids.max())
        scores = np.empty(ids.shape, np.float32)
        step = max(1, SCORED_TOGETHER // ids.shape[1])
        for start in range(0, len(queries), step):
            block = slice(start, start + step)
            products = self.vectors(known[block].ravel()).astype(np.float64)
            products = products.reshape(*known[block].shape, self.dim)
            products *= queries[block, None]
            scores[block] = np.clip(products.sum(axis=-1), -1, 1)
        scores[~there] = -np.inf
        order, rows = np.lexsort((ids, -scores), axis=-1), np.arange(len(ids))[:, None]
        ids, scores = ids[rows, order], scores[rows, order]
        lowest = scores[:, min(k, ids.shape[1]) - 1, None]
        kept = ((scores >= lowest) & (ids >= 0)).sum(axis=1)
        return [Neighbours(ids[n, :count], scores[n, :count]) for n, count in enumerate(kept)]

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
        """Map what `save` wrote; the caller has checked that the bytes are those.

        The vectors stay in the file, and in the memory that the system lends to all who read it,
        until the first change: then they are copied. The ids are the file's: the caller compares
        them with those that were given before the index is searched or changed.

        Raises:
            CorruptCatalogue: FAISS cannot read the file, or it is another kind of index.
        """
        read = read_faiss(path, dynamic.IO_FLAG_MMAP_IFC)
        inner = faiss.downcast_index(read.index) if isinstance(read, faiss.IndexIDMap2) else None
        if not isinstance(inner, faiss.IndexFlatIP):
            raise CorruptCatalogue(f"{path}: expected a flat inner-product index with ids")
        loaded = cls(read.d)
        loaded._index = read
        loaded._is_mapped = True
        return loaded

    def make_room(self, last: int) -> None:
        """Let a mask reach to id `last`, the highest ever given: it may be asked for when removed.

        An approximate index beside this one keeps removed vectors as stepping stones.
        """
        more = max(0, last + 2 - len(self._held))
        self._held = np.append(self._held, np.zeros(more, np.bool_))

    @functools.cached_property
    def _held(self) -> npt.NDArray[np.bool_]:
        """Which ids are there, from 0 to the top one; the last place stands for id -1, none.

        It is as large as the top id, so it is made only when a file's ids were compared.
        """
        ids = self.ids()
        held = np.zeros(int(ids.max(initial=-1)) + 2, np.bool_)
        held[ids] = True
        return held

    def _hold(self, ids: IdArray) -> None:
        self.make_room(int(ids.max()))
        self._held[ids] = True

    def _before_change(self) -> None:
        """Copy vectors that lie in a mapped file; drop those on the GPU."""
        self._on_gpu = None
        if not self._is_mapped:
            return
        mapped, ids = self._index, self.ids()
        flat = dynamic.downcast_index(mapped.index)
        self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(mapped.d))
        if len(ids):
            stored = dynamic.rev_swig_ptr(flat.get_xb(), len(ids) * mapped.d)
            self._index.add_with_ids(stored.reshape(len(ids), mapped.d), ids)
        self._is_mapped = False

    def _candidates(
        self, queries: FloatArray, fetch: int, selector: Any
    ) -> tuple[FloatArray, IdArray]:
        """Return (N, fetch) scores and ids, best first; FAISS fills up with id -1."""
        asked = np.ascontiguousarray(queries)
        if runs_on_gpu(fetch, is_filtered=selector is not None):
            return self._gpu_copy().search(asked, fetch)
        options = {} if selector is None else {"params": dynamic.SearchParameters(sel=selector)}
        with threads_for(len(asked)):
            scores, ids = self._index.search(asked, fetch, **options)
        return scores, ids

    def _gpu_copy(self) -> GpuCopy:
        with self._copying:
            if self._on_gpu is None:
                self._on_gpu = GpuCopy(self._index.index, self.ids())
            return self._on_gpu

    def _cuts_a_tie(
        self, last: FloatArray, last_id: IdArray, ranked: Sequence[Neighbours], k: int
    ) -> npt.NDArray[np.bool_]:
        """Return (N,) bool: whether a vector that was not fetched may score as high as the k-th.

        FAISS sums in float32 and in an order that depends on the batch; its error is below D
        roundings of 2**-24. The k-th score is exact but for one rounding more.
        """
        lowest = np.asarray([n.scores[-1] if len(n.ids) >= k else -np.inf for n in ranked])
        tolerance = (self.dim + 2) * 2.0**-24
        return (last_id >= 0) & (last >= lowest - tolerance)


def read_faiss(path: Path, flags: int = 0) -> Any:
    """Return the index in a file whose bytes were checked.

    Raises:
        CorruptCatalogue: FAISS cannot read it.
    """
    try:
        return dynamic.read_index(str(path), flags)
    except (RuntimeError, MemoryError) as error:
        reason = str(error).splitlines()[0]
        raise CorruptCatalogue(f"{path}: FAISS cannot read it ({reason})") from None


@contextmanager
def threads_for(queries: int) -> Iterator[None]:
    """Have FAISS use no more threads in this block than there are queries to share out.

    It does not share out the vectors of one query: further threads wait for the one that works,
    awake, which takes a quarter longer then and twice the processors. The number is the calling
    thread's own.
    """
    most = dynamic.omp_get_max_threads()
    dynamic.omp_set_num_threads(max(1, min(queries, most)))
    try:
        yield
    finally:
        dynamic.omp_set_num_threads(most)


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
