"""The plots of an evaluation. Drawn without a display and without matplotlib's global state."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix, roc_curve

from training.metrics import balanced_decision
from training.resampling import BoolArray, IntArray
from training.scores import Labelled, Question, Truth

FloatArray = npt.NDArray[np.float32]
Probabilities = Mapping[str, FloatArray]
BINS = 10
# A bin with fewer images says nothing of a share.
LEAST_IN_BIN = 5
DPI = 120
# Told apart in grey and by people who do not see red or green (Okabe and Ito).
COLOURS = {
    "image": "#0072b2",
    "metadata": "#999999",
    "given": "#d55e00",
    "extrapolated": "#009e73",
}


def draw_plots(
    folder: Path,
    probabilities: Probabilities,
    truth: Truth,
    curve: Sequence[Mapping[str, Any]],
    mark: str | None,
    pages: Mapping[str, Figure],
) -> list[str]:
    """Write the plots that the figures allow, and return their file names.

    Args:
        folder: where to.
        probabilities: (N, C) float32 by condition.
        truth: what is known of the N rows.
        curve: figures by share of hidden metadata.
        mark: a remark that every plot carries, or None.
        pages: further figures by file name.
    """
    figures: dict[str, Figure] = {}
    malignant = truth.questions["malignant_auroc"]
    if isinstance(malignant, Question) and 0 < malignant.positive.mean() < 1:
        figures["roc_malignant.png"] = _roc(probabilities, malignant)
    if isinstance(truth.labelled, Labelled):
        figures["reliability.png"] = _reliability(probabilities, truth.labelled)
        name = "given" if "given" in probabilities else "image"
        figures[f"confusion_{name}.png"] = _confusion(
            probabilities[name], truth, truth.labelled, name
        )
        if curve:
            figures["missing_metadata.png"] = _missing(curve)
    figures |= pages
    for file, figure in figures.items():
        if mark:
            figure.supxlabel(mark, fontsize=8, style="italic")
        figure.savefig(folder / file, dpi=DPI)
    return list(figures)


def _figure(width: float = 5.2, height: float = 5.0) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _roc(probabilities: Probabilities, question: Question) -> Figure:
    figure, axes = _figure()
    for name, own in probabilities.items():
        fall_out, sensitivity, _ = roc_curve(question.positive, question.score(own))
        axes.plot(fall_out, sensitivity, color=COLOURS[name], label=name)
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1, zorder=0)
    count = int(question.positive.sum())
    axes.set(
        title=f"Malignancy: {count} of {len(question.positive)} images malignant",
        xlabel="1 - specificity",
        ylabel="sensitivity",
        aspect="equal",
    )
    axes.legend(loc="lower right")
    return figure


def _reliability(probabilities: Probabilities, labelled: Labelled) -> Figure:
    figure, axes = _figure()
    for name, own in probabilities.items():
        confidence, right, count = reliability(own[labelled.rows], labelled.label)
        axes.plot(confidence, right, color=COLOURS[name], label=name, linewidth=1)
        area = 8 + 60 * count / len(labelled.rows)
        axes.scatter(confidence, right, s=area, color=COLOURS[name])
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1, zorder=0)
    axes.set(
        title="Reliability (dot area: images; bins of 5 or more)",
        xlabel="largest probability",
        ylabel="share of images where it is right",
        xlim=(0, 1.02),
        ylim=(0, 1.02),
        aspect="equal",
    )
    axes.legend(loc="upper left")
    return figure


def reliability(
    probabilities: FloatArray, label: IntArray
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Return mean confidence, share right and count of the bins with 5 images or more, each (B,).

    Args:
        probabilities: (N, C) float32.
        label: (N,) int64.
    """
    confidence = probabilities.max(1)
    right: BoolArray = probabilities.argmax(1) == label
    place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    held = [place == number for number in range(BINS) if (place == number).sum() >= LEAST_IN_BIN]
    return (
        np.array([confidence[own].mean() for own in held], np.float32),
        np.array([right[own].mean() for own in held], np.float32),
        np.array([own.sum() for own in held], np.int64),
    )


def _confusion(own: FloatArray, truth: Truth, labelled: Labelled, name: str) -> Figure:
    decided = balanced_decision(own[labelled.rows], truth.prior)
    labels = truth.labels
    counts = confusion_matrix(labelled.label, decided, labels=range(len(labels)))
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    side = 2.8 + 0.75 * len(labels)
    figure, axes = _figure(side + 0.6, side)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        ink = "white" if shares[row, column] > 0.5 else "black"
        text = f"{shares[row, column]:.0%}\n{counts[row, column]}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
    words = [label.replace("_", " ") for label in labels]
    axes.set_xticks(range(len(labels)), words, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), words)
    axes.set(title=f"Balanced decision, {name}", xlabel="decided", ylabel="true label")
    return figure


def _missing(curve: Sequence[Mapping[str, Any]]) -> Figure:
    figure, axes = _figure(5.6, 4.2)
    lines = (
        ("balanced_accuracy", "balanced accuracy", "#0072b2"),
        ("macro_auroc", "macro AUROC", "#d55e00"),
    )
    for metric, name, colour in lines:
        points = [(p["hidden_share"], p[metric]) for p in curve if p[metric]["value"] is not None]
        shares = [100 * share for share, _ in points]
        axes.plot(
            shares,
            [f["value"] for _, f in points],
            color=colour,
            marker="o",
            label=name,
        )
        known = [(x, f) for x, (_, f) in zip(shares, points, strict=True) if f["low"] is not None]
        axes.fill_between(
            [x for x, _ in known],
            [f["low"] for _, f in known],
            [f["high"] for _, f in known],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
    axes.set(
        title="Image and metadata, columns hidden at random",
        xlabel="columns hidden, %",
        ylabel="value, 95 % interval",
    )
    axes.legend()
    return figure
