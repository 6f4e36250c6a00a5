"""Comparing a model's answers with those of something else on the same images.

The other's answers are an `.npz` with image_id (N,), probabilities (N, C), labels (C,); its
decision is the most probable label, so its probabilities are those of equally frequent labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.arrays import read_arrays
from bundle.errors import CorruptBundle, TrainingError
from training.resampling import Draws, Resampling, estimate
from training.scores import COMPARED, Labelled, Question, Truth, compare, label_draws, null

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Anchor:
    """Another's answers: M image ids and their (M, C) float32 probabilities."""

    image_id: list[str]
    probabilities: FloatArray


def read_anchor(path: Path, labels: Sequence[str]) -> Anchor:
    """Return another's answers with the columns in the order of `labels`.

    Raises:
        TrainingError: the file cannot be read, or its arrays do not fit together or the labels.
    """
    try:
        arrays = read_arrays(path.read_bytes(), path.name)
        image_id, probabilities = arrays["image_id"], arrays["probabilities"]
        names = arrays["labels"].tolist()
    except (OSError, CorruptBundle, KeyError):
        raise TrainingError(
            f"{path}: expected an .npz with image_id, probabilities and labels"
        ) from None
    if sorted(names) != sorted(labels):
        raise TrainingError(
            f"{path}: expected probabilities of {', '.join(labels)}, got {', '.join(names)}"
        )
    if probabilities.shape != (len(image_id), len(labels)) or not np.isfinite(probabilities).all():
        raise TrainingError(
            f"{path}: expected finite probabilities of shape {(len(image_id), len(labels))}, got "
            f"{probabilities.shape}"
        )
    if len(set(image_id.tolist())) != len(image_id):
        raise TrainingError(f"{path}: expected each image_id once")
    columns = [names.index(label) for label in labels]
    return Anchor([str(i) for i in image_id], probabilities[:, columns].astype(np.float32))


def compare_with_anchor(
    anchor: Anchor,
    image_id: Sequence[str],
    probabilities: Mapping[str, FloatArray],
    truth: Truth,
    groups: Sequence[str],
    *,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """Return the other's figures and, by condition, the model's minus the other's.

    Args:
        anchor: the other's answers.
        image_id: N ids.
        probabilities: by condition, the model's (N, C) float32.
        truth: what is known of the N rows.
        groups: the N rows' patients (or lesions).
        samples: resamplings.
        seed: of the resampling.

    Raises:
        TrainingError: the two share no labelled image.
    """
    if isinstance(truth.labelled, str):
        return null(truth.labelled)
    place = {name: i for i, name in enumerate(anchor.image_id)}
    both = np.array([image_id[i] in place for i in truth.labelled.rows])
    if not both.any():
        raise TrainingError("the answers to compare with share no labelled image with these rows")
    rows = truth.labelled.rows[both]
    resampling = Resampling([groups[i] for i in rows], samples=samples, seed=seed)
    shared = Labelled(rows, truth.labelled.label[both], resampling)
    theirs = np.zeros((len(image_id), len(truth.labels)), np.float32)
    theirs[rows] = anchor.probabilities[[place[image_id[i]] for i in rows]]
    questions = _shared_questions(truth, set(rows.tolist()), groups, samples, seed)

    def draws(answers: FloatArray, prior: FloatArray) -> dict[str, Draws]:
        asked = {name: question.draws(answers) for name, question in questions.items()}
        return {**label_draws(answers, shared, prior), **asked}

    other = draws(theirs, np.ones(len(truth.labels), np.float32))
    return {
        "images": len(rows),
        "images_without_answer": int((~both).sum()),
        "decision": "most probable label of probabilities at equally frequent labels",
        "other": {k: estimate(other[k]) for k in COMPARED if k in other},
        "difference": {
            name: compare(draws(own, truth.prior), other) for name, own in probabilities.items()
        },
    }


def _shared_questions(
    truth: Truth, answered: set[int], groups: Sequence[str], samples: int, seed: int
) -> dict[str, Question]:
    """Return the questions that compare, on the rows that the other answered."""
    found = {}
    for name, question in truth.questions.items():
        if name not in COMPARED or isinstance(question, str):
            continue
        both = np.array([row in answered for row in question.rows.tolist()])
        rows = question.rows[both]
        resampling = Resampling([groups[i] for i in rows], samples=samples, seed=seed)
        found[name] = Question(rows, question.positive[both], question.labels, resampling)
    return found
