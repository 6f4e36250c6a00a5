"""Exact search on a GPU, where FAISS finds one."""

import threading
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IdArray = npt.NDArray[np.int64]

dynamic: Any = faiss

# A GPU returns no more candidates than these.
MOST_CANDIDATES = 2048


def runs_on_gpu(fetch: int, *, is_filtered: bool) -> bool:
    """Return whether so many candidates come from a GPU; it takes no filter."""
    return dynamic.get_num_gpus() > 0 and fetch <= MOST_CANDIDATES and not is_filtered


class GpuCopy:
    """A flat index copied to the first GPU; it does not change."""

    def __init__(self, flat: Any, ids: IdArray) -> None:
        """Copy it.

        Args:
            flat: FAISS's flat index.
            ids: (N,) int64, the ids of its vectors, in their order.
        """
        # FAISS serves one search at a time on a GPU, and needs its resources to the end.
        self._lock = threading.Lock()
        self._resources = dynamic.StandardGpuResources()
        self._index = dynamic.index_cpu_to_gpu(self._resources, 0, flat)
        self._ids = ids

    def search(self, queries: FloatArray, fetch: int) -> tuple[FloatArray, IdArray]:
        """Return (N, fetch) float32 scores and int64 ids, best first; -1 stands for none.

        Args:
            queries: (N, D) float32, unit L2 norm.
            fetch: candidates wanted, `MOST_CANDIDATES` at most.
        """
        with self._lock:
            scores, places = self._index.search(queries, fetch)
        return scores, np.where(places < 0, -1, self._ids[places])
