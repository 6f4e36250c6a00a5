"""A linear classifier on frozen features, and the few labelled rows that it may learn from."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from training.task import Task

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
REGULARISATION = 0.01
ITERATIONS = 2000


def probe(reference: FloatArray, label: IntArray, query: FloatArray, *, classes: int) -> FloatArray:
    """Return (N, C) float32 probabilities of a balanced logistic regression.

    Args:
        reference: (R, D) float32, standardised features to learn from.
        label: (R,) int64; a label that does not occur is given probability 0.
        query: (N, D) float32, standardised likewise.
        classes: C.
    """
    probabilities = np.zeros((len(query), classes), np.float32)
    known = np.unique(label)
    if len(known) == 1:
        probabilities[:, known] = 1
        return probabilities
    model = LogisticRegression(C=REGULARISATION, class_weight="balanced", max_iter=ITERATIONS)
    probabilities[:, known] = model.fit(reference, label).predict_proba(query)
    return probabilities


def standardise_features(reference: FloatArray, query: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return both with the mean and the deviation of the reference taken out."""
    scaler = StandardScaler().fit(reference)
    return scaler.transform(reference), scaler.transform(query)


@dataclass(frozen=True)
class FewRows:
    """One size of labelled rows.

    Attributes:
        name: "5 per label" or "10 %".
        rows: for each draw, (M,) int64 reference rows.
        fewer: by label, how many rows a draw has of it where that is fewer than asked for.
    """

    name: str
    rows: list[IntArray]
    fewer: dict[str, int]


def draw_few(task: Task) -> list[FewRows]:
    """Return every size of few labelled rows, drawn at random under the task's seed.

    So many per label: one image each of so many groups. A share: all labelled images of a share of
    the groups, at least one group.
    """
    labelled = np.flatnonzero(task.reference.label >= 0)
    label = task.reference.label[labelled]
    group = np.array(task.reference.take(labelled).group, dtype=str)
    number = np.unique(group, return_inverse=True)[1]
    few = []
    for count in task.per_label:
        rng = np.random.default_rng((task.seed, count))
        drawn = [_per_label(label, number, count, rng) for _ in range(task.draws)]
        fewer = {
            name: int((label[drawn[0]] == k).sum())
            for k, name in enumerate(task.labels)
            if (label[drawn[0]] == k).sum() < count
        }
        few.append(FewRows(f"{count} per label", [labelled[rows] for rows in drawn], fewer))
    for share in task.shares:
        rng = np.random.default_rng((task.seed, round(1e6 * share)))
        drawn = [_share(number, share, rng) for _ in range(task.draws)]
        few.append(FewRows(f"{100 * share:g} %", [labelled[rows] for rows in drawn], {}))
    return few


def _per_label(label: IntArray, group: IntArray, count: int, rng: np.random.Generator) -> IntArray:
    chosen = []
    order = rng.permutation(len(label))
    for k in np.unique(label):
        own = order[label[order] == k]
        first = np.unique(group[own], return_index=True)[1]
        chosen.append(own[np.sort(first)[:count]])
    return np.concatenate(chosen)


def _share(group: IntArray, share: float, rng: np.random.Generator) -> IntArray:
    total = int(group.max()) + 1
    drawn = rng.permutation(total)[: max(1, round(share * total))]
    return np.flatnonzero(np.isin(group, drawn))
