"""What metadata does to answers that the image alone gave: made right, or made wrong."""

from typing import Any

from training.conditions import Answers
from training.metrics import balanced_decision
from training.resampling import estimate, mean_of
from training.scores import Truth, null

CONDITIONS = ("given", "extrapolated")


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
    return {
        name: {
            "harmed": estimate(draw(mean_of(right["image"] & ~right[name]))),
            "helped": estimate(draw(mean_of(~right["image"] & right[name]))),
        }
        for name in CONDITIONS
        if name in right
    }
