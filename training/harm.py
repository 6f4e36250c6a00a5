"""What metadata does to answers that the image alone gave: made right, or made wrong."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from training.conditions import Answers
from training.metrics import balanced_decision
from training.resampling import estimate, mean_of
from training.scores import Truth, null

IntArray = npt.NDArray[np.int64]


def harm_and_help(answers: dict[str, Answers], truth: Truth) -> dict[str, Any]:
    """Return by condition the shares of images made wrong and made right, with intervals.

    Decisions are those of balanced accuracy; the shares are of all labelled images.

    Args:
        answers: by condition, of the N rows; `image` among them.
        truth: what is known of the rows.
    """
    labelled = truth.labelled
    if isinstance(labelled, str):
        return null(labelled)
    right = {
        name: balanced_decision(answered.probabilities[labelled.rows], truth.prior)
        == labelled.label
        for name, answered in answers.items()
    }
    draw = labelled.resampling.draws
    # Metadata alone is no change of the image's answer.
    return {
        name: {
            "harmed": estimate(draw(mean_of(right["image"] & ~right[name]))),
            "helped": estimate(draw(mean_of(~right["image"] & right[name]))),
        }
        for name in right
        if name not in ("image", "metadata")
    }


def worst_harms(answers: Mapping[str, Answers], truth: Truth, *, count: int) -> IntArray:
    """Return the rows that neighbours' metadata made wrong, the largest fall of the truth first.

    Args:
        answers: of the N rows; `image` and `neighbours` among them.
        truth: what is known of the rows; some carry a label.
        count: rows, at most.
    """
    labelled = truth.labelled
    if isinstance(labelled, str):
        return np.zeros(0, np.int64)
    before, after = (answers[name].probabilities[labelled.rows] for name in ("image", "neighbours"))
    was, is_now = (balanced_decision(p, truth.prior) == labelled.label for p in (before, after))
    own = np.arange(len(labelled.rows))
    fall = before[own, labelled.label] - after[own, labelled.label]
    harmed = np.flatnonzero(was & ~is_now)
    chosen: IntArray = labelled.rows[harmed[np.argsort(-fall[harmed], kind="stable")][:count]]
    return chosen
