"""Search by likeness: the k nearest rows' vote, and whether like lesions come first.

Features are centred by the reference mean and compared by cosine; a row is never compared with its
own group. Features equal to the mean have no direction: they are equally unlike everything.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
FIRST = (1, 5, 10)
NEIGHBOURS = 10
# Similarities held at once.
CHUNK = 4_000_000


@dataclass(frozen=True)
class Nearest:
    """The reference lesions nearest to N queries, best first.

    Attributes:
        row: (N, K) int64 reference rows, each lesion's first.
        cosine: (N, K) float32, -inf where a place is not filled.
    """

    row: IntArray
    cosine: FloatArray


@dataclass(frozen=True)
class Found:
    """What searches found, one value a query; NaN where no other group's lesion has its label.

    Attributes:
        precision: by k, (N,) float64 share of the label among the first k lesions, or among all if
            there are fewer.
        hit: by k, (N,) float64, 1 where the label is among the first k lesions.
        average_precision: (N,) float64, over all lesions: the mean, over those with the label, of
            the label's share among the lesions up to that one.
    """

    precision: dict[int, npt.NDArray[np.float64]]
    hit: dict[int, npt.NDArray[np.float64]]
    average_precision: npt.NDArray[np.float64]


def pool_lesions(features: FloatArray, lesion: Sequence[str]) -> tuple[FloatArray, IntArray]:
    """Return (L, D) float32 means over each lesion's images and (L,) int64 rows that show it.

    Args:
        features: (N, D) float32.
        lesion: N lesion ids.
    """
    _, first, inverse = np.unique(
        np.array(lesion, dtype=str), return_index=True, return_inverse=True
    )
    sums = np.zeros((len(first), features.shape[1]), np.float64)
    np.add.at(sums, inverse, features)
    means = sums / np.bincount(inverse)[:, None]
    return means.astype(np.float32), first.astype(np.int64)


def directions(features: FloatArray, centre: FloatArray) -> FloatArray:
    """Return (N, D) float32 centred rows of unit length, zeros where there is no direction."""
    centred = features.astype(np.float32) - centre
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    unit: FloatArray = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
    return unit


def similarities(
    query: FloatArray,
    query_group: Sequence[str],
    reference: FloatArray,
    reference_group: Sequence[str],
) -> Iterator[tuple[slice, FloatArray]]:
    """Yield (M, R) float32 cosines of successive queries, -inf for their own group.

    Args:
        query: (N, D) float32.
        query_group: N groups.
        reference: (R, D) float32, whose mean is the centre.
        reference_group: R groups.
    """
    centre = reference.mean(0, dtype=np.float64).astype(np.float32)
    asked, known = directions(query, centre), directions(reference, centre)
    groups = np.array([*query_group, *reference_group], dtype=str)
    number = np.unique(groups, return_inverse=True)[1]
    own, theirs = number[: len(query)], number[len(query) :]
    step = max(1, CHUNK // len(reference))
    for start in range(0, len(query), step):
        part = slice(start, min(start + step, len(query)))
        cosine = asked[part] @ known.T
        cosine[own[part, None] == theirs] = -np.inf
        yield part, cosine


def nearest_lesions(
    query: FloatArray,
    query_group: Sequence[str],
    reference: FloatArray,
    reference_group: Sequence[str],
    lesion: Sequence[str],
    *,
    count: int = 5,
) -> Nearest:
    """Return the lesions of other groups that are nearest to each query.

    Args:
        query: (N, D) float32.
        query_group: N groups.
        reference: (R, D) float32.
        reference_group: R groups.
        lesion: R lesion ids.
        count: lesions a query; all where there are fewer.
    """
    lesions, shown = pool_lesions(reference, lesion)
    groups = [reference_group[i] for i in shown.tolist()]
    count = min(count, len(lesions))
    rows, cosines = [], []
    for _, cosine in similarities(query, query_group, lesions, groups):
        first = np.argsort(-cosine, axis=1, kind="stable")[:, :count]
        rows.append(shown[first])
        cosines.append(np.take_along_axis(cosine, first, axis=1))
    return Nearest(np.concatenate(rows), np.concatenate(cosines))


def vote(
    query: FloatArray,
    query_group: Sequence[str],
    reference: FloatArray,
    reference_group: Sequence[str],
    label: IntArray,
    *,
    classes: int,
    count: int = NEIGHBOURS,
) -> FloatArray:
    """Return (N, C) float32 shares of the labels among each query's nearest reference rows.

    Args:
        query: (N, D) float32.
        query_group: N groups.
        reference: (R, D) float32.
        reference_group: R groups.
        label: (R,) int64 of the reference rows.
        classes: C.
        count: neighbours; all where there are fewer. With none the shares are 0.
    """
    count = min(count, len(reference))
    shares = np.zeros((len(query), classes), np.float32)
    votes = np.eye(classes, dtype=np.float32)[label]
    for part, cosine in similarities(query, query_group, reference, reference_group):
        nearest = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
        allowed = np.isfinite(np.take_along_axis(cosine, nearest, axis=1))
        summed = (votes[nearest] * allowed[:, :, None]).sum(1)
        shares[part] = summed / allowed.sum(1, keepdims=True).clip(min=1)
    return shares


def search_lesions(
    query: FloatArray,
    query_group: Sequence[str],
    query_label: IntArray,
    reference: FloatArray,
    reference_group: Sequence[str],
    label: IntArray,
    *,
    seed: int = 0,
) -> Found:
    """Return how well each query finds reference lesions of its label.

    Args:
        query: (N, D) float32.
        query_group: N groups.
        query_label: (N,) int64.
        reference: (R, D) float32, one row a lesion.
        reference_group: R groups.
        label: (R,) int64.
        seed: of the order of equally like lesions, which must not be that of the cohort.
    """
    order = np.random.default_rng(seed).permutation(len(reference))
    groups = [reference_group[i] for i in order]
    shape = (len(query),)
    precision, hit = ({k: np.full(shape, np.nan) for k in FIRST} for _ in range(2))
    found = Found(precision, hit, np.full(shape, np.nan))
    for part, cosine in similarities(query, query_group, reference[order], groups):
        ranked = np.argsort(-cosine, axis=1, kind="stable")
        allowed = np.isfinite(np.take_along_axis(cosine, ranked, axis=1))
        right = (label[order][ranked] == query_label[part, None]) & allowed
        _judge(found, part, right, allowed.sum(1))
    return found


def _judge(found: Found, part: slice, right: BoolArray, allowed: IntArray) -> None:
    """Fill in some queries.

    Args:
        found: what is filled in.
        part: the queries.
        right: (M, R) bool, in the order found, whether it has the query's label.
        allowed: (M,) int64 lesions of other groups, which come first.
    """
    total = right.sum(1)
    known = total > 0

    def put(into: npt.NDArray[np.float64], above: npt.NDArray, below: npt.NDArray | int) -> None:
        into[part] = np.divide(above, below, out=np.full(len(total), np.nan), where=known)

    for k in FIRST:
        among = right[:, :k].sum(1)
        put(found.precision[k], among, np.minimum(k, allowed))
        put(found.hit[k], among > 0, 1)
    rank = np.arange(1, right.shape[1] + 1)
    put(found.average_precision, (right * np.cumsum(right, axis=1) / rank).sum(1), total)
