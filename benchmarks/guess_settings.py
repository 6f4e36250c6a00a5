"""What each setting of metadata extrapolation does: how many are asked, how, and when none answers.

    python -m benchmarks.guess_settings RUN COHORT [--bundle BUNDLE]

The neighbours of the test split's lesions are found in the train split. One setting at a time
differs from the run's own; the farthest neighbour that may speak is fitted anew on the cal split. A
guess of a number is right within one standard deviation. Answers take the guesses as if they were
given, and are compared with those from the image alone, in pairs; `served` says what calibration
made of the run's own settings. RUN is a fitted run; BUNDLE, exported from it, embeds sooner where
it has a faster precision.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cohort.cohort import Cohort
from training.conditions import absent, answer, compare_fields
from training.config import FitSettings
from training.data import Rows, Squares, load_rows
from training.extrapolation_study import believing
from training.features import FloatArray, embed_rows
from training.fitted import FittedModel, open_fitted
from training.metrics import balanced_decision, expected_calibration_error
from training.neighbours import Neighbours, fit_extrapolation
from training.report import show
from training.resampling import Draws, Resampling, estimate
from training.run import read_run_config
from training.scores import Labelled, label_draws

ONE_AT_A_TIME: dict[str, tuple[int | float | str, ...]] = {
    "neighbours": (1, 5, 50, 200),
    "neighbours_weighting": ("equal",),
    "neighbours_support": (1, 8),
    "neighbours_agreement": (0.0, 0.7, 0.9),
    "neighbours_too_far": (0.0, 0.2, 0.5),
}
FIGURES = ("balanced_accuracy", "macro_auroc")


class Study:
    """A fitted run's test split and the lesions that answer for it."""

    def __init__(self, model: FittedModel, cohort: Cohort) -> None:
        def read(split: str) -> tuple[Rows, FloatArray]:
            rows = load_rows(cohort, [split], model.labels)
            rows = rows.take(rows.label >= 0)
            squares = Squares(cohort, rows, model.image_input)
            return rows, embed_rows(model.encoders, squares)

        self.model = model
        self.reference = Neighbours(*read("train"))
        self.cal, self.rows = read("cal"), read("test")
        rows = self.rows[0]
        known = np.arange(len(rows))
        self.labelled = Labelled(known, rows.label, Resampling(rows.group_id))
        blank = answer(model, self.rows[1], absent(rows.records), "missing").probabilities
        self.image = self._draws(blank)
        self.image_right = self._right(blank)

    def _draws(self, probabilities: FloatArray) -> dict[str, Draws]:
        return label_draws(probabilities, self.labelled, self.model.prior)

    def _right(self, probabilities: FloatArray) -> npt.NDArray[np.bool_]:
        right: npt.NDArray[np.bool_] = (
            balanced_decision(probabilities, self.model.prior) == self.labelled.label
        )
        return right

    def row(self, settings: FitSettings) -> list[str]:
        """Return the cells of one setting."""
        scores, _ = self.reference.search(*self.cal, settings.neighbours)
        extrapolation = fit_extrapolation(scores, settings)
        rows, embeddings = self.rows
        guessed = self.reference.extrapolated(rows, embeddings, self.model.schema, extrapolation)
        fields = compare_fields(self.model.schema.fields, rows.records, guessed)
        filled = np.mean([figures["fill_share"] for figures in fields.values()])
        right = [
            "" if figures["accuracy"] is None else f"{figures['accuracy']:.2f}"
            for figures in fields.values()
        ]
        believed = answer(believing(self.model), embeddings, guessed, "extrapolated").probabilities
        draws = self._draws(believed)
        gaps = [show(estimate(draws[name] - self.image[name])) for name in FIGURES]
        now, before = self._right(believed), self.image_right
        changed = [f"{100 * np.mean(each):.1f} %" for each in (before & ~now, ~before & now)]
        error = expected_calibration_error(believed, self.labelled.label)
        return [f"{100 * filled:.0f} %", *right, *gaps, *changed, f"{error:.3f}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--bundle", type=Path)
    options = parser.parse_args()
    study = Study(open_fitted(options.bundle or options.run), Cohort.open(options.cohort))
    fields = [f"{field.name} right" for field in study.model.schema.fields]
    figures = [f"{name.replace('_', ' ')} less the image's" for name in FIGURES]
    header = ["setting", "filled", *fields, *figures, "harmed", "helped", "calibration error"]
    print(f"| {' | '.join(header)} |\n|{' --- |' * len(header)}")
    settings = read_run_config(options.run).fit
    print(f"| as fitted | {' | '.join(study.row(settings))} |", flush=True)
    for name, values in ONE_AT_A_TIME.items():
        for value in values:
            changed = settings.model_copy(update={name: value})
            print(f"| {name} {value} | {' | '.join(study.row(changed))} |", flush=True)
    weight = study.model.calibration.extrapolation.weight
    print(f"\nserved: guesses weigh {weight:g}")


if __name__ == "__main__":
    main()
