"""The tables of the matrix of objectives: mean over the seeds, patients and seeds resampled."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.experiment_answers import COMPARED, FIRST, PATIENT_FIELDS, Answers
from training.metrics import hit_in_top
from training.report import show
from training.resampling import (
    Draws,
    Resampling,
    auroc_of,
    balanced_accuracy_of,
    estimate,
    macro_auroc_of,
    mean_by_label_of,
    mean_of,
    over_seeds,
    partial_auroc_of,
)

ANSWERS = "answers.npz"
TOP, LEAST_LESIONS = 3, 15
# The sensitivity above which ISIC 2024 takes the area.
SENSITIVITY = 0.8
FIGURES = {
    "image": "image",
    "record": "record",
    "both": "image + record",
}
RANKS = {
    "malignant, image": "image",
    "malignant in company, image": "image, in company",
    "malignant, both": "image + record",
    "malignant in company, both": "image + record, in company",
}
# Every other row is compared with these.
OURS = ("nested", "nested + views")
NEAREST = {name: FIGURES[name] for name in COMPARED}
LIKENESS = {
    f"{kind}, {name}": f"{head}, {seen}"
    for name, seen in NEAREST.items()
    for kind, head in (("neighbours", "vote's AUROC"), ("precision", f"precision at {FIRST}"))
}
HEADS = {**FIGURES, **RANKS, **LIKENESS, **{name: name for name in PATIENT_FIELDS}}


def figures_of(path: Path) -> dict[str, Draws]:
    """Return the (1 + samples,) draws of every figure of one cell."""
    with np.load(path) as file:
        answers = {name: file[name] for name in file.files}
    patient = answers["patient"]
    resampling = Resampling([str(p) for p in patient])
    label = answers["true label"]
    draws: dict[str, Draws] = {}
    for name in FIGURES:
        probabilities = answers[f"label, {name}"]
        decided = probabilities.argmax(1)
        draws[f"balanced {name}"] = resampling.draws(balanced_accuracy_of(label, decided))
        draws[f"auroc {name}"] = resampling.draws(macro_auroc_of(label, probabilities))
    for name in RANKS:
        score = answers[name]
        asked = answers["malignant"], score
        draws[f"auroc {name}"] = resampling.draws(auroc_of(*asked))
        draws[f"partial {name}"] = resampling.draws(partial_auroc_of(*asked, above=SENSITIVITY))
        hits = hit_in_top(score, answers["malignant"], patient, top=TOP, least=LEAST_LESIONS)
        judged = Resampling([str(p) for p in hits])
        draws[f"top {name}"] = judged.draws(mean_of(np.array(list(hits.values()))))
    for name in NEAREST:
        voted = macro_auroc_of(label, answers[f"neighbours, {name}"])
        draws[f"likeness neighbours, {name}"] = resampling.draws(voted)
        precision = mean_by_label_of(label, answers[f"precision, {name}"])
        draws[f"likeness precision, {name}"] = resampling.draws(precision)
    return draws | patient_figures(answers)


def patient_figures(answers: Answers) -> dict[str, Draws]:
    """Return the draws of the macro AUROC of each field of the patients' records."""
    draws = {}
    for name in PATIENT_FIELDS:
        code, said = answers[f"true record, {name}"], answers[f"record, {name}"]
        known = code >= 0
        resampling = Resampling([str(p) for p in answers["patients"][known]])
        code, said = code[known], said[known]
        draws[f"record {name}"] = resampling.draws(macro_auroc_of(code, said))
    return draws


def report(folder: Path, variants: Sequence[str]) -> None:
    """Print the tables of the cells that are there, their rows in the order of the variants."""
    cells = {
        name: [figures_of(path) for path in sorted(folder.glob(f"{name}/*/{ANSWERS}"))]
        for name in variants
    }
    cells = {name: seeds for name, seeds in cells.items() if seeds}
    mean = {
        name: {figure: over_seeds([s[figure] for s in seeds]) for figure in seeds[0]}
        for name, seeds in cells.items()
    }
    tables = (
        ("Balanced accuracy over the labels", [f"balanced {n}" for n in FIGURES]),
        ("Macro AUROC over the labels", [f"auroc {n}" for n in FIGURES]),
        (f"Malignant lesion in the patient's top {TOP}", [f"top {n}" for n in RANKS]),
        ("Malignant AUROC", [f"auroc {n}" for n in RANKS]),
        (
            f"Malignant, area above a sensitivity of {SENSITIVITY:.0%} (at most 0.2)",
            [f"partial {n}" for n in RANKS],
        ),
        (
            "The nearest train rows: macro AUROC of their vote, precision averaged over labels",
            [f"likeness {n}" for n in LIKENESS],
        ),
        (
            "The patient's record from the mean of the patient's images, macro AUROC",
            [f"record {n}" for n in PATIENT_FIELDS],
        ),
    )
    for title, names in tables:
        heads = [HEADS[n.split(" ", 1)[1]] for n in names]
        print(f"\n### {title}\n\n| | seeds | " + " | ".join(heads) + " |")
        print("| --- | --- | " + " | ".join("---" for _ in heads) + " |")
        for variant, figures in mean.items():
            row = [show(estimate(figures[n])) for n in names]
            print(f"| {variant} | {len(cells[variant])} | " + " | ".join(row) + " |")
        for ours in OURS:
            if ours in cells:
                _differences(ours, cells, names, heads)


def _differences(
    ours: str, cells: dict[str, list[dict[str, Draws]]], names: list[str], heads: list[str]
) -> None:
    print(f"\n| {ours} minus | " + " | ".join(heads) + " |")
    print("| --- | " + " | ".join("---" for _ in heads) + " |")
    for variant in cells:
        if variant in OURS[: OURS.index(ours) + 1]:
            continue
        shared = min(len(cells[ours]), len(cells[variant]))
        gaps = [
            over_seeds([cells[ours][i][n] - cells[variant][i][n] for i in range(shared)])
            for n in names
        ]
        print(f"| {variant} | " + " | ".join(show(estimate(gap)) for gap in gaps) + " |")
