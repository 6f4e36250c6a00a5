"""What a variant's embeddings of held-out images are worth beside fp32's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundle.calibration import Calibration
from bundle.encoder import Encoders, unit_norm
from bundle.errors import SeenGroups
from bundle.manifest import BASE_VARIANT, AccuracyCost, Agreement
from cohort.cohort import Cohort
from export.parity import NEIGHBOURS
from training.data import Rows, Squares, load_rows
from training.features import classify_rows, record_features
from training.metrics import balanced_decision
from training.resampling import auroc_of
from training.run import RunInfo

FloatArray = npt.NDArray[np.float32]
SPLITS = ("cal", "test")


@dataclass(frozen=True)
class HeldOut:
    """Labelled images that taught no encoder and no head."""

    info: RunInfo
    cohort: Cohort
    rows: Rows
    squares: Squares


def held_out(info: RunInfo, cohort: Cohort, squares: Callable[[Rows], Squares]) -> HeldOut:
    """Return the cohort's labelled images of the cal and test splits.

    Raises:
        SeenGroups: the run was shown groups of the test split: it is another cohort's run, or
            another split's.
    """
    rows = load_rows(cohort, SPLITS, info.labels)
    rows = rows.take(rows.label >= 0)
    groups = {g for g, s in zip(rows.group_id, rows.split, strict=True) if s == "test"}
    seen = set[str]().union(*(part.overlap(groups) for part in info.seen))
    if seen or not groups:
        raise SeenGroups(
            f"expected a cohort with a labelled test split that the run was not shown, got one of "
            f"{len(groups)} groups of which it was shown {len(seen)}: name the cohort that the run "
            "was fitted on, prepared with the same --split-seed"
        )
    return HeldOut(info, cohort, rows, squares(rows))


def agreement(embeddings: FloatArray, base: FloatArray) -> Agreement:
    """Return how far (N, D) float32 embeddings are those of fp32, also (N, D), rows alike."""
    ours, theirs = unit_norm(embeddings), unit_norm(base)
    cosines = (ours * theirs).sum(1)
    k = min(NEIGHBOURS, len(ours) - 1)
    shared = [
        len(a & b) / k for a, b in zip(_neighbours(ours, k), _neighbours(theirs, k), strict=True)
    ]
    return Agreement(
        images=len(ours),
        cosine_lowest=float(cosines.min()),
        cosine_mean=float(cosines.mean()),
        neighbours_shared=float(np.mean(shared)),
    )


def _neighbours(units: FloatArray, k: int) -> list[set[int]]:
    likeness = units @ units.T
    np.fill_diagonal(likeness, -np.inf)
    return [set(row.tolist()) for row in np.argpartition(-likeness, k - 1, axis=1)[:, :k]]


def accuracy_costs(
    base: Encoders,
    calibration: Calibration,
    held: HeldOut,
    answers: Mapping[str, FloatArray],
    name: str,
) -> tuple[AccuracyCost, ...]:
    """Return what a variant's embeddings cost on each split, without metadata.

    Args:
        base: whose classifier judges.
        calibration: the bundle's.
        held: N held-out images.
        answers: by variant, fp32 among them, (N, D) float32 embeddings.
        name: the variant.
    """
    records = record_features(base, [{}] * len(held.rows), held.info.record_schema)
    prior = np.array([calibration.prevalence[label] for label in held.info.labels], np.float32)
    judged = {
        each: calibration.probabilities(
            classify_rows(base, answers[each], records, "image"), "missing"
        )
        for each in (name, BASE_VARIANT)
    }
    costs = []
    for split in SPLITS:
        inside = held.rows.split == split
        label = held.rows.label[inside]
        figures = {
            each: _figures(probabilities[inside], label, prior, held.info.labels)
            for each, probabilities in judged.items()
        }
        ours, theirs = figures[name], figures[BASE_VARIANT]
        costs.append(
            AccuracyCost(
                split=split,
                macro_auroc=ours[0],
                macro_auroc_fp32=theirs[0],
                recalls=ours[1],
                recalls_fp32=theirs[1],
                images={
                    text: int((label == at).sum())
                    for at, text in enumerate(held.info.labels)
                    if (label == at).any()
                },
            )
        )
    return tuple(costs)


def _figures(
    probabilities: FloatArray,
    label: npt.NDArray[np.int64],
    prior: FloatArray,
    labels: tuple[str, ...],
) -> tuple[float, dict[str, float]]:
    """Return the macro AUROC and the recalls of the labels that occur."""
    once = np.ones((1, len(label)))
    decided = balanced_decision(probabilities, prior)
    aurocs, recalls = [], {}
    for at, text in enumerate(labels):
        own = label == at
        if own.any() and not own.all():
            aurocs.append(float(auroc_of(own, probabilities[:, at])(once)[0]))
            recalls[text] = float((decided[own] == at).mean())
    return float(np.mean(aurocs)), recalls
