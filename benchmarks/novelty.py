"""Does the novelty score tell what the model knows from what it does not?

    python -m benchmarks.novelty MODEL COHORT --other COHORT [--other COHORT]

The score (distance to the training lesions, `bundle/novelty.py`) of COHORT's test split, which
training did not see, beside every picture of the other cohorts: the AUROC between them, and the
share that a service would call unlike its training lesions, with the model's own threshold and with
those that `fit.novel_share` would put on COHORT's cal split. Then COHORT's test split itself, by
the score: whether answers are worse where it is high. MODEL is a fitted run or a bundle. Intervals
resample groups.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cohort.cohort import Cohort
from cohort.splits import SPLITS
from training.conditions import absent, answer
from training.data import Rows, Squares, load_rows
from training.features import FloatArray, embed_rows
from training.fitted import FittedModel, open_fitted
from training.metrics import balanced_decision
from training.report import show
from training.resampling import Resampling, auroc_of, balanced_accuracy_of, estimate, mean_of

PARTS = 4
SHARES = (0.02, 0.05)


@dataclass(frozen=True)
class Scored:
    """N rows, their (N, D) embeddings and (N,) novelty scores."""

    rows: Rows
    embeddings: FloatArray
    score: FloatArray


def scores_of(model: FittedModel, cohort: Cohort, splits: Sequence[str]) -> Scored:
    """Return a cohort's rows with their scores."""
    if model.novelty is None:
        raise SystemExit("expected a model with a novelty score, this bundle has none")
    rows = load_rows(cohort, splits, model.labels)
    embeddings = embed_rows(model.encoders, Squares(cohort, rows, model.image_input))
    return Scored(rows, embeddings, model.novelty.score(embeddings))


def compare_cohorts(
    model: FittedModel, own: Cohort, test: Scored, others: Sequence[Cohort]
) -> None:
    """Print a row a cohort."""
    calibrating = scores_of(model, own, ["cal"]).score
    thresholds = [
        model.calibration.novelty_threshold,
        *np.quantile(calibrating, 1 - np.array(SHARES)),
    ]

    def flagged(groups: Sequence[str], score: FloatArray) -> list[str]:
        resampling = Resampling(groups)
        return [show(estimate(resampling.draws(mean_of(score > each)))) for each in thresholds]

    known = test.score
    groups = [f"own {group}" for group in test.rows.group_id]
    header = ["", "images", "AUROC against the first", "called unlike"]
    header += [f"at a share of {share:g}" for share in SHARES]
    print(f"| {' | '.join(header)} |\n|{' --- |' * len(header)}")
    cells = [f"{own.info.name}, test", str(len(known)), "", *flagged(groups, known)]
    print(f"| {' | '.join(cells)} |", flush=True)
    for number, cohort in enumerate(others):
        strange = scores_of(model, cohort, SPLITS)
        score, theirs = strange.score, [f"{number} {group}" for group in strange.rows.group_id]
        unlike = np.repeat([False, True], [len(known), len(score)])
        both = np.concatenate([known, score])
        apart = Resampling([*groups, *theirs]).draws(auroc_of(unlike, both))
        cells = [cohort.info.name, str(len(score)), show(estimate(apart))]
        print(f"| {' | '.join([*cells, *flagged(theirs, score)])} |", flush=True)


def by_score(model: FittedModel, test: Scored) -> None:
    """Print the answers' figures of quarters of the test split, most ordinary first."""
    rows, score = test.rows, test.score
    answered = answer(model, test.embeddings, absent(rows.records), "missing").probabilities
    decided = balanced_decision(answered, model.prior)
    likeliest = answered.argmax(1)
    edges = np.quantile(score, np.linspace(0, 1, PARTS + 1))
    part: npt.NDArray[np.int64] = np.clip(np.searchsorted(edges, score, "right") - 1, 0, PARTS - 1)
    print("\n| novelty | images | accuracy, most probable label | balanced accuracy |")
    print("| --- | --- | --- | --- |")
    for number in range(PARTS):
        mine = np.flatnonzero((part == number) & (rows.label >= 0))
        resampling = Resampling([rows.group_id[i] for i in mine])
        label = rows.label[mine]
        right = resampling.draws(mean_of(label == likeliest[mine]))
        balanced = resampling.draws(balanced_accuracy_of(label, decided[mine]))
        name = f"quarter {number + 1}"
        cells = [name, str(len(mine)), show(estimate(right)), show(estimate(balanced))]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--other", type=Path, action="append", required=True)
    options = parser.parse_args()
    model, own = open_fitted(options.model), Cohort.open(options.cohort)
    test = scores_of(model, own, ["test"])
    compare_cohorts(model, own, test, [Cohort.open(path) for path in options.other])
    by_score(model, test)


if __name__ == "__main__":
    main()
