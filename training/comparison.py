"""Several evaluations side by side, from the figures and resampled values that each of them left.

Evaluations of the same images drew the same patients (or lesions) again, so that their differences
have paired intervals. The evaluations of one experiment's seeds are one row: the mean over the
seeds, with the interval that other patients and seeds would give, and the range of the seeds
beside it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.arrays import read_arrays
from bundle.errors import CorruptBundle, TrainingError
from training.report import DRAWS, METRICS, TITLES, show, table
from training.resampling import Draws, Estimate, estimate, over_seeds

COLUMNS = (
    "balanced_accuracy",
    "macro_auroc",
    "malignant_auroc",
    "melanoma_auroc",
    "malignant_pauc_above_80_sensitivity",
    "expected_calibration_error",
)


@dataclass(frozen=True)
class Evaluated:
    """What one evaluation left: its figures, and their resampled values by condition/figure."""

    metrics: dict[str, Any]
    draws: dict[str, Draws]

    @property
    def resampled(self) -> tuple[Any, ...]:
        """What two evaluations must share for row s of their draws to be of the same resample."""
        cohort, model = self.metrics["cohort"], self.metrics["model"]
        images = cohort["image_ids_sha256"], cohort["group"], tuple(cohort["labels"])
        return *images, tuple(model["labels"]), *sorted(self.metrics["bootstrap"].items())


@dataclass(frozen=True)
class Experiment:
    """A row of the table: one evaluation, or those of several seeds."""

    name: str
    seeds: list[Evaluated]

    @property
    def conditions(self) -> list[str]:
        each = [seed.metrics["conditions"] for seed in self.seeds]
        return [name for name in each[0] if all("calibrated_as" in known[name] for known in each)]

    def draws(self, figure: str) -> Draws | None:
        """Return (1 + samples,) of the seeds' mean; None where one has no such figure."""
        if any(figure not in seed.draws for seed in self.seeds):
            return None
        return over_seeds([seed.draws[figure] for seed in self.seeds])

    def show(self, condition: str, name: str) -> str:
        """Return a figure with its interval, and the range over several seeds."""
        if len(self.seeds) == 1:
            return show(self.seeds[0].metrics["conditions"][condition].get(name))
        known = [seed.metrics["conditions"][condition].get(name) for seed in self.seeds]
        absent = [figure for figure in known if figure is None or figure["value"] is None]
        draws = self.draws(f"{condition}/{name}")
        if absent or draws is None:
            return show(absent[0] if absent else None)
        values = [figure["value"] for figure in known]
        return f"{show(estimate(draws))}; seeds {min(values):.3f} to {max(values):.3f}"

    def less(self, other: "Experiment", figure: str) -> Estimate | None:
        """Return the paired difference from another; None where one has no such figure."""
        first, second = self.draws(figure), other.draws(figure)
        return None if first is None or second is None else estimate(first - second)


def compare_evaluations(named: Sequence[str]) -> str:
    """Return Markdown: a row an experiment and condition, then differences from the first.

    Args:
        named: what to compare, one or more: a folder that `slimp evaluate` wrote, or
            NAME=FOLDER,FOLDER with those of several seeds.

    Raises:
        TrainingError: a folder holds no evaluation, or seeds were evaluated on different images.
    """
    experiments = [_read_experiment(each) for each in named]
    rows = [
        [each.name, each.seeds[0].metrics["model"]["id"][:12], str(len(each.seeds)), condition]
        + [each.show(condition, name) for name in COLUMNS]
        for each in experiments
        for condition in each.conditions
    ]
    titles = [TITLES[name] for name in COLUMNS]
    lines = table(["evaluation", "model", "seeds", "sees", *titles], rows, None)
    lines += [f"- {each.name}: {_images(each.seeds[0].metrics)}" for each in experiments]
    first, *others = experiments
    alike = [each for each in others if each.seeds[0].resampled == first.seeds[0].resampled]
    if len(alike) < len(others):
        lines += ["", "*These evaluations are of different images: do not compare their rows.*"]
    if alike:
        lines += ["", f"Less {first.name}, paired, resampled together:"]
        lines += table(["evaluation", "sees", *titles], _differences(first, alike), None)
    return "\n".join(lines).strip() + "\n"


def _differences(first: Experiment, others: list[Experiment]) -> list[list[str]]:
    return [
        [each.name, condition] + [show(each.less(first, f"{condition}/{name}")) for name in COLUMNS]
        for each in others
        for condition in each.conditions
        if condition in first.conditions
    ]


def _images(metrics: dict[str, Any]) -> str:
    cohort, mark = metrics["cohort"], metrics["seen"]["mark"]
    counts = f"{cohort['images']} images of {cohort['groups']} {cohort['group']}s"
    text = f"{cohort['name']}, {', '.join(cohort['splits'])}; {counts}"
    return text + (f"; {mark}" if mark else "")


def _read_experiment(named: str) -> Experiment:
    name, equals, folders = named.partition("=")
    if not equals or Path(named).is_dir():
        return Experiment(named, [_read(Path(named))])
    seeds = [_read(Path(folder)) for folder in folders.split(",")]
    if len({seed.resampled for seed in seeds}) > 1:
        raise TrainingError(
            f"{name}: expected seeds of one experiment, evaluated on the same images under the "
            "same labels, these were not"
        )
    return Experiment(name, seeds)


def _read(folder: Path) -> Evaluated:
    problem = (
        f"{folder}: expected a folder that slimp evaluate wrote, with {METRICS} and {DRAWS}; "
        "several seeds are NAME=FOLDER,FOLDER"
    )
    try:
        metrics = json.loads((folder / METRICS).read_bytes())
        draws = read_arrays((folder / DRAWS).read_bytes(), DRAWS)
    except (OSError, ValueError, CorruptBundle):
        raise TrainingError(problem) from None
    if not isinstance(metrics, dict) or not {"conditions", "cohort", "seen"} <= metrics.keys():
        raise TrainingError(problem)
    return Evaluated(metrics, draws)
