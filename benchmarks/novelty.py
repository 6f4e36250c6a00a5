"""Do novelty and appearance tell what the model knows from what it does not?

    python -m benchmarks.novelty MODEL COHORT --other COHORT [--other COHORT]

Both scores (distance to the training lesions, `bundle/novelty.py`; the pictures' plain look,
`bundle/appearance.py`) of COHORT's test split, which training did not see, beside every picture of
the other cohorts: the AUROC between them by each score, and the share that a service would call
unlike its training images, with the model's own thresholds and with those that `fit.novel_share`
would put on COHORT's cal split. Then COHORT's test split once more, in other forms: what a site
does to a picture before it sends it should not make it strange. Then, by the novelty score, whether
answers are worse where it is high. MODEL is a fitted run or a bundle. Intervals resample groups.
"""

import argparse
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter

from bundle.appearance import describe_appearance
from bundle.images import decode_image
from cohort.cohort import Cohort
from cohort.splits import SPLITS
from training.calibration import joint_thresholds
from training.conditions import absent, answer
from training.data import Rows, Squares, load_rows
from training.features import FloatArray, describe_rows, embed_rows
from training.fitted import FittedModel, open_fitted
from training.metrics import balanced_decision
from training.report import show
from training.resampling import Resampling, auroc_of, balanced_accuracy_of, estimate, mean_of

PARTS = 4
SHARES = (0.02, 0.05)
PICTURES = 400


def saved_again(quality: int) -> Callable[[Image.Image], Image.Image]:
    """Return what saves a picture as JPEG of this quality and reads it again."""

    def change(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return decode_image(file.getvalue())

    return change


def brightened(factor: float) -> Callable[[Image.Image], Image.Image]:
    return lambda picture: ImageEnhance.Brightness(picture).enhance(factor)


def scaled(factor: float) -> Callable[[Image.Image], Image.Image]:
    def change(picture: Image.Image) -> Image.Image:
        size = round(picture.width * factor), round(picture.height * factor)
        return picture.resize(size, Image.Resampling.BICUBIC)

    return change


FORMS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "it is": lambda picture: picture,
    "JPEG, quality 60": saved_again(60),
    "JPEG, quality 30": saved_again(30),
    "half as wide": scaled(0.5),
    "three times as wide": scaled(3),
    "blurred by a pixel": lambda picture: picture.filter(ImageFilter.GaussianBlur(1)),
    "a tenth brighter": brightened(1.1),
    "a tenth darker": brightened(0.9),
    "turned by 90 degrees": lambda picture: picture.transpose(Image.Transpose.ROTATE_90),
}


@dataclass(frozen=True)
class Scored:
    """N rows of a cohort, their (N, D) embeddings and (N,) scores."""

    name: str
    rows: Rows
    embeddings: FloatArray
    novelty: FloatArray
    appearance: FloatArray

    def beyond(self, thresholds: Sequence[float]) -> npt.NDArray[np.bool_]:
        """Return (N,) whether either score is beyond its threshold."""
        novelty, appearance = thresholds
        return (self.novelty > novelty) | (self.appearance > appearance)


def scores_of(model: FittedModel, cohort: Cohort, splits: Sequence[str]) -> Scored:
    """Return a cohort's rows with their scores."""
    if model.novelty is None or model.appearance is None:
        raise SystemExit("expected a model with both scores: fit and export it again")
    rows = load_rows(cohort, splits, model.labels)
    embeddings = embed_rows(model.encoders, Squares(cohort, rows, model.image_input))
    appearance = model.appearance.score(describe_rows(cohort, rows))
    return Scored(cohort.info.name, rows, embeddings, model.novelty.score(embeddings), appearance)


def thresholds_of(model: FittedModel, cal: Scored) -> list[list[Any]]:
    """Return the model's own thresholds, and those of each of `SHARES` on the cal split."""
    own = [model.calibration.novelty_threshold, model.calibration.appearance_threshold]
    scores = [cal.novelty, cal.appearance]
    return [own, *(joint_thresholds(scores, share) for share in SHARES)]


def compare_cohorts(
    thresholds: Sequence[Sequence[float]], test: Scored, others: Sequence[Scored]
) -> None:
    """Print a row a cohort."""
    header = ["", "images", "AUROC by novelty", "by appearance", "called unlike"]
    header += [f"at a share of {share:g}" for share in SHARES]
    print(f"| {' | '.join(header)} |\n|{' --- |' * len(header)}")

    def flagged(scored: Scored) -> list[str]:
        resampling = Resampling(scored.rows.group_id)
        return [
            show(estimate(resampling.draws(mean_of(scored.beyond(each))))) for each in thresholds
        ]

    cells = [f"{test.name}, test", str(len(test.rows)), "", "", *flagged(test)]
    print(f"| {' | '.join(cells)} |", flush=True)
    for strange in others:
        groups = [f"own {g}" for g in test.rows.group_id]
        groups += [f"other {g}" for g in strange.rows.group_id]
        unlike = np.repeat([False, True], [len(test.rows), len(strange.rows)])
        resampling = Resampling(groups)
        apart = [
            resampling.draws(auroc_of(unlike, np.concatenate(pair)))
            for pair in ((test.novelty, strange.novelty), (test.appearance, strange.appearance))
        ]
        cells = [strange.name, str(len(strange.rows)), *(show(estimate(draws)) for draws in apart)]
        print(f"| {' | '.join([*cells, *flagged(strange)])} |", flush=True)


def by_form(
    model: FittedModel, thresholds: Sequence[Sequence[float]], own: Cohort, test: Scored
) -> None:
    """Print the share of test pictures that are called unlike in other forms, by appearance.

    The first `PICTURES` of the split; their novelty is that of the picture as it is.
    """
    assert model.appearance is not None
    some = np.arange(min(PICTURES, len(test.rows)))
    files = own.images([int(test.rows.position[i]) for i in some])
    pictures = [decode_image(data) for data in files]
    header = ["sent as", "called unlike", *(f"at a share of {share:g}" for share in SHARES)]
    print(f"\n| {' | '.join(header)} |\n|{' --- |' * len(header)}")
    for name, change in FORMS.items():
        described = np.stack([describe_appearance(change(picture)) for picture in pictures])
        score = model.appearance.score(described)
        shares = [float(((test.novelty[some] > a) | (score > b)).mean()) for a, b in thresholds]
        print(f"| {name} | {' | '.join(f'{share:.3f}' for share in shares)} |", flush=True)


def by_score(model: FittedModel, test: Scored) -> None:
    """Print the answers' figures of quarters of the test split, most ordinary first."""
    rows, score = test.rows, test.novelty
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
    test, cal = (scores_of(model, own, [split]) for split in ("test", "cal"))
    thresholds = thresholds_of(model, cal)
    others = [scores_of(model, Cohort.open(path), SPLITS) for path in options.other]
    compare_cohorts(thresholds, test, others)
    by_form(model, thresholds, own, test)
    by_score(model, test)


if __name__ == "__main__":
    main()
