"""Pictures on both sides of a split that show the same thing: what no split by group can catch.

A picture is compared as a grey square of 32 x 32, in all eight orientations, by the correlation of
its pixels: the same photograph stays above 0.99 when it is compressed, resized or turned again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.data import Squares, in_order

FloatArray = npt.NDArray[np.float32]
SIDE = 32
LIKE = 0.99
LISTED = 20
# Correlations held at once.
CHUNK = 8_000_000


@dataclass(frozen=True)
class NearDuplicate:
    """A query's picture and a reference picture that shows the same: row numbers, correlation."""

    query: int
    reference: int
    correlation: float


def thumbnails(squares: Squares) -> FloatArray:
    """Return (N, 32, 32) float32 grey pictures of mean 0 and length 1; zeros where all is one grey.

    Args:
        squares: the pictures.
    """
    small = np.zeros((len(squares), SIDE, SIDE), np.float32)
    for part in in_order(len(squares), 64):
        for place, square in zip(part, squares.read(part), strict=True):
            grey = Image.fromarray(square).convert("L")
            small[place] = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX))
    small -= small.mean((1, 2), keepdims=True)
    length = np.sqrt((small**2).sum((1, 2), keepdims=True))
    unit: FloatArray = np.divide(small, length, out=np.zeros_like(small), where=length > 0)
    return unit


def find_near_duplicates(
    query: FloatArray, reference: FloatArray, *, like: float = LIKE
) -> list[NearDuplicate]:
    """Return for each query that has one its likest reference picture, the likest first.

    Args:
        query: (N, 32, 32) float32, as `thumbnails` gives them.
        reference: (R, 32, 32) float32 likewise.
        like: the least correlation.
    """
    known = reference.reshape(len(reference), SIDE * SIDE)
    found = []
    step = max(1, CHUNK // max(1, len(known)))
    for part in in_order(len(query), step) if len(known) else ():
        best = np.full((len(part), len(known)), -1, np.float32)
        for turned in _orientations(query[part]):
            np.maximum(best, turned.reshape(len(part), SIDE * SIDE) @ known.T, out=best)
        for i, place in zip(part, best.argmax(1), strict=True):
            correlation = float(best[i - part[0], place])
            if correlation >= like:
                found.append(NearDuplicate(i, int(place), min(1.0, correlation)))
    return sorted(found, key=lambda pair: -pair.correlation)


def describe_near_duplicates(
    found: Sequence[NearDuplicate], queries: Sequence[str], references: Sequence[str], split: str
) -> dict[str, Any]:
    """Return how many pairs were found and the likest by name, ready for JSON.

    Args:
        found: the likest first, of the default correlation or more.
        queries: N image ids.
        references: R image ids.
        split: the references'.
    """
    likest = [
        {
            "image": queries[pair.query],
            f"{split}_image": references[pair.reference],
            "correlation": round(pair.correlation, 4),
        }
        for pair in found[:LISTED]
    ]
    return {"correlation_at_least": LIKE, "images": len(found), "likest": likest}


def _orientations(pictures: FloatArray) -> list[FloatArray]:
    turned = [np.rot90(pictures, quarter, axes=(1, 2)) for quarter in range(4)]
    return [np.ascontiguousarray(p) for p in (*turned, *(p[:, :, ::-1] for p in turned))]
