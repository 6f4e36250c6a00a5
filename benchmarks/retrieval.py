"""How fast and how exactly vectors are searched, beside bare FAISS and other libraries.

    python -m benchmarks.retrieval speed FOLDER [--size 400000] [--queries EMBEDDINGS.npy]
    python -m benchmarks.retrieval growth FOLDER [--sizes 10000 100000 400000]
    python -m benchmarks.retrieval compressed FOLDER [--size 10000000]

Vectors are those of `benchmarks.retrieval_vectors`; FOLDER keeps them, the indexes and what was
measured, so that a later call goes on. Queries are real embeddings that the generator was not
fitted to, turned onto its axes, else made ones of another seed. Contenders take turns in each
round, on all cores; hnswlib, usearch and milvus-lite take part where they are installed.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.memory import memory_mib
from benchmarks.retrieval_rivals import rivals
from benchmarks.retrieval_vectors import DIM, FloatArray, Generator, held_out
from index.approximate import TUNED_K, ApproximateIndex
from index.choice import FLAT, Measured, factory_for, fit_effort, recall_of
from index.vectors import Eligible, FlatIndex, IdArray, Neighbours, VectorIndex

K = TUNED_K
ROUNDS = 3
TUNING = 200
SHARES = (0.001, 0.01, 0.05, 0.12, 0.25, 0.5, 1.0)
TARGET = 0.99
Search = Callable[[FloatArray, int], IdArray]


def queries_for(path: Path | None, count: int) -> tuple[FloatArray, str]:
    """Return queries and what they are."""
    generator = Generator()
    if path is None:
        return generator.vectors(count, seed=2), "made with another seed"
    asked, known = held_out(np.load(path))
    placed = generator.place(asked, known)
    return placed[:count], "real held-out embeddings"


def flat_index(folder: Path, size: int) -> tuple[FlatIndex, float]:
    """Return an exact index of made vectors, kept in the folder, and the seconds to fill it."""
    path, index, taken = folder / f"flat-{size}.faiss", FlatIndex(DIM), 0.0
    if path.is_file():
        return FlatIndex.load(path), 0.0
    first = 1
    for chunk in Generator().chunks(size, seed=1):
        started = time.perf_counter()
        index.add(np.arange(first, first + len(chunk)), chunk)
        taken += time.perf_counter() - started
        first += len(chunk)
    index.save(path)
    return index, taken


def near_index(
    folder: Path, exact: FlatIndex, factory: str, tuning: FloatArray
) -> tuple[ApproximateIndex, Measured]:
    """Return an approximate index, kept in the folder, at the least effort for the target."""
    size = len(exact)
    path = folder / f"near-{factory.replace(',', '-')}-{size}"
    if path.with_suffix(".json").is_file():
        measured = Measured.model_validate_json(path.with_suffix(".json").read_text())
        return ApproximateIndex.load(path.with_suffix(".faiss"), exact, measured.effort), measured
    started = time.perf_counter()
    made = ApproximateIndex.build(exact, factory, exact.ids())
    seconds = time.perf_counter() - started
    made.save(path.with_suffix(".faiss"))
    measured = fit_effort(made, tuning, TARGET, factory=factory, seconds=seconds)
    path.with_suffix(".json").write_text(measured.model_dump_json(indent=1))
    return made, measured


def found_ids(index: VectorIndex) -> Search:
    return lambda queries, k: padded(index.search(queries, k), k)


def padded(found: list[Neighbours], k: int) -> IdArray:
    ids = np.full((len(found), k), -1, np.int64)
    for row, neighbours in enumerate(found):
        ids[row, : min(k, len(neighbours.ids))] = neighbours.ids[:k]
    return ids


def share_found(ids: IdArray, truth: list[Neighbours]) -> float:
    empty = np.empty(0, np.float32)
    return recall_of([Neighbours(row, empty) for row in ids], truth, K)


def rates(
    contenders: dict[str, Search], queries: FloatArray, batch: int, counts: dict[str, int]
) -> dict[str, float]:
    """Return each one's queries per second, the median of rounds in which they take turns."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, search in contenders.items():
            blocks = [queries[n : n + batch] for n in range(0, counts[name] * batch, batch)]
            search(blocks[0][:1], K)
            started = time.perf_counter()
            for block in blocks:
                search(block, K)
            asked = sum(len(block) for block in blocks)
            taken[name].append(asked / (time.perf_counter() - started))
    return {name: float(np.median(values)) for name, values in taken.items()}


