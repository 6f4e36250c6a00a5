"""Other libraries for vectors, each at the least effort that reaches the recall, if it is there."""

import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from index.choice import recall_of
from index.vectors import FlatIndex, FloatArray, IdArray, Neighbours

Search = Callable[[FloatArray, int], IdArray]
EFFORTS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
# Each library's own default is the least: hnswlib's is 200, usearch's 128.
LINKS, EFFORT_TO_BUILD = 32, 200


def rivals(
    folder: Path, exact: FlatIndex, queries: FloatArray, truth: list[Neighbours], target: float
) -> dict[str, Search]:
    """Return what is installed, built over the same vectors and brought to the recall."""
    made = {}
    for name, build in (
        ("hnswlib", _hnswlib),
        ("usearch", _usearch),
        ("milvus_lite", _milvus),
    ):
        if importlib.util.find_spec(name) is None:
            print(f"{name}: not installed, left out")
            continue
        started = time.perf_counter()
        built = build(folder / f"{name}-{len(exact)}", exact)
        effort, search, reached = _least(built, queries, truth, target)
        seconds = time.perf_counter() - started
        print(
            f"{name}: effort {effort}, recall {reached:.4f}, {seconds:.1f} s to build or read it "
            "and to find the effort",
            flush=True,
        )
        made[f"{name}, effort {effort}"] = search
    return made


def _least(
    built: Iterator[tuple[int, Search]],
    queries: FloatArray,
    truth: list[Neighbours],
    target: float,
) -> tuple[int, Search, float]:
    """Return the least effort that reaches the recall, else the greatest, with its recall."""
    for tried, search in built:
        found = [Neighbours(row, np.empty(0, np.float32)) for row in search(queries, 10)]
        last = tried, search, recall_of(found, truth, 10)
        if last[2] >= target:
            break
    return last


def _blocks(exact: FlatIndex) -> Iterator[tuple[IdArray, FloatArray]]:
    ids = exact.ids()
    for start in range(0, len(ids), 20_000):
        some = ids[start : start + 20_000]
        yield some, exact.vectors(some)


def _hnswlib(path: Path, exact: FlatIndex) -> Iterator[tuple[int, Search]]:
    import hnswlib

    index = hnswlib.Index("l2", exact.dim)
    if path.is_file():
        index.load_index(str(path))
    else:
        index.init_index(len(exact), M=LINKS, ef_construction=EFFORT_TO_BUILD)
        for ids, vectors in _blocks(exact):
            index.add_items(vectors, ids)
        index.save_index(str(path))

    def search(queries: FloatArray, k: int) -> IdArray:
        return np.asarray(index.knn_query(queries, k)[0], np.int64)

    for effort in EFFORTS:
        index.set_ef(effort)
        yield effort, search


def _usearch(path: Path, exact: FlatIndex) -> Iterator[tuple[int, Search]]:
    from usearch.index import Index

    index: Any = Index(
        ndim=exact.dim, metric="l2sq", dtype="f16", connectivity=LINKS,
        expansion_add=EFFORT_TO_BUILD,
    )  # fmt: skip
    if path.is_file():
        index.load(str(path))
    else:
        for ids, vectors in _blocks(exact):
            index.add(ids.astype(np.uint64), vectors, threads=os.cpu_count() or 1)
        index.save(str(path))

    def search(queries: FloatArray, k: int) -> IdArray:
        threads = 1 if len(queries) == 1 else os.cpu_count() or 1
        keys: npt.NDArray[np.uint64] = index.search(queries, k, threads=threads).keys
        return np.asarray(keys, np.int64).reshape(len(queries), -1)

    for effort in EFFORTS:
        index.expansion_search = effort
        yield effort, search


def _milvus(path: Path, exact: FlatIndex) -> Iterator[tuple[int, Search]]:
    from pymilvus import MilvusClient

    is_new = not path.with_suffix(".db").exists()
    client: Any = MilvusClient(str(path.with_suffix(".db")))
    if is_new:
        client.create_collection(
            "lesions", dimension=exact.dim, metric_type="IP", auto_id=False, id_type="int"
        )
        for ids, vectors in _blocks(exact):
            for start in range(0, len(ids), 1000):
                block = slice(start, start + 1000)
                rows = zip(ids[block].tolist(), vectors[block].tolist(), strict=True)
                client.insert("lesions", [{"id": i, "vector": v} for i, v in rows])
    client.load_collection("lesions")
    for effort in EFFORTS:
        params = {"metric_type": "IP", "params": {"ef": effort}}

        def search(queries: FloatArray, k: int, params: dict[str, Any] = params) -> IdArray:
            ids = []
            for start in range(0, len(queries), 100):
                asked = queries[start : start + 100].tolist()
                found = client.search("lesions", asked, limit=k, search_params=params)
                ids += [[hit["id"] for hit in hits] for hits in found]
            return np.asarray(ids, np.int64)

        yield effort, search
