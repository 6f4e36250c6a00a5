"""Vectors distributed like a real encoder's, from a few numbers; and the numbers from real ones.

    python -m benchmarks.retrieval_vectors EMBEDDINGS.npy [--cohort COHORT --source FOLDER]

Compares real embeddings with made ones; with a cohort and a checkpoint, makes the file first. The
numbers below were fitted to unit class tokens of DINOv2-small after block 8 at 112 px, one image of
each of 4,800 HAM10000 lesions: how much of a vector all share, how the rest is spread over
principal axes (interpolated between ranks), and a mixture of clusters of unequal size and width
that gives about the real neighbours' cosines, local dimension and hubs. No embedding is kept.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.input_size import config_at, load_encoder
from bundle.images import standardise
from cohort.cohort import Cohort
from cohort.splits import SPLITS
from training.data import Squares, in_order, load_rows

FloatArray = npt.NDArray[np.float32]

DIM, SIZE_PX = 384, 112
# The squared length of the mean of unit vectors.
SHARED = 0.9754
# Shares of the rest's variance at these ranks of its principal axes.
RANKS = (1, 2, 3, 5, 9, 17, 33, 65, 97, 129, 193, 257, 321, 383)
VARIANCES = (
    0.231, 0.16, 0.0823, 0.0466, 0.0204, 0.00913, 0.00318, 0.00103, 0.000495, 0.000277, 0.000112,
    5.14e-05, 2.26e-05, 2.1e-06,
)  # fmt: skip
CLUSTERS = 300
BETWEEN_CLUSTERS = 0.4
CLUSTER_WIDTH_SIGMA, VECTOR_WIDTH_SIGMA = 0.2, 0.25
CHUNK = 50_000


class Generator:
    """Makes (N, 384) float32 unit vectors; the same seed gives the same vectors in any chunks."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        rank = np.arange(1, DIM)
        share = np.exp(np.interp(np.log(rank), np.log(RANKS), np.log(VARIANCES)))
        self._deviation = np.sqrt(share / share.sum() * (1 - SHARED)).astype(np.float32)
        # Real encoders do not write along principal axes: the axes are turned.
        turned, _ = np.linalg.qr(rng.standard_normal((DIM, DIM)))
        self._mean = np.float32(np.sqrt(SHARED)) * turned[0].astype(np.float32)
        self._axes = turned[1:].astype(np.float32)
        self._centres = rng.standard_normal((CLUSTERS, DIM - 1), np.float32)
        weights = np.arange(1, CLUSTERS + 1) ** -0.5
        self._weights = weights / weights.sum()
        self._widths = _widths(rng, CLUSTERS, CLUSTER_WIDTH_SIGMA)

    def chunks(self, count: int, seed: int) -> Iterator[FloatArray]:
        """Yield `count` vectors in chunks, so that ten million need no memory."""
        for start in range(0, count, CHUNK):
            rng = np.random.default_rng((seed, start))
            yield self._chunk(rng, CHUNK)[: count - start]

    def vectors(self, count: int, seed: int) -> FloatArray:
        made = np.empty((count, DIM), np.float32)
        for number, chunk in enumerate(self.chunks(count, seed)):
            made[number * CHUNK : number * CHUNK + len(chunk)] = chunk
        return made

    def place(self, real: FloatArray, reference: FloatArray) -> FloatArray:
        """Turn real embeddings onto the generator's mean and axes.

        Args:
            real: (N, 384) the embeddings.
            reference: (M, 384) others, which give the real mean and principal axes.
        """
        known = _unit(reference)
        mean = known.mean(0)
        _, _, axes = np.linalg.svd(known - mean, full_matrices=False)
        return _unit(self._mean + (_unit(real) - mean) @ axes[: DIM - 1].T @ self._axes)

    def _chunk(self, rng: np.random.Generator, count: int) -> FloatArray:
        cluster = rng.choice(CLUSTERS, count, p=self._weights)
        width = _widths(rng, count, VECTOR_WIDTH_SIGMA) * self._widths[cluster]
        made = rng.standard_normal((count, DIM - 1), np.float32)
        made *= np.float32(np.sqrt(1 - BETWEEN_CLUSTERS)) * width[:, None]
        made += np.float32(np.sqrt(BETWEEN_CLUSTERS)) * self._centres[cluster]
        return _unit(self._mean + (made * self._deviation) @ self._axes)


def _widths(rng: np.random.Generator, count: int, sigma: float) -> FloatArray:
    return np.exp(sigma * rng.standard_normal(count) - sigma**2).astype(np.float32)


def _unit(vectors: FloatArray) -> FloatArray:
    directions: FloatArray = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(
        np.float32
    )
    return directions


def held_out(embeddings: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the embeddings that stand for the queries, and those the numbers were fitted to."""
    order = np.random.default_rng(0).permutation(len(embeddings))
    cut = round(0.755 * len(embeddings))
    return embeddings[order[cut:]], embeddings[order[:cut]]


def likeness(queries: FloatArray, known: FloatArray) -> dict[str, float]:
    """Return figures that say how hard a search is: neighbours' cosines, local dimension, hubs."""
    cosines = queries @ known.T
    nearest = -np.sort(-cosines, axis=1)[:, :20]
    distance = np.sqrt(np.maximum(2 - 2 * nearest, 1e-12))
    found = np.bincount(np.argsort(-cosines, axis=1)[:, :10].ravel(), minlength=len(known))
    return {
        "first cosine": float(np.median(nearest[:, 0])),
        "tenth cosine, 5 %": float(np.quantile(nearest[:, 9], 0.05)),
        "tenth cosine, median": float(np.median(nearest[:, 9])),
        "tenth cosine, 95 %": float(np.quantile(nearest[:, 9], 0.95)),
        "cosine deviation": float(cosines.std()),
        "local dimension": float(
            np.median(1 / np.log(distance[:, -1:] / distance[:, :-1]).mean(axis=1))
        ),
        "hub skew": float(((found - found.mean()) ** 3).mean() / found.std() ** 3),
        "never found": float((found == 0).mean()),
    }


def embed(cohort: Cohort, source: str) -> FloatArray:
    """Return (N, 384) float32 embeddings of one image of each lesion, as the numbers were made."""
    rows = load_rows(cohort, SPLITS, cohort.info.labels)
    rows = rows.take(np.sort(np.unique(rows.lesion_id, return_index=True)[1]))
    encoder = load_encoder(SIZE_PX, source)
    squares = Squares(cohort, rows, config_at(SIZE_PX, source).image.input)
    parts = []
    for part in in_order(len(rows), 32):
        pixels = standardise(squares.read(part), squares.spec)
        parts.append(encoder.run(None, {"pixels": pixels})[0])
    return np.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("embeddings", type=Path, help="(N, 384) float32, npy")
    parser.add_argument("--cohort", type=Path)
    parser.add_argument("--source", help="Hugging Face folder or hub id")
    options = parser.parse_args()
    if options.cohort is not None:
        np.save(options.embeddings, embed(Cohort.open(options.cohort), options.source))
    asked, known = held_out(np.load(options.embeddings))
    generator = Generator()
    real = likeness(_unit(asked), _unit(known))
    made = generator.vectors(len(known), seed=1)
    alike = likeness(generator.vectors(len(asked), seed=2), made)
    mixed = likeness(generator.place(asked, known), made)
    print("| | real among real | made among made | real among made |\n| --- | --- | --- | --- |")
    for name, value in real.items():
        print(f"| {name} | {value:.4f} | {alike[name]:.4f} | {mixed[name]:.4f} |")


if __name__ == "__main__":
    main()