def speed(options: argparse.Namespace) -> None:
    folder, size = options.folder, options.size
    queries, what = queries_for(options.queries, 1000)
    exact, _ = flat_index(folder, size)
    # The first of the queries set the effort, as they do for the rivals.
    near, measured = near_index(folder, exact, options.index, queries[:TUNING])
    bare = faiss.read_index(str(folder / f"flat-{size}.faiss"))
    truth = exact.search(queries, K)
    contenders: dict[str, Search] = {
        "bare FAISS, exact": lambda q, k: bare.search(q, k)[1],
        "SLIMP, exact": found_ids(exact),
        f"SLIMP, {measured.factory}": found_ids(near),
        **rivals(folder, exact, queries[:TUNING], truth[:TUNING], TARGET),
    }
    # Of the slow ones fewer: milvus-lite answers over a socket.
    slow = ("exact", "milvus")
    many = {name: 20 if any(word in name for word in slow) else 300 for name in contenders}
    once = dict.fromkeys(contenders, 1)
    one, thousand = rates(contenders, queries, 1, many), rates(contenders, queries, 1000, once)
    rows = {
        name: {
            # Of queries that set no effort.
            "recall": share_found(search(queries[TUNING:], K), truth[TUNING:]),
            "batch 1": one[name],
            "batch 1000": thousand[name],
        }
        for name, search in contenders.items()
    }
    result = {
        "size": size,
        "queries": what,
        "measured": measured.model_dump(),
        "rows": rows,
        "filtered": filtered(exact, near, queries[TUNING : TUNING + 100]),
    }
    write(folder, f"speed-{size}", result)


def filtered(exact: FlatIndex, near: ApproximateIndex, queries: FloatArray) -> list[dict[str, Any]]:
    """Return milliseconds, recall and the fewest hits at each share of eligible vectors."""
    rows = []
    for share in SHARES:
        mask = np.random.default_rng(5).random(len(exact)) < share
        eligible = Eligible(exact.ids()[mask])
        truth = [exact.search(query[None], K, eligible)[0] for query in queries]
        row: dict[str, Any] = {"share": share, "eligible": int(mask.sum())}
        for name, index in (("exact", exact), ("approximate", near)):
            found, taken = [], []
            for query in queries:
                started = time.perf_counter()
                found += index.search(query[None], K, eligible)
                taken.append(time.perf_counter() - started)
            row[f"{name} ms"] = float(np.median(taken)) * 1000
            row[f"{name} recall"] = recall_of(found, truth, K)
            row[f"{name} fewest"] = min(len(neighbours.ids) for neighbours in found)
        rows.append(row)
    return rows


def growth(options: argparse.Namespace) -> None:
    queries, what = queries_for(options.queries, 1000)
    for size in options.sizes:
        exact, seconds = flat_index(options.folder, size)
        factory = options.index or factory_for(max(size, 100_000), DIM)
        assert factory != FLAT
        near, measured = near_index(options.folder, exact, factory, queries[:TUNING])
        truth = exact.search(queries[TUNING:], K)
        one = rates({"exact": found_ids(exact), "near": found_ids(near)}, queries, 1,
                    {"exact": 10, "near": 100})  # fmt: skip
        near_file = next(options.folder.glob(f"near-{factory.replace(',', '-')}-{size}.faiss"))
        row = {
            "size": size,
            "factory": factory,
            "queries": what,
            "exact fill s": seconds,
            "near build s": measured.seconds_to_build,
            "exact ms": 1000 / one["exact"],
            "near ms": 1000 / one["near"],
            "recall": share_found(found_ids(near)(queries[TUNING:], K), truth),
            "exact MB": size * DIM * 4 / 1e6,
            "near MB": near_file.stat().st_size / 1e6,
            "effort": measured.effort.__dict__,
        }
        flat_file = options.folder / f"flat-{size}.faiss"
        for name, file in (("exact", None), ("near", near_file)):
            # In a process of its own: what other indexes left behind is not counted.
            with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
                held = fresh.submit(resident_mib, flat_file, file, queries[:100]).result()
            row |= {f"{name} MiB {kind}": mib for kind, mib in held.items()}
        write(options.folder, f"growth-{size}", row)


