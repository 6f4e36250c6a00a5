"""Several evaluations side by side, from the `metrics.json` that each of them left.

Rows of different images are no comparison: a table says where the evaluated images differ. For
differences with paired intervals, `slimp evaluate --against` takes another's answers.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bundle.errors import TrainingError
from training.report import METRICS, TITLES, show, table

COLUMNS = (
    "balanced_accuracy",
    "macro_auroc",
    "malignant_auroc",
    "melanoma_auroc",
    "malignant_pauc_above_80_sensitivity",
    "expected_calibration_error",
)


def compare_evaluations(folders: Sequence[Path]) -> str:
    """Return a Markdown table: one row an evaluation and condition.

    Args:
        folders: what `slimp evaluate` wrote, one or more.

    Raises:
        TrainingError: a folder holds no evaluation.
    """
    read = [(folder, _read(folder)) for folder in folders]
    rows = []
    for folder, metrics in read:
        for condition, figures in metrics["conditions"].items():
            if "calibrated_as" in figures:
                cells = [show(figures.get(name)) for name in COLUMNS]
                rows.append([str(folder), metrics["model"]["id"][:12], condition, *cells])
    header = ["evaluation", "model", "sees", *(TITLES[name] for name in COLUMNS)]
    lines = table(header, rows, None)
    lines += [f"- {folder}: {_images(metrics)}" for folder, metrics in read]
    if len({metrics["cohort"].get("image_ids_sha256") for _, metrics in read}) > 1:
        lines += ["", "*These evaluations are of different images: do not compare their rows.*"]
    return "\n".join(lines).strip() + "\n"


def _images(metrics: dict[str, Any]) -> str:
    cohort, mark = metrics["cohort"], metrics["seen"]["mark"]
    counts = f"{cohort['images']} images of {cohort['groups']} {cohort['group']}s"
    text = f"{cohort['name']}, {', '.join(cohort['splits'])}; {counts}"
    return text + (f"; {mark}" if mark else "")


def _read(folder: Path) -> dict[str, Any]:
    file = folder / METRICS
    problem = f"{folder}: expected a folder that slimp evaluate wrote, with a {METRICS}"
    try:
        metrics = json.loads(file.read_bytes())
    except (OSError, ValueError):
        raise TrainingError(problem) from None
    if not isinstance(metrics, dict) or not {"conditions", "cohort", "seen"} <= metrics.keys():
        raise TrainingError(problem)
    return metrics
