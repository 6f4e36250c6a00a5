"""The model card: what a bundle is, what it saw, how it was calibrated, what it is not for.

After Mitchell et al. (2019), Model Cards for Model Reporting, arXiv 1810.03993.
"""

from collections.abc import Iterable

from bundle.calibration import CONDITIONS, Calibration
from bundle.manifest import RESEARCH_USE, DataSource
from training.run import RunInfo


def model_card(
    info: RunInfo, calibration: Calibration, parity_worst: float, limits: Iterable[str]
) -> str:
    """Return the card as Markdown, made from the run alone."""
    lines = [
        f"# SLIMP bundle: {info.objective} pre-training",
        "",
        f"**{RESEARCH_USE}**",
        "",
        "## What it answers",
        f"Labels: {', '.join(info.labels)}. Counted as malignant: "
        f"{', '.join(info.malignant_labels)}.",
        f"Embedding width {info.embedding_dim}; {info.parameters:,} parameters in the towers.",
        f"Largest difference between ONNX and torch: {parity_worst:.1e}.",
        "",
        "## What it saw",
        *(_describe(source) for source in info.data),
        f"Split: {info.split_recipe}.",
        "",
        "## How it was calibrated",
        "| metadata | lesion images | temperature | calibration error | conformal miss rate |",
        "| --- | --- | --- | --- | --- |",
    ]
    for condition in CONDITIONS:
        fitted = calibration.conditions[condition]
        lines.append(
            f"| {condition} | {fitted.lesions} | {fitted.temperature:.3f} | "
            f"{fitted.expected_calibration_error:.3f} | {fitted.conformal.alpha:g} |"
        )
    lines += [
        "",
        "| operating point | metadata | threshold | sensitivity | specificity |",
        "| --- | --- | --- | --- | --- |",
    ]
    for point in calibration.operating_points:
        lines.append(
            f"| {point.name} | {point.condition} | {point.threshold:.4f} | "
            f"{_interval(point.sensitivity, point.sensitivity_interval)} | "
            f"{_interval(point.specificity, point.specificity_interval)} |"
        )
    lines += ["", "These figures are from the calibration split. `slimp evaluate` measures the"]
    lines += ["test split, which nothing here saw.", "", "## Limits"]
    lines += [f"- {limit}" for limit in limits]
    return "\n".join(lines) + "\n"


def _describe(source: DataSource) -> str:
    patients = "no patient ids" if source.patients is None else f"{source.patients:,} patients"
    return (
        f"- {source.name}: {source.images:,} images of {source.lesions:,} lesions, {patients}; "
        f"{source.licence}; {source.citation}"
    )


def _interval(value: float, bounds: tuple[float, float]) -> str:
    return f"{value:.3f} ({bounds[0]:.3f} to {bounds[1]:.3f})"