def resident_mib(flat: Path, near: Path | None, queries: FloatArray) -> dict[str, float]:
    """Return what loading an index and searching it adds to a process: its own memory, of files.

    Args:
        flat: the exact index's file.
        near: the approximate one's, with its measurement beside it; None searches the exact one.
        queries: (N, D) float32, asked one by one.
    """
    before = memory_mib(os.getpid())
    index: VectorIndex = FlatIndex.load(flat)
    if near is not None:
        measured = Measured.model_validate_json(near.with_suffix(".json").read_text())
        assert isinstance(index, FlatIndex)
        index = ApproximateIndex.load(near, index, measured.effort)
    for query in queries:
        index.search(query[None], K)
    after = memory_mib(os.getpid())
    return {name: after[name] - before[name] for name in ("own", "of files")}


def compressed(options: argparse.Namespace) -> None:
    """Ten million vectors that never lie in memory at once: IVF with product-quantised codes."""
    queries, what = queries_for(options.queries, 200)
    path = options.folder / f"compressed-{options.size}.faiss"
    best = np.full((len(queries), K), -np.inf, np.float32)
    best_ids = np.full((len(queries), K), -1, np.int64)
    index = faiss.index_factory(DIM, options.index, faiss.METRIC_L2)
    seconds, first = 0.0, 0
    for chunk in Generator().chunks(options.size, seed=1):
        started = time.perf_counter()
        if not index.is_trained:
            index.train(chunk)
        index.add(chunk)
        seconds += time.perf_counter() - started
        scores = np.concatenate([best, queries @ chunk.T], axis=1)
        ids = np.concatenate(
            [best_ids, np.tile(np.arange(first, first + len(chunk)), (len(queries), 1))], axis=1
        )
        top = np.argpartition(-scores, K, axis=1)[:, :K]
        best, best_ids = np.take_along_axis(scores, top, 1), np.take_along_axis(ids, top, 1)
        first += len(chunk)
        print(first, round(seconds), flush=True)
    faiss.write_index(index, str(path))
    rows = []
    for nprobe in (8, 32, 128):
        params = faiss.SearchParametersIVF()
        params.nprobe = nprobe
        taken, within = [], {10: 0, 100: 0}
        for query, known in zip(queries, best_ids, strict=True):
            started = time.perf_counter()
            _, ids = index.search(query[None], 100, params=params)
            taken.append(time.perf_counter() - started)
            for depth in within:
                within[depth] += len(np.intersect1d(ids[0, :depth], known))
        rows.append(
            {"nprobe": nprobe, "ms": float(np.median(taken)) * 1000}
            | {f"10 nearest in {d}": n / known.size / len(queries) for d, n in within.items()}
        )
    row = {"size": options.size, "factory": options.index, "queries": what, "build s": seconds,
           "MB": path.stat().st_size / 1e6, "rows": rows}  # fmt: skip
    write(options.folder, f"compressed-{options.size}", row)


def write(folder: Path, name: str, result: dict[str, Any]) -> None:
    """Keep what was measured, with the machine, and print it."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    result |= {"machine": cpu, "threads": faiss.omp_get_max_threads(), "faiss": faiss.__version__}
    text = json.dumps(result, indent=1)
    (folder / f"{name}.json").write_text(text)
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    for verb, index in (
        (speed, factory_for(400_000, DIM)),
        (growth, None),
        (compressed, "IVF2048,PQ48"),
    ):
        made = verbs.add_parser(verb.__name__)
        made.set_defaults(run=verb)
        made.add_argument("folder", type=Path)
        made.add_argument("--queries", type=Path)
        made.add_argument("--index", default=index)
        made.add_argument("--size", type=int, default=10_000_000 if verb is compressed else 400_000)
        made.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 400_000])
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    options.run(options)


if __name__ == "__main__":
    main()
